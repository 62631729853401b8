"""Random regular graphs by the switch chain, one by one or thousands in step: the insides of clusters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp
from scipy.sparse.csgraph import connected_components

from mcot_torch.errors import InputError

__all__ = ["disjoint_union", "random_regular_edges", "regular_together", "switch"]

_SWITCHES_PER_EDGE = 10
_TOGETHER = 2**22  # possible edges of the clusters that are switched at once

Drawn = TypeVar("Drawn")


def disjoint_union(pairs: NDArray[np.int64], size: int) -> sp.csr_array:
    """The graph of all clusters side by side, from (K, n_edges, 2) edges on the states 0 .. size - 1 of each."""
    one, other = (pairs + np.arange(len(pairs))[:, None, None] * size).reshape(-1, 2).T
    return sp.csr_array((np.ones(len(one)), (one, other)), shape=(len(pairs) * size, len(pairs) * size))


def random_regular_edges(n: int, degree: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n·degree / 2, 2) edges of a random simple connected regular graph, not bipartite if degree > 2.

    Switch chain: from the circulant graph, ten times the number of edges, two random edges ab, cd become ad, cb where
    that leaves the graph simple. A bipartite cluster would have period 2 and no pseudo-spectral gap (A1 fails).

    Raises:
        InputError: no such graph: degree outside 1 .. n - 1, n·degree odd, or degree 1 with n > 2.
    """
    _check_regular(n, degree)
    if degree == 1:
        return np.array([[0, 1]])
    if degree == 2:  # connected means one cycle; the switch chain would split it
        cycle = rng.permutation(n)
        return np.stack([cycle, np.roll(cycle, -1)], axis=1)
    edges = _circulant_edges(n, degree)
    while True:
        switch(edges, rng, directed=False)
        if _lead_everywhere(np.array([edges]), n)[0]:
            return np.array(edges, dtype=np.int64)


def _check_regular(n: int, degree: int) -> None:
    if not 1 <= degree <= n - 1:
        raise InputError(f"degree is {degree}; with cluster_size {n} it must lie in 1 .. {n - 1}")
    if n * degree % 2:
        raise InputError(
            f"degree is {degree} and cluster_size {n}: no regular graph has an odd number of edge ends; make one of them even"
        )
    if degree == 1 and n > 2:
        raise InputError(f"degree is 1; a cluster of {n} states with it is not connected: use 2 or more")


def _circulant_edges(n: int, degree: int) -> list[tuple[int, int]]:
    edges = [(i, (i + j) % n) for j in range(1, degree // 2 + 1) for i in range(n)]
    return edges + [(i, i + n // 2) for i in range(n // 2) if degree % 2]


def _lead_everywhere(pairs: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """(K,) whether each of the graphs (K, n_edges, 2) on `size` states is connected and not bipartite."""
    # that is so if and only if its double cover is connected
    cover = np.concatenate([pairs, pairs[..., ::-1]], axis=1) + np.array([0, size])
    labels = connected_components(disjoint_union(cover, 2 * size), directed=False)[1].reshape(len(pairs), -1)
    return (labels == labels[:, :1]).all(axis=1)


def regular_together(
    count: int, n: int, degree: int, rng: np.random.Generator, draw: Callable[[], Drawn]
) -> tuple[list[NDArray[np.int64]], list[Drawn]]:
    """`random_regular_edges`, then `draw()`, over and over, at most `count` times: the same graphs, some five times as fast.

    As many are made as fit in memory at once. A graph that must be switched again ends the list, since what is drawn after it depends on it.
    """
    _check_regular(n, degree)
    start = np.array(_circulant_edges(n, degree))
    before, picks, flips, drawn = [], [], [], []
    for _ in range(min(count, max(1, _TOGETHER // n**2))):
        before.append(rng.bit_generator.state)
        picks.append(rng.integers(len(start), size=(_SWITCHES_PER_EDGE * len(start), 2)))
        flips.append(rng.random(len(picks[-1])) < 0.5)
        drawn.append(draw())
    edges = _switch_together(start, np.array(picks), np.array(flips), n)
    fine = _lead_everywhere(edges, n)
    if fine.all():
        return list(edges), drawn
    again = int(fine.argmin())
    rng.bit_generator.state = before[again]
    return [*edges[:again], random_regular_edges(n, degree, rng)], [*drawn[:again], draw()]


def _switch_together(
    start: NDArray[np.int64], picks: NDArray[np.int64], flips: NDArray[np.bool_], n: int
) -> NDArray[np.int64]:
    """`switch` of K undirected graphs that begin with the same edges (E, 2), step by step with picks (K, steps, 2).

    Returns:
        (K, E, 2) edges.
    """
    count = len(picks)
    graph, first = np.arange(count) * n * n, np.arange(count) * len(start)
    tail, head = np.tile(start, (count, 1)).T.copy()  # (K·E,)
    pair = np.repeat(graph, len(start)) + np.minimum(tail, head) * n + np.maximum(tail, head)
    present = np.zeros(count * n * n, dtype=bool)
    present[pair] = True
    for both, flip in zip(picks.transpose(1, 2, 0) + first, flips.T.copy(), strict=True):
        i, j = both
        a, b, c, d = tail[i], head[i], tail[j], head[j]
        c, d = np.where(flip, d, c), np.where(flip, c, d)
        ad, cb = np.sort([a, d], axis=0), np.sort([c, b], axis=0)
        new, another = graph + ad[0] * n + ad[1], graph + cb[0] * n + cb[1]
        go = np.flatnonzero((a != d) & (c != b) & (i != j) & ~(present[new] | present[another]))
        i, j = i[go], j[go]
        present[pair[i]] = present[pair[j]] = False
        pair[i], pair[j] = new[go], another[go]
        present[pair[i]] = present[pair[j]] = True
        tail[i], head[i], tail[j], head[j] = *ad[:, go], *cb[:, go]
    return np.stack([tail, head], axis=1).reshape(count, -1, 2)


def switch(edges: list[tuple[int, int]], rng: np.random.Generator, directed: bool) -> None:
    """Randomise a simple (di)graph in place, keeping every degree: ab, cd -> ad, cb wherever that stays simple."""
    present = set(edges) if directed else {(min(e), max(e)) for e in edges}
    picks = rng.integers(len(edges), size=(_SWITCHES_PER_EDGE * len(edges), 2))
    flips = rng.random(len(picks)) < 0.5
    for (i, j), flip in zip(picks.tolist(), flips.tolist(), strict=True):
        (a, b), (c, d) = edges[i], edges[j]
        if flip and not directed:
            c, d = d, c
        if a == d or c == b or i == j:
            continue
        old, new = ((a, b), (c, d)), ((a, d), (c, b))
        if not directed:
            old, new = (((min(p), max(p)), (min(q), max(q))) for p, q in (old, new))
        if new[0] in present or new[1] in present:
            continue
        present.difference_update(old)
        present.update(new)
        edges[i], edges[j] = new
