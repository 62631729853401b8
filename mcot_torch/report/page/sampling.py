"""What the report samples anew: one chain of thought of each model, and the routes that teacher and student take.

A chain of thought shown is the one of median length among nine, so that a lucky one is not taken for the rule. A route
is the sequence of clusters that a walk passes, loops erased in the order in which they close (Lawler): two walks of
the same route differ only in detours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse as sp

from mcot_torch.algorithms.lift import lift
from mcot_torch.algorithms.prm import PRM
from mcot_torch.evaluation.subjects import Subject
from mcot_torch.graphs.task import Task
from mcot_torch.reasoners import Reasoner, Student
from mcot_torch.sampling.walks import StepTable, TableWalker
from mcot_torch.system.randomness import generator

__all__ = ["Routes", "Thought", "chain_of_thought", "erase_loops", "frames", "lifted_thought", "sample_routes"]

_BLOCK = 256
_WALKS = 9  # the one of median length is shown

States = NDArray[np.int64]


@dataclass(frozen=True)
class Thought:
    """One chain of thought.

    Attributes:
        states: (T + 1,) int64, start included.
        arrived: whether it reached X_out; otherwise it was given up after T steps.
    """

    states: States
    arrived: bool

    @property
    def length(self) -> int:
        """T."""
        return len(self.states) - 1


@dataclass(frozen=True)
class Routes:
    """Loop-erased routes of clusters from X_in to X_out.

    Attributes:
        counts: route -> how many walks took it.
        given_up: walks that had not arrived, left out of `counts`.
    """

    counts: Counter[tuple[int, ...]]
    given_up: int

    @property
    def n(self) -> int:
        """Walks that arrived."""
        return self.counts.total()

    def share(self, route: tuple[int, ...]) -> float:
        """Share of the walks that took a route."""
        return self.counts[route] / max(1, self.n)

    @property
    def effective(self) -> float:
        """exp of the entropy of the routes: how many equally likely ones would be as diverse."""
        p = np.array(list(self.counts.values()), dtype=np.float64) / max(1, self.n)
        return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0

    def tv(self, other: Routes) -> float:
        """Total variation between two samples of routes."""
        return sum(abs(self.share(r) - other.share(r)) for r in self.counts.keys() | other.counts.keys()) / 2


def _starts(law: NDArray[np.float64], walks: int, draw: torch.Generator) -> torch.Tensor:
    weights = torch.from_numpy(law).to(draw.device)
    return torch.multinomial(weights, walks, replacement=True, generator=draw)


def chain_of_thought(subject: Subject, seed: int, most_steps: int) -> Thought:
    """The walk of median length among nine; given up after `most_steps`, the first of them is shown as it stands."""
    draw = generator(seed, "report", "thought", subject.name, device=subject.device)
    start = _starts(subject.start, _WALKS, draw)
    is_target = subject.mask()
    walker = subject.walker(start, draw)
    blocks, hit_at, steps = [start.cpu().numpy()[:, None]], np.full(_WALKS, -1), 0
    hit_at[is_target[blocks[0][:, 0]]] = 0
    while (hit_at >= 0).sum() <= _WALKS // 2 and steps < most_steps:
        block = walker.advance(min(_BLOCK, most_steps - steps)).cpu().numpy()
        hits = is_target[block]
        new = (hit_at < 0) & hits.any(axis=1)
        hit_at[new] = steps + 1 + hits[new].argmax(axis=1)
        steps += block.shape[1]
        blocks.append(block)
    path = np.concatenate(blocks, axis=1)
    order = np.argsort(np.where(hit_at >= 0, hit_at, np.iinfo(np.int64).max), kind="stable")
    median = order[_WALKS // 2]
    if hit_at[median] < 0:
        return Thought(path[median], False)
    return Thought(path[median, : hit_at[median] + 1], True)


def lifted_thought(student: Student, teacher: Reasoner, prm: PRM, task: Task, seed: int) -> Thought | None:
    """The lifted path of median length among nine; None where none arrives."""
    draw = generator(seed, "report", "lifted", device=teacher.device)
    start = _starts(task.start, _WALKS, draw)
    target = torch.from_numpy(task.mask()).to(teacher.device)
    paths, arrived = (x.cpu().numpy() for x in lift(student, teacher, prm, start, target, draw, 100_000))
    whole = sorted((path[path >= 0] for path in paths[arrived]), key=len)
    return Thought(whole[len(whole) // 2], True) if whole else None


def erase_loops(sequence: list[int]) -> tuple[int, ...]:
    """The sequence with every loop taken out as soon as it closes."""
    route: list[int] = []
    for item in sequence:
        if item in route:
            del route[route.index(item) + 1 :]
        else:
            route.append(item)
    return tuple(route)


def sample_routes(subject: Subject, clusters: States, seed: int, walks: int, most_steps: int) -> Routes:
    """Routes of walks on a model's kernel.

    Args:
        subject: its kernel is walked on (with a longer window: the one averaged over contexts).
        clusters: (N,) the cluster of each of its states.
        seed: of the walks.
        walks: how many.
        most_steps: a walk is given up after so many.
    """
    draw = generator(seed, "report", "routes", subject.name)
    start = _starts(subject.start, walks, draw)
    walker = TableWalker(StepTable.from_scipy(sp.csr_array(subject.kernel)), start, draw)
    is_target = subject.mask()
    last = clusters[start.numpy()]
    sequences = [[int(k)] for k in last]
    alive = np.flatnonzero(~is_target[start.numpy()])
    walker.keep(torch.from_numpy(~is_target[start.numpy()]))
    last, steps = last[alive], 0
    while len(alive) and steps < most_steps:
        path = walker.advance(_BLOCK).numpy()  # (W, block)
        inside, hits = clusters[path], is_target[path]
        arrived = hits.any(axis=1)
        stop = np.where(arrived, hits.argmax(axis=1), _BLOCK)
        moved = inside != np.concatenate([last[:, None], inside[:, :-1]], axis=1)
        moved &= np.arange(_BLOCK) <= stop[:, None]
        for row, column in np.argwhere(moved):
            sequences[alive[row]].append(int(inside[row, column]))
        walker.keep(torch.from_numpy(~arrived))
        alive, last, steps = alive[~arrived], inside[~arrived, -1], steps + _BLOCK
    given_up = set(alive.tolist())
    counts = Counter(erase_loops(s) for i, s in enumerate(sequences) if i not in given_up)
    return Routes(counts, len(given_up))


def frames(states: States, clusters: States, most: int = 500, around: int = 6) -> States:
    """Times at which a long chain of thought is shown: ends, an even sample, and every change of cluster from near.

    Args:
        states: (T + 1,) the path.
        clusters: (N,) cluster of each state.
        most: of the even sample; a path up to twice as long is shown in full.
        around: steps shown before and after a change of cluster, fewer where there are many changes.
    """
    last = len(states) - 1
    if last <= 2 * most:
        return np.arange(last + 1)
    inside = clusters[states]
    changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if len(changes) > most:
        changes = changes[np.linspace(0, len(changes) - 1, most).astype(int)]
    around = min(around, max(1, most // max(1, len(changes))))
    near = (changes[:, None] + np.arange(-around, around)).ravel()
    even = np.linspace(0, last, most).astype(np.int64)
    return np.unique(np.clip(np.concatenate([near, even]), 0, last))
