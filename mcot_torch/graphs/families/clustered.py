"""Synthetic families of metastable graphs: K clusters of M states, joined by rare hard steps.

Specification, "Graph families" (docs/specification.md#graph-families).

Shapes are chosen at two levels: how the clusters are joined (`SHAPES`) and what one cluster looks like inside
(`CLUSTERS`). Cluster k holds the states k·M .. (k + 1)·M - 1. Every random choice comes from one integer seed.
The hard steps of a cluster leave it at the states nearest to its entry state, never at the entry itself. Where they leave
does not matter as ε -> 0 (with regular clusters, whose law is uniform, a walk escapes at rate ε·W/M), but at ε_max = .03 it
shifts the default hitting time: 3,661 ± 7 steps over seeds with sources next to the entry, 3,758 ± 23 with sources anywhere
else. The first varies less.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, gcd, isfinite
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp
from scipy.sparse.csgraph import connected_components, dijkstra

from mcot_torch.errors import InputError
from mcot_torch.graphs.families.regular import disjoint_union, random_regular_edges, regular_together, switch
from mcot_torch.graphs.graph import MetastableGraph

__all__ = ["CLUSTERS", "ENTRIES", "SHAPES", "Cluster", "Entries", "Shape", "clustered_graph", "random_regular_edges"]

Shape = Literal["circulant", "ring", "bidirectional_ring", "complete", "path", "random_regular"]
Cluster = Literal["random_regular", "complete", "cycle"]
Entries = Literal["single", "free"]
SHAPES: tuple[str, ...] = get_args(Shape)
CLUSTERS: tuple[str, ...] = get_args(Cluster)
ENTRIES: tuple[str, ...] = get_args(Entries)


def clustered_graph(
    n_clusters: int = 10,
    cluster_size: int = 32,
    epsilon: float = 0.002,
    jumps: Sequence[int] = (1, 2, -1),
    *,
    shape: Shape = "circulant",
    cluster: Cluster = "random_regular",
    degree: int = 4,
    n_out: int | None = None,
    d_out: int = 1,
    out_degree: int = 3,
    weights: Sequence[float] | None = None,
    entries: Entries = "single",
    seed: int = 0,
) -> MetastableGraph:
    """A graph of K equal clusters; the default is the circulant with jumps +1, +2 and -1.

    The hard steps out of a cluster are its slots: one a jump (circulant, in the order given; ring +1;
    bidirectional_ring and path +1, -1; complete +1 .. +(K - 1)) or one an out-neighbour (random_regular). Slot j leaves
    from source j mod n_out and has weight `weights[j]`.

    Args:
        n_clusters: K, at least 2.
        cluster_size: M, states a cluster.
        epsilon: ε, probability a step of a hard edge of weight 1.
        jumps: for the circulant only: cluster k is joined to k + jump mod K. Distinct and non-zero mod K.
        shape: how the clusters are joined, one of `SHAPES`.
        cluster: what a cluster is inside, one of `CLUSTERS`; the walk is uniform over neighbours, without self-loops.
        degree: neighbours a state in a random_regular cluster.
        n_out: sources a cluster (A2); None for ceil(slots / d_out).
        d_out: most hard edges a source (A2).
        out_degree: slots a cluster of the random_regular shape.
        weights: weight w of each slot; None for 1.
        entries: "single": all hard edges into a cluster end at one state (A5); "free": each at a random state.
        seed: non-negative integer.

    Raises:
        InputError: its message begins with the name of the argument that is out of its domain.
    """
    _check_sizes(n_clusters, cluster_size, epsilon, cluster, degree, d_out, entries, seed)
    rng = np.random.default_rng(seed)
    slots = _cluster_slots(shape, n_clusters, jumps, out_degree, rng)
    n_slots = max(len(heads) for heads in slots)
    n_sources = _number_of_sources(n_slots, n_out, d_out, cluster_size)
    slot_weights = _slot_weights(weights, n_slots)

    pairs, shuffled, chosen = _insides(cluster, n_clusters, cluster_size, degree, n_sources, entries, rng)
    order = _by_distance(pairs, shuffled)  # (K, M)
    exits = order[:, 1 : n_sources + 1]
    arrivals = np.take_along_axis(np.delete(order, np.s_[1 : n_sources + 1], axis=1), chosen, axis=1)
    first = np.arange(n_clusters) * cluster_size
    exits, arrivals, pairs = exits + first[:, None], arrivals + first[:, None], pairs + first[:, None, None]
    one, other = pairs.reshape(-1, 2).T
    source, target = np.concatenate([one, other]), np.concatenate([other, one])
    probability = 1.0 / np.bincount(source)[source]

    arrived = np.zeros(n_clusters, dtype=np.int64)
    hard: list[tuple[int, int, float]] = []
    for k, heads in enumerate(slots):
        for j, head in enumerate(heads):
            end = arrivals[head][arrived[head] % len(arrivals[head])]
            arrived[head] += 1
            hard.append((int(exits[k][j % n_sources]), int(end), slot_weights[j]))
    tails, ends, values = (np.array(column) for column in zip(*hard, strict=True))
    clusters = np.repeat(np.arange(n_clusters), cluster_size)
    return MetastableGraph.from_edges((source, target, probability), (tails, ends, values), clusters, epsilon)


# ---- the cluster level ----------------------------------------------------------------------------------------------


def _cluster_slots(
    shape: str, n_clusters: int, jumps: Sequence[int], out_degree: int, rng: np.random.Generator
) -> list[list[int]]:
    """For each cluster the clusters that its hard steps lead to, slot by slot."""
    k = n_clusters
    if shape == "random_regular":
        if not 1 <= out_degree <= k - 1:
            raise InputError(f"out_degree is {out_degree}; with n_clusters {k} it must lie in 1 .. {k - 1}")
        return _random_digraph(k, out_degree, rng)
    if shape == "path":
        # both directions, so that the graph stays strongly connected; the end clusters have one slot
        return [[c for c in (i + 1, i - 1) if 0 <= c < k] for i in range(k)]
    if shape == "ring":
        steps = [1]
    elif shape == "bidirectional_ring":
        if k < 3:
            raise InputError("n_clusters is 2; in a bidirectional_ring +1 and -1 collide mod 2: use 3 or more, or ring")
        steps = [1, -1]
    elif shape == "complete":
        steps = list(range(1, k))
    elif shape == "circulant":
        steps = _check_jumps(jumps, k)
    else:
        raise InputError(f"family is {shape!r}; the synthetic families are {', '.join(SHAPES)}")
    return [[(i + step) % k for step in steps] for i in range(k)]


def _check_jumps(jumps: Sequence[int], n_clusters: int) -> list[int]:
    """The jumps, checked: non-empty, distinct and non-zero mod K (A2), and leading everywhere."""
    k, seen = n_clusters, dict[int, int]()
    if not jumps:
        raise InputError("jumps is empty; the circulant needs at least one, such as [1]")
    for jump in jumps:
        if jump % k == 0:
            raise InputError(
                f"jumps holds {jump}, which is 0 mod n_clusters {k} and stays in the cluster; drop it or change n_clusters"
            )
        if jump % k in seen:
            raise InputError(
                f"jumps {seen[jump % k]} and {jump} are equal mod n_clusters {k}, and two clusters may share only one hard "
                "step (A2); drop one of them or use more clusters"
            )
        seen[jump % k] = jump
    if (divisor := gcd(k, *jumps)) > 1:
        raise InputError(
            f"jumps {list(jumps)} and n_clusters {k} share the divisor {divisor}, so some clusters are out of reach; add the jump 1"
        )
    return list(jumps)


def _random_digraph(n: int, degree: int, rng: np.random.Generator) -> list[list[int]]:
    """A random strongly connected digraph on n nodes with `degree` edges out of and into every node."""
    if degree == 1:
        cycle = rng.permutation(n)
        after = dict(zip(cycle.tolist(), np.roll(cycle, -1).tolist(), strict=True))
        return [[after[i]] for i in range(n)]
    edges = [(i, (i + j) % n) for i in range(n) for j in range(1, degree + 1)]
    while True:
        switch(edges, rng, directed=True)
        tails, heads = np.array(edges).T
        graph = sp.csr_array((np.ones(len(edges)), (tails, heads)), shape=(n, n))
        # with in-degree = out-degree weakly connected is strongly connected
        if connected_components(graph, directed=False)[0] == 1:
            out: list[list[int]] = [[] for _ in range(n)]
            for tail, head in edges:
                out[tail].append(head)
            return out


# ---- inside a cluster -----------------------------------------------------------------------------------------------


def _cluster_edges(cluster: str, size: int, degree: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n_edges, 2) undirected edges of one cluster on the states 0 .. size - 1."""
    if cluster == "complete":
        return np.stack(np.triu_indices(size, 1), axis=1).astype(np.int64)
    if cluster == "cycle":
        return np.stack([np.arange(size), (np.arange(size) + 1) % size], axis=1)
    return random_regular_edges(size, degree, rng)


