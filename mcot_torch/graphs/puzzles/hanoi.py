"""Real puzzles as metastable graphs: the Tower of Hanoi with its large discs hard to move.

Moving a small disc is an easy step, moving one of the j largest a hard one (probability ε). A cluster is a position of
the large discs: 3^j clusters of 3^(n - j) states. No closed forms are used; `chains` gives the exact numbers.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from mcot_torch.errors import InputError
from mcot_torch.graphs.graph import MetastableGraph

__all__ = ["PEGS", "tower_of_hanoi"]

PEGS = "ABC"
_MOST_DISCS = 10


def tower_of_hanoi(n_discs: int = 5, n_hard_discs: int = 2, epsilon: float = 0.002) -> MetastableGraph:
    """The Tower of Hanoi on three pegs, state to state: 3^n legal positions.

    A position is named by the peg of each disc, smallest disc first: with 5 discs 'AAABC' has the three smallest on A,
    the second largest on B and the largest on C. State number: Σ_d peg(d)·3^d with d = 0 the smallest disc, so that
    the cluster (position of the j largest) is the number divided by 3^(n - j).

    The easy walk is uniform over the legal moves of the n - j small discs (two of them where these all stand on one peg,
    else three; its law is proportional to the degree). A position has at most one legal move of a large disc: hard, weight 1.

    Args:
        n_discs: n, 2 .. 10.
        n_hard_discs: j, 1 .. n - 1.
        epsilon: ε, probability a step of the legal move of a large disc.

    Raises:
        InputError: n or j out of range; the message begins with the argument's name.
    """
    n, j = n_discs, n_hard_discs
    if not 2 <= n <= _MOST_DISCS:
        raise InputError(f"n_discs is {n}; it must lie in 2 .. {_MOST_DISCS} (3^n states)")
    if not 1 <= j < n:
        raise InputError(
            f"n_hard_discs is {j}; with n_discs {n} it must lie in 1 .. {n - 1}, so that easy moves remain"
        )
    positions = np.array(list(product(range(3), repeat=n)), dtype=np.int64)[:, ::-1]  # (3^n, n), smallest disc first
    tops = np.full((len(positions), 3), n)  # smallest disc on each peg, n if it is empty
    for disc in range(n - 1, -1, -1):
        tops[np.arange(len(positions)), positions[:, disc]] = disc
    states = np.arange(len(positions))
    sources, targets, moved = [], [], []
    for a, b in product(range(3), repeat=2):
        if a != b:
            legal = tops[:, a] < tops[:, b]
            moved.append(tops[legal, a])
            sources.append(states[legal])
            targets.append(states[legal] + (b - a) * 3 ** moved[-1])
    source, target = np.concatenate(sources), np.concatenate(targets)
    hard = np.concatenate(moved) >= n - j
    probability = 1.0 / np.bincount(source[~hard], minlength=len(states))[source[~hard]]
    return MetastableGraph.from_edges(
        (source[~hard], target[~hard], probability),
        (source[hard], target[hard], np.ones(int(hard.sum()))),
        states // 3 ** (n - j),
        epsilon,
        tuple("".join(PEGS[peg] for peg in row) for row in positions.tolist()),
    )
