"""ContextWalker: walks of a reasoner that reads its own history, with cached decoding.

Contexts are those of training: a context grows from one state to `window` states; when it is full, the walker
forgets the older half and goes on. Every prediction therefore depends on at most `window` states and at positions
the model was trained on, and re-reading half a window costs as much as decoding it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mcot_torch.reasoners.transformer import Cache, TransformerReasoner

if TYPE_CHECKING:
    from mcot_torch.reasoners.reasoner import Policy, Reasoner

__all__ = ["ContextWalker"]


class ContextWalker:
    """W walkers of a reasoner with window > 1, each with its own history."""

    def __init__(
        self, reasoner: Reasoner, start: Tensor, generator: torch.Generator, policy: Policy | None = None
    ) -> None:
        self._reasoner = reasoner
        self._generator = generator
        self._policy = policy
        self._context = start.to(reasoner.device, torch.int64)[:, None]  # (W, T), T ≤ window
        self._cache: Cache | None = None

    @property
    def states(self) -> Tensor:
        """(W,) int64."""
        return self._context[:, -1]

    def _logits(self, listed: Tensor | None) -> Tensor:
        """(W, S) logits of `listed` (W, S), or of all states, after the whole context; reads only what the cache has not."""
        model: Any = self._reasoner
        if type(model).forward is not TransformerReasoner.forward:
            logits = model(self._context)[:, -1]
            return logits if listed is None else logits.gather(-1, listed)
        if self._cache is None:
            self._cache = Cache(model, len(self._context))
        x = model.features(self._context[:, self._cache.length :], self._cache)[:, -1:]
        return (model.head(x) if listed is None else model.head_of(x, listed[:, None]))[:, 0]

    @torch.no_grad()
    def advance(self, n_steps: int) -> Tensor:
        """Sample `n_steps` steps from the cut predictions; returns (W, n_steps) int64."""
        path = torch.empty(len(self._context), n_steps, dtype=torch.int64, device=self._context.device)
        for t in range(n_steps):
            path[:, t] = self._sample()
            self._append(path[:, t])
        return path

    def _sample(self) -> Tensor:
        states = self.states
        listed = self._reasoner.listed(states)
        logits, allowed = self._logits(listed).double(), self._reasoner.allowed(states)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        log_p = logits.log_softmax(-1)
        if self._policy is not None:
            log_p = self._policy(states, log_p, listed)
        cumulative = log_p.exp().cumsum(-1)  # (W, S)
        uniform = torch.rand(len(states), 1, dtype=torch.float64, generator=self._generator, device=states.device)
        place = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        place = place.clamp_max(cumulative.shape[1] - 1)
        return (place if listed is None else listed.gather(-1, place))[:, 0]

    def _append(self, states: Tensor) -> None:
        if self._context.shape[1] == self._reasoner.window:
            self._context = self._context[:, -(self._reasoner.window // 2) :]
            self._cache = None
        self._context = torch.cat([self._context, states[:, None]], dim=1)

    def keep(self, alive: Tensor) -> None:
        """Go on with the walkers marked in `alive` only."""
        self._context = self._context[alive]
        if self._cache is not None:
            self._cache.keep(alive)

    def replace(self, states: Tensor) -> None:
        """Overwrite the last state of every context; the cache has not read it yet."""
        self._context = torch.cat([self._context[:, :-1], states[:, None]], dim=1)
