"""Sampled steps of a policy, as transition counts or as attempts: what losses are computed from.

With window 1 the number of times that each step was taken is all that a loss which splits over steps needs, and counts are
drawn without any path. A longer window, an outcome and everything that depends on an attempt as a whole need the paths.
Both forms satisfy `Transitions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mcot_torch.sampling.datasets import count_batch

__all__ = ["Attempts", "End", "StepLists", "TransitionCounts", "Transitions"]


class StepLists(Protocol):
    """The steps that a policy lists for each state, see `reasoners.Support`: S of them, or all N."""

    @property
    def width(self) -> int:
        """S, or N where all next states are listed."""

    def places(self, states: Tensor, after: Tensor) -> Tensor:
        """(...,) int64, where the steps from `states` to `after` stand in the lists."""


class Transitions(Protocol):
    """Sampled transitions in the form that a loss on steps needs."""

    def tabulate(self, lists: StepLists, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Contexts (B, T) int64, and (B, T, S) how often each listed step followed each of them."""


@dataclass(frozen=True)
class TransitionCounts:
    """How often each step was taken, over all ranks; of several ranks each tabulates its rows.

    Attributes:
        successors: (N, D) int64, next states of each state.
        counts: (N, D) float64, how often each of those steps was taken.
    """

    successors: Tensor
    counts: Tensor

    def tabulate(self, lists: StepLists, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """States (N, 1) and counts (N, 1, S); see `Transitions`."""
        n = len(self.counts)
        table = self.counts
        if lists.width == n:
            table = torch.zeros(n, n, dtype=table.dtype, device=table.device).scatter_add_(1, self.successors, table)
        states, _, counts = count_batch(table, dtype=dtype)
        return states, counts


class End(IntEnum):
    """How an attempt ended."""

    CAP = 0
    """After the largest number of steps: truncation, no termination."""
    GOAL = 1
    """In a goal state."""


@dataclass(frozen=True)
class Attempts:
    """A walks of at most L steps, each an attempt to reach a goal.

    Attributes:
        paths: (A, L + 1) int64 states, the start first. What stands behind the end of an attempt is no part of it.
        lengths: (A,) int64, steps of each attempt.
        ends: (A,) int64, an `End` each.
        rewards: (A, L) float64, reward of each step; None where no reward has been given yet.
        log_probs: (A, L) float64, log-probability of each step under the policy that sampled it; None where the loss
            computes it itself.
        problem: (A,) int64, number of the problem that each attempt tries to solve; None for a single problem.
        group: (A,) int64, number of the group whose attempts are compared with one another; None without groups.

    Examples:
        >>> paths = torch.tensor([[0, 1, 2, 0], [0, 0, 1, 1]])
        >>> attempts = Attempts.until(paths, goal=torch.tensor([False, False, True]))
        >>> attempts.lengths.tolist(), attempts.ends.tolist(), attempts.final.tolist()
        ([2, 3], [1, 0], [2, 1])
    """

    paths: Tensor
    lengths: Tensor
    ends: Tensor
    rewards: Tensor | None = None
    log_probs: Tensor | None = None
    problem: Tensor | None = None
    group: Tensor | None = None

    @classmethod
    def until(cls, paths: Tensor, goal: Tensor | None = None) -> Attempts:
        """Attempts that end at the first state marked in `goal` (N,) bool after the start, or with their path (A, L + 1)."""
        n_steps = paths.shape[1] - 1
        lengths = torch.full((len(paths),), n_steps, dtype=torch.int64, device=paths.device)
        ends = torch.full_like(lengths, End.CAP)
        if goal is not None:
            arrived = goal[paths[:, 1:]]
            lengths = torch.where(arrived.any(1), arrived.int().argmax(1) + 1, lengths)
            ends = torch.where(arrived.any(1), End.GOAL, ends)
        return cls(paths, lengths, ends)

    @property
    def states(self) -> Tensor:
        """(A, L) int64, state before each step."""
        return self.paths[:, :-1]

    @property
    def after(self) -> Tensor:
        """(A, L) int64, state after each step."""
        return self.paths[:, 1:]

    @property
    def valid(self) -> Tensor:
        """(A, L) bool, which steps belong to the attempts."""
        return torch.arange(self.paths.shape[1] - 1, device=self.paths.device) < self.lengths[:, None]

    @property
    def done(self) -> Tensor:
        """(A, L) bool, which steps end an attempt in a goal state; truncation is not among them."""
        last = torch.arange(self.paths.shape[1] - 1, device=self.paths.device) == self.lengths[:, None] - 1
        return last & (self.ends == End.GOAL)[:, None]

    @property
    def final(self) -> Tensor:
        """(A,) int64, state in which each attempt ended."""
        return self.paths.gather(1, self.lengths[:, None])[:, 0]

    def tabulate(self, lists: StepLists, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """States (A, L), every prefix of a row being a context, and counts (A, L, S); see `Transitions`."""
        counts = F.one_hot(lists.places(self.states, self.after), lists.width).to(dtype)
        return self.states, counts if bool(self.valid.all()) else counts * self.valid[..., None]
