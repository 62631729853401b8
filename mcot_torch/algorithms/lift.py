"""Lifting: a student's path of clusters becomes a valid path of states, carried out by the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from mcot_torch.algorithms.prm import PRM, avoid
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.student import Student
from mcot_torch.reasoners.walks import walker

__all__ = ["lift"]


@torch.no_grad()
def lift(
    student: Student,
    teacher: Reasoner,
    prm: PRM,
    start: Tensor,
    target: Tensor,
    draw: torch.Generator,
    max_steps: int = 1_000_000,
) -> tuple[Tensor, Tensor]:
    """Turn paths of clusters into paths of states.

    The student hops from the cluster of X_in to that of X_out. Each hop k → l is carried out by the teacher: it walks
    inside cluster k, hard steps cut, until it stands at the source of a known hard step into l, and takes it. In the
    last cluster it walks on to X_out.

    Args:
        student: gives the hops.
        teacher: walks.
        prm: the known hard steps.
        start: (W,) int64 states X_in.
        target: (N,) bool, X_out.
        draw: generator on the teacher's device.
        max_steps: paths still on their way after so many steps are given up.

    Returns:
        paths (W, L) int64, -1 behind the end, and arrived (W,) bool. A hop that no known hard step can carry out ends
        its path there, not arrived.
    """
    n_walkers, device = len(start), teacher.device
    goals = _hops(student, student.labels[start], student.labels[target].unique(), draw, max_steps)  # (W, H)
    jump = torch.full((teacher.n_states, student.n_states + 1), -1, dtype=torch.int64, device=device)
    edges = prm.edges.to(device)
    jump[edges[:, 0], student.labels[edges[:, 1]]] = edges[:, 1]
    can_leave = torch.zeros(student.n_states, student.n_states + 1, dtype=torch.bool, device=device)
    can_leave[student.labels[edges[:, 0]], student.labels[edges[:, 1]]] = True
    can_leave[:, -1] = True  # the last column means: no hop left

    walkers = walker(teacher, start, draw, avoid(edges, teacher))
    alive = torch.arange(n_walkers, device=device)
    at = torch.zeros(n_walkers, dtype=torch.int64, device=device)  # next goal of each walker
    arrived = torch.zeros(n_walkers, dtype=torch.bool, device=device)
    columns = [start.to(device)]
    for _ in range(max_steps):
        goal = goals[alive, at[alive]]
        there = (goal == student.n_states) & target[walkers.states]
        arrived[alive[there]] = True
        going = ~there & can_leave[student.labels[walkers.states], goal]
        alive = alive[going]
        if not len(alive):
            break
        walkers.keep(going)
        head = jump[walkers.states, goal[going]]
        walkers.advance(1)
        walkers.replace(torch.where(head >= 0, head, walkers.states))
        at[alive] += (head >= 0).long()
        column = torch.full((n_walkers,), -1, dtype=torch.int64, device=device)
        column[alive] = walkers.states
        columns.append(column)
    return torch.stack(columns, dim=1), arrived


def _hops(student: Student, start: Tensor, target: Tensor, draw: torch.Generator, max_hops: int) -> Tensor:
    """(W, H + 1) clusters entered one after the other until the target, stays left out; K marks the end."""
    end = student.n_states
    walkers = walker(student, start, draw)
    is_target = torch.zeros(end, dtype=torch.bool, device=start.device)
    is_target[target] = True
    sequences: list[list[int]] = [[] for _ in range(len(start))]
    alive = torch.arange(len(start), device=start.device)[~is_target[start]]
    walkers.keep(~is_target[start])
    for _ in range(max_hops):
        if not len(alive):
            break
        before = walkers.states
        entered = walkers.advance(1)[:, 0]
        moved = entered != before
        for i, cluster in zip(alive[moved].tolist(), entered[moved].tolist(), strict=True):
            sequences[i].append(cluster)
        walkers.keep(~is_target[entered])
        alive = alive[~is_target[entered]]
    length = max(map(len, sequences)) + 1
    return torch.tensor([s + [end] * (length - len(s)) for s in sequences], device=start.device)
