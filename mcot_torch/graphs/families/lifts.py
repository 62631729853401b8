"""The graphs of the paper's Figures 2 and 3: units whose hidden bit decides, out of sight, whether an edge is a hard step.

[ours] H is a base graph, 4-regular on M vertices, with three ports: the entry a, and u and s next to it. Unit k is a 2-lift
of H: lane 0 is the cluster, lane 1 its twin. With the hidden bit p_k = 1 all edges run parallel, so that the lanes are two
clusters. With p_k = 0 some edges cross from lane to lane, and the unit is one cluster: edges with both ends farther
than ρ from the ports, so that nobody who stays within ρ of them can tell. Whatever p is, these edges have probability ε:

    e_k  (u, 0) -> (a, 1) of unit k: a hard step if p_k = 1, a rare step inside the cluster if p_k = 0
         (u, 1) -> (a, 0) of unit k, its return
    f_k  (s, 0) -> (a, 0) of unit k + 1

The last f leads to the goal, a plain copy of H, whose s leads back to unit 0 with probability ε: so f_k has somewhere to go
also for the last unit, every state can be left, and a graph of one unit has two clusters for either bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse as sp
from scipy.sparse.csgraph import connected_components, shortest_path

from mcot_torch.errors import InputError
from mcot_torch.graphs.families.clustered import random_regular_edges
from mcot_torch.graphs.graph import MetastableGraph

__all__ = ["ENTRY", "PORTS", "SIDE", "UP", "LiftedUnits"]

ENTRY, UP, SIDE = 0, 1, 2
"""The vertices a, u and s of H."""
PORTS = "aus"
_DEGREE = 4
_ATTEMPTS = 100


@dataclass(frozen=True)
class LiftedUnits:
    """K units and a goal, with room for any hidden concept p in {0, 1}^K; `graph(p)` builds it.

    State (2k + l)·M + v is vertex v in lane l of unit k, the goal's vertex v is state 2KM + v: the same states and names for
    every p. H and the crossing of a unit are drawn from the seed and do not depend on p either.

    Attributes:
        n_units: K.
        cluster_size: M, vertices of H.
        epsilon: ε of every e_k, its return and f_k.
        radius: ρ ≥ 0; rows within ρ of the ports do not depend on p, at ρ + 1 they do.
        seed: of H and the crossings.

    Raises:
        InputError: an argument out of its domain, or M so small that no crossing is out of sight.
    """

    n_units: int = 4
    cluster_size: int = 64
    epsilon: float = 0.002
    radius: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_units < 1:
            raise InputError(f"n_units is {self.n_units}; at least 1 unit is needed")
        if self.cluster_size < 2 * _DEGREE:
            raise InputError(
                f"cluster_size is {self.cluster_size}; a lift needs at least {2 * _DEGREE} vertices a lane"
            )
        if not 0.0 < self.epsilon < 1.0:
            raise InputError(f"epsilon is {self.epsilon}; it is a probability a step and must lie in (0, 1)")
        if self.radius < 0:
            raise InputError(f"radius is {self.radius}; it counts steps from the path, 0 or more")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be a non-negative integer")
        _ = self.crossings  # a lane that is too small is an error now

    # ---- states -------------------------------------------------------------------------------------------------

    @property
    def n_states(self) -> int:
        """(2K + 1)·M."""
        return (2 * self.n_units + 1) * self.cluster_size

    def state(self, unit: ArrayLike, lane: ArrayLike, vertex: ArrayLike) -> NDArray[np.int64]:
        """The state of a vertex in a lane of a unit; arrays broadcast. Unit K is the goal, lane 0 its only one."""
        return (2 * np.asarray(unit) + np.asarray(lane)) * self.cluster_size + np.asarray(vertex)

    @property
    def start(self) -> int:
        """The entry of unit 0, lane 0: where the task starts."""
        return 0

    @property
    def goal(self) -> int:
        """The entry of the goal: where the task ends."""
        return int(self.state(self.n_units, 0, ENTRY))

    @cached_property
    def detours(self) -> NDArray[np.int64]:
        """(K, 2) e_k of each unit, (u, 0) -> (a, 1)."""
        units = np.arange(self.n_units)
        return np.stack([self.state(units, 0, UP), self.state(units, 1, ENTRY)], axis=1)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Such as 3a for vertex a in lane 0 of unit 3, 3u' for u in lane 1, 3.17' for vertex 17, goal.a in the goal."""
        vertices = [*PORTS, *(f".{v}" for v in range(len(PORTS), self.cluster_size))]
        lanes = [(f"{k}", mark) for k in range(self.n_units) for mark in ("", "'")]
        named = [f"{unit}{v}{mark}" for unit, mark in lanes for v in vertices]
        return (*named, *("goal." + v.lstrip(".") for v in vertices))

    # ---- H and the crossings ------------------------------------------------------------------------------------

    @cached_property
    def base(self) -> NDArray[np.int64]:
        """(2M, 2) edges of H; its vertices 0, 1, 2 are the ports a, u, s."""
        rng = np.random.default_rng([self.seed, self.radius])
        for _ in range(_ATTEMPTS):
            edges = random_regular_edges(self.cluster_size, _DEGREE, rng)
            beside = np.concatenate([edges[edges[:, 0] == 0, 1], edges[edges[:, 1] == 0, 0]])
            order = np.concatenate([[0], rng.permutation(beside)[:2]])  # a and two of its neighbours
            place = np.argsort(np.concatenate([order, np.setdiff1d(np.arange(self.cluster_size), order)]))
            edges = np.sort(place[edges], axis=1)
            if _out_of_sight(edges, self.cluster_size, self.radius)[1].any():
                return edges[np.lexsort((edges[:, 1], edges[:, 0]))]
        raise InputError(
            f"cluster_size is {self.cluster_size}, too small for radius {self.radius}: in {_ATTEMPTS} base graphs no edge had both "
            "ends out of sight; raise cluster_size or lower radius"
        )

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """(M,) steps in H from each vertex to the nearest port: edges can cross between levels above ρ only."""
        return _distances(self.base, self.cluster_size, (ENTRY, UP, SIDE)).astype(np.int64)

    @cached_property
    def crossings(self) -> NDArray[np.bool_]:
        """(K, 2M) the edges of H that cross from lane to lane where p_k = 0.

        Each edge out of sight crosses with probability 1/2, drawn again until the lift is connected, not bipartite (A1 needs
        both), and a crossing begins at distance ρ + 1 of a or s, which every path visits: there p shows.
        """
        hidden, rim = _out_of_sight(self.base, self.cluster_size, self.radius)
        drawn = np.zeros((self.n_units, len(self.base)), dtype=bool)
        for k in range(self.n_units):
            rng = np.random.default_rng([self.seed, self.radius, k])
            for _ in range(_ATTEMPTS):
                drawn[k] = hidden & (rng.random(len(hidden)) < 0.5)
                if (drawn[k] & rim).any() and _mixes(_lift(self.base, drawn[k], self.cluster_size)):
                    break
            else:
                raise InputError(
                    f"cluster_size is {self.cluster_size}, too small for radius {self.radius}: no crossing out of sight joins the lanes "
                    f"in {_ATTEMPTS} draws; raise cluster_size, lower radius or change seed"
                )
        return drawn

    # ---- the graph ----------------------------------------------------------------------------------------------

    def concept(self, p: Sequence[int] | NDArray[np.integer] | str) -> NDArray[np.int64]:
        """(K,) the hidden bits as integers, from a sequence or a text such as "1011"; `InputError` if they are not K bits."""
        text = "".join(map(str, np.asarray(p).tolist())) if not isinstance(p, str) else p
        if len(text) != self.n_units or set(text) - {"0", "1"}:
            raise InputError(f"concept is {text!r}; it has one bit, 0 or 1, for each of {self.n_units} units")
        return np.array(list(text), dtype=np.int64)

    def random_concept(self) -> NDArray[np.int64]:
        """(K,) hidden bits drawn from the seed."""
        return np.random.default_rng([self.seed, self.radius, self.n_units]).integers(2, size=self.n_units)

    def graph(self, p: Sequence[int] | NDArray[np.integer] | str) -> MetastableGraph:
        """The graph of concept p: K + Σ p_k + 1 clusters.

        The probabilities of all rows within ρ of the ports are equal for all p, to the last bit. `with_epsilon` moves hard
        steps only, e_k with p_k = 0 is none: for another ε build `LiftedUnits` anew.
        """
        bits, m, units = self.concept(p), self.cluster_size, np.arange(self.n_units)
        lanes = 2 * np.arange(self.n_units)
        lifts = [_lift(self.base, self.crossings[k] & (bits[k] == 0), m) + lanes[k] * m for k in units]
        pairs = np.concatenate([*lifts, self.base + self.goal])
        source, head = np.concatenate([pairs, pairs[:, ::-1]]).T
        value = np.full(len(source), 1.0 / _DEGREE)

        returns = np.stack([self.state(units, 1, UP), self.state(units, 0, ENTRY)], axis=1)
        onward = np.stack([self.state(units, 0, SIDE), self.state(units + 1, 0, ENTRY)], axis=1)
        inner = np.concatenate([self.detours[bits == 0], returns[bits == 0]])
        hard = np.concatenate([self.detours[bits == 1], returns[bits == 1], onward, [[self.goal + SIDE, self.start]]])
        value[np.isin(source, inner[:, 0])] *= 1.0 - self.epsilon  # as MetastableGraph scales the row of a hard step
        dense = (
            np.concatenate([source, inner[:, 0]]),
            np.concatenate([head, inner[:, 1]]),
            np.concatenate([value, np.full(len(inner), self.epsilon)]),
        )
        first = np.concatenate([[0], np.cumsum(1 + bits)])  # the cluster of lane 0 of each unit, and of the goal
        labels = np.append(np.stack([first[:-1], first[:-1] + bits], axis=1), first[-1])
        return MetastableGraph.from_edges(
            dense, (hard[:, 0], hard[:, 1], np.ones(len(hard))), np.repeat(labels, m), self.epsilon, self.names
        )