def _insides(
    cluster: str, n_clusters: int, size: int, degree: int, n_sources: int, entries: str, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """What is random inside the clusters, drawn in the order of one cluster after another.

    Returns:
        edges (K, n_edges, 2) in local numbers; shuffled states (K, M); which of the states that are no sources hard
        steps may enter (K, 1 or M - n_sources).
    """
    edges: list[NDArray[np.int64]] = []
    drawn: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def draw() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shuffled = rng.permutation(size)
        return shuffled, rng.permutation(size - n_sources) if entries == "free" else np.zeros(1, dtype=np.int64)

    while len(edges) < n_clusters:
        if cluster == "random_regular" and degree > 2:
            some, more = regular_together(n_clusters - len(edges), size, degree, rng, draw)
            edges, drawn = edges + some, drawn + more
        else:
            edges.append(_cluster_edges(cluster, size, degree, rng))
            drawn.append(draw())
    shuffled, chosen = zip(*drawn, strict=True)
    return np.array(edges), np.array(shuffled), np.array(chosen)


def _by_distance(pairs: NDArray[np.int64], shuffled: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K, M) states of each cluster by distance from the first of its shuffled ones (K, M), equal distances in that order."""
    n_clusters, size = shuffled.shape
    first = np.arange(n_clusters)[:, None] * size
    graph = disjoint_union(pairs, size)
    # the clusters are not joined, so that the nearest of all first states is one's own
    distance = dijkstra(graph, directed=False, unweighted=True, indices=(shuffled + first)[:, 0], min_only=True)
    rank = np.argsort(distance[shuffled + first], axis=1, kind="stable")
    return np.take_along_axis(shuffled, rank, axis=1)


# ---- domains --------------------------------------------------------------------------------------------------------


def _check_sizes(
    n_clusters: int,
    cluster_size: int,
    epsilon: float,
    cluster: str,
    degree: int,
    d_out: int,
    entries: str,
    seed: int,
) -> None:
    if n_clusters < 2:
        raise InputError(f"n_clusters is {n_clusters}; metastability needs at least 2 clusters")
    if cluster_size < 2:
        raise InputError(f"cluster_size is {cluster_size}; a cluster needs an entry and another state: use 2 or more")
    if not 0.0 < epsilon < 1.0:
        raise InputError(f"epsilon is {epsilon}; it is a probability a step and must lie in (0, 1), such as 0.002")
    if cluster not in CLUSTERS:
        raise InputError(f"cluster is {cluster!r}; the shapes of a cluster are {', '.join(CLUSTERS)}")
    if cluster == "cycle" and cluster_size < 3:
        raise InputError(f"cluster_size is {cluster_size}; a cycle needs at least 3 states")
    if entries not in ENTRIES:
        raise InputError(f"entries is {entries!r}; it is one of {', '.join(ENTRIES)}")
    if d_out < 1:
        raise InputError(f"d_out is {d_out}; a source needs at least 1 hard edge")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be a non-negative integer")


def _number_of_sources(n_slots: int, n_out: int | None, d_out: int, cluster_size: int) -> int:
    """n_out, checked against the number of hard steps a cluster and the room in it."""
    if n_out is None:
        n_out = ceil(n_slots / d_out)
    if n_out < 1:
        raise InputError(f"n_out is {n_out}; every cluster needs at least 1 source of hard steps")
    if n_out > n_slots:
        raise InputError(f"n_out is {n_out}, but a cluster has only {n_slots} hard steps; use n_out <= {n_slots}")
    if n_out * d_out < n_slots:
        raise InputError(
            f"n_out is {n_out} and d_out {d_out}: {n_out * d_out} hard edges a cluster, but it has {n_slots}; "
            f"raise n_out to {ceil(n_slots / d_out)} or d_out to {ceil(n_slots / n_out)}"
        )
    if n_out + 1 > cluster_size:
        raise InputError(
            f"n_out is {n_out}, and with the entry state a cluster needs {n_out + 1} states; cluster_size is {cluster_size}: "
            "raise it, or lower n_out and raise d_out"
        )
    return n_out


def _slot_weights(weights: Sequence[float] | None, n_slots: int) -> list[float]:
    """One positive weight a slot."""
    if weights is None:
        return [1.0] * n_slots
    if len(weights) != n_slots:
        raise InputError(f"weights has {len(weights)} entries, but a cluster has {n_slots} hard steps; give one each")
    for weight in weights:
        if not (isfinite(weight) and weight > 0):
            raise InputError(f"weights holds {weight}; the weight of a hard step is positive and finite")
    return [float(weight) for weight in weights]
