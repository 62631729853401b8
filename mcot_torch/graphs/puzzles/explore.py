"""From the rules of a puzzle to its graph: every position that can be reached, its easy and its hard moves."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import numpy as np
from scipy import sparse as sp
from scipy.sparse.csgraph import connected_components

from mcot_torch.graphs.graph import MetastableGraph

__all__ = ["explore"]

State = TypeVar("State", bound=Hashable)


def explore(
    start: State,
    easy_moves: Callable[[State], Iterable[State]],
    hard_moves: Callable[[State], Iterable[State]],
    name: Callable[[State], str],
    epsilon: float,
) -> MetastableGraph:
    """The graph of all positions that `start` leads to.

    The easy walk chooses uniformly among the easy moves of a position (one that is listed twice is twice as likely; the
    position itself is a move that changes nothing). Every different hard move has probability ε. A cluster is what easy
    moves connect; clusters are numbered as they are found from `start`, which is state 0, and hold consecutive states.

    Args:
        start: a position.
        easy_moves: positions after one easy move, at least one; these moves can be undone by others of their kind.
        hard_moves: positions after one hard move, none or more, none of them in reach of easy moves.
        name: what to call a position.
        epsilon: ε.

    Raises:
        InputError: what `MetastableGraph.validate` finds, a second cluster that is missing among it.
    """
    number: dict[State, int] = {start: 0}
    queue = [start]
    easy: list[tuple[int, int]] = []
    hard: list[tuple[int, int]] = []
    for x, position in enumerate(queue):  # the queue grows while it is read
        for edges, targets in ((easy, list(easy_moves(position))), (hard, list(dict.fromkeys(hard_moves(position))))):
            for target in targets:
                if target not in number:
                    number[target] = len(queue)
                    queue.append(target)
                edges.append((x, number[target]))
    n = len(queue)
    source, target = np.array(easy, dtype=np.int64).T
    # repeated entries of a COO array are summed: that is the multiplicity of a move
    moves = sp.csr_array(sp.coo_array((np.ones(len(easy)), (source, target)), shape=(n, n)))
    _, found = connected_components(moves, directed=True, connection="strong")
    label = {component: k for k, component in enumerate(dict.fromkeys(found.tolist()))}
    clusters = np.array([label[component] for component in found.tolist()], dtype=np.int64)
    order = np.argsort(clusters, kind="stable")
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    rows = moves.tocoo()
    tails, heads = place[np.array(hard, dtype=np.int64).reshape(-1, 2)].T
    return MetastableGraph.from_edges(
        (place[rows.row], place[rows.col], rows.data / moves.sum(axis=1)[rows.row]),
        (tails, heads, np.ones(len(tails))),
        clusters[order],
        epsilon,
        tuple(name(queue[x]) for x in order.tolist()),
    )
