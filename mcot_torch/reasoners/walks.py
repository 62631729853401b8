"""Walks of a reasoner: chains of thought, sampled from its cut predictions.

A reasoner with window 1 walks on a table of its kernel. A reasoner that reads history walks with the contexts of its
training: a context grows from one state to `window` states; when it is full, the walker forgets the older half and
goes on. Every prediction therefore depends on at most `window` states and at positions the model was trained on, and
re-reading half a window costs as much as decoding it once.

All functions here work for every `Reasoner`, also for one that defines nothing but `forward`.
"""

from __future__ import annotations

import torch
from scipy import sparse as sp
from torch import Tensor

from mcot_torch.reasoners.reasoner import Reasoner, require_window_1
from mcot_torch.reasoners.support import Policy
from mcot_torch.sampling.walks import StepTable, TableWalker, Walker
from mcot_torch.system.blocks import rows_at_once

__all__ = ["ContextWalker", "Policy", "generate", "own_paths", "sparse_kernel", "step_table", "walker"]


def walker(reasoner: Reasoner, start: Tensor, generator: torch.Generator, policy: Policy | None = None) -> Walker:
    """Walkers of a reasoner, one from each start.

    Args:
        reasoner: gives the predictions, cut to its support.
        start: (W,) int64 states.
        generator: on the reasoner's device.
        policy: changes the predictions on the way.
    """
    if reasoner.window == 1:
        return TableWalker(step_table(reasoner, policy), start, generator)
    return ContextWalker(reasoner, start, generator, policy)


def generate(
    reasoner: Reasoner, start: Tensor, n_steps: int, generator: torch.Generator, policy: Policy | None = None
) -> Tensor:
    """Sample chains of thought: (W, n_steps + 1) int64 from the (W,) int64 `start` states, starts included.

    >>> import torch, mcot_torch as mt
    >>> cycle = mt.LinearReasoner.from_kernel(torch.eye(3).roll(1, 1))
    >>> generate(cycle, torch.tensor([0, 2]), 4, torch.Generator().manual_seed(0)).tolist()
    [[0, 1, 2, 0, 1], [2, 0, 1, 2, 0]]
    """
    walkers = walker(reasoner, start, generator, policy)
    return torch.cat([walkers.states[:, None], walkers.advance(n_steps)], dim=1)


def own_paths(reasoner: Reasoner, n_paths: int, draw: torch.Generator, policy: Policy | None = None) -> Tensor:
    """Sample (n_paths, window) int64 paths of a reasoner from uniform starts: every prefix of a path is a context."""
    starts = torch.randint(reasoner.n_states, (n_paths,), generator=draw, device=reasoner.device)
    return generate(reasoner, starts, reasoner.window - 1, draw, policy)


@torch.no_grad()
def step_table(reasoner: Reasoner, policy: Policy | None = None) -> StepTable:
    """Table of a reasoner's cut kernel, changed by `policy`, to walk on; `ValueError` unless the window is 1."""
    require_window_1(reasoner, "step_table()")
    support, device = reasoner.support, reasoner.device
    if support.successors is None:
        return StepTable.from_scipy(_stacked_rows(reasoner, policy), device)
    rows = []
    for x in torch.arange(reasoner.n_states, device=device).split(rows_at_once(reasoner.numbers_per_context, device)):
        contexts = x[:, None]
        logits = reasoner.logits_among(contexts, support.successors_of(contexts), support.allowed(contexts))
        log_p = logits[:, 0].double().log_softmax(-1)
        rows.append((log_p if policy is None else policy(x, log_p, support.successors[x])).exp())
    return StepTable.from_lists(support.successors, torch.cat(rows))


def sparse_kernel(reasoner: Reasoner, policy: Policy | None = None) -> sp.csr_array:
    """Cut kernel of a reasoner, changed by `policy`, as (N, N) float64 CSR: no table of all pairs is made.

    `ValueError` unless the window is 1.
    """
    if reasoner.support.successors is None:
        return _stacked_rows(reasoner, policy)
    return step_table(reasoner, policy).to_scipy()


def _stacked_rows(reasoner: Reasoner, policy: Policy | None) -> sp.csr_array:
    rows = reasoner.kernel_rows(policy=policy)
    return sp.vstack([sp.csr_array(block.cpu().numpy()) for _, block in rows], format="csr")


class ContextWalker:
    """W walkers of a reasoner with window > 1, each with its own history."""

    def __init__(
        self, reasoner: Reasoner, start: Tensor, generator: torch.Generator, policy: Policy | None = None
    ) -> None:
        self._reasoner = reasoner
        self._generator = generator
        self._policy = policy
        self._context = start.to(reasoner.device, torch.int64)[:, None]  # (W, T), T ≤ window
        self._decoder = reasoner.decoder()

    @property
    def states(self) -> Tensor:
        """Current states (W,) int64."""
        return self._context[:, -1]

    @torch.no_grad()
    def advance(self, n_steps: int) -> Tensor:
        """Sample `n_steps` steps from the cut predictions; returns (W, n_steps) int64."""
        path = torch.empty(len(self._context), n_steps, dtype=torch.int64, device=self._context.device)
        for t in range(n_steps):
            path[:, t] = self._sample()
            self._append(path[:, t])
        return path

    def _logits(self, successors: Tensor | None) -> Tensor:
        """Raw logits (W, S) of `successors` (W, S), or of all N states, after the whole context."""
        return self._decoder.logits(self._context, successors)

    def _sample(self) -> Tensor:
        states, support = self.states, self._reasoner.support
        successors, allowed = support.successors_of(states), support.allowed(states)
        logits = self._logits(successors).double()
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        log_p = logits.log_softmax(-1)
        if self._policy is not None:
            log_p = self._policy(states, log_p, successors)
        cumulative = log_p.exp().cumsum(-1)  # (W, S)
        uniform = torch.rand(len(states), 1, dtype=torch.float64, generator=self._generator, device=states.device)
        place = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        place = place.clamp_max(cumulative.shape[1] - 1)
        return (place if successors is None else successors.gather(-1, place))[:, 0]

    def _append(self, states: Tensor) -> None:
        if self._context.shape[1] == self._reasoner.window:
            self._context = self._context[:, -(self._reasoner.window // 2) :]
            self._decoder = self._reasoner.decoder()
        self._context = torch.cat([self._context, states[:, None]], dim=1)

    def keep(self, alive: Tensor) -> None:
        """Continue with the walkers marked in (W,) bool `alive` only."""
        self._context = self._context[alive]
        self._decoder.keep(alive)

    def replace(self, states: Tensor) -> None:
        """Overwrite the current states by (W,) int64 `states`; the decoder has not read the current states yet."""
        self._context = torch.cat([self._context[:, :-1], states[:, None]], dim=1)