def _distances(edges: NDArray[np.int64], size: int, sources: Sequence[int]) -> NDArray[np.float64]:
    """(size,) steps from the nearest of `sources` along undirected edges."""
    graph = sp.csr_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(size, size))
    return shortest_path(graph, directed=False, unweighted=True, indices=list(sources)).min(axis=0)


def _out_of_sight(edges: NDArray[np.int64], size: int, radius: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Edges with both ends farther than `radius` from all ports, and those of them that reach radius + 1 of a or s."""
    port, visited = _distances(edges, size, (ENTRY, UP, SIDE)), _distances(edges, size, (ENTRY, SIDE))
    hidden = np.minimum(port[edges[:, 0]], port[edges[:, 1]]) > radius
    return hidden, hidden & (visited[edges] == radius + 1).any(axis=1)


def _lift(edges: NDArray[np.int64], crossed: NDArray[np.bool_], size: int) -> NDArray[np.int64]:
    """(2n, 2) edges of the 2-lift: vertex v of lane l is v + l·size."""
    lanes = []
    for lane in (0, 1):
        other = np.where(crossed, 1 - lane, lane)
        lanes.append(np.stack([edges[:, 0] + lane * size, edges[:, 1] + other * size], axis=1))
    return np.concatenate(lanes)


def _mixes(edges: NDArray[np.int64]) -> bool:
    """Whether an undirected graph is connected and not bipartite: if and only if its double cover is connected."""
    n = int(edges.max()) + 1
    rows, columns = np.concatenate([edges, edges[:, ::-1]]).T
    cover = sp.csr_array((np.ones(len(rows)), (rows, columns + n)), shape=(2 * n, 2 * n))
    return bool(connected_components(cover, directed=False)[0] == 1)
