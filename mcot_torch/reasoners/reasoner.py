"""Reasoner: a model of p̂(next state | states so far), on which all four algorithms act.

A reasoner with `window` 1 sees the current state only, the paper's setting: it has a state kernel, and its walks are
those of a table. With a longer window it has none, and `context_kernel` averages its predictions over sampled contexts.

A softmax over N states never gives an impossible step probability 0, and a leak of 1e-5 a state swamps the true escape
rate ε/M (specification, "Softmax leak", docs/specification.md#softmax-leak). So a reasoner carries a `Support`: *cut*
predictions are a softmax over the supported steps, *raw* predictions ignore the support.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mcot_torch.errors import InputError
from mcot_torch.reasoners.decoding import Decoder, UncachedDecoder
from mcot_torch.reasoners.support import Policy, Support
from mcot_torch.system.blocks import CONTEXTS, rows_at_once

__all__ = ["Reasoner", "require_window_1"]


class Reasoner(nn.Module, ABC):
    """Model of the next of N states given the last `window` states; a subclass must define `forward`, and nothing else.

    A subclass is written to and read from files under its `kind`, by default the name of the class. It may also define two
    shortcuts, `gather_logits` and `cached_decoder`. A shortcut is a faster way to numbers that `forward` gives, so a class that
    overrides `forward` alone does not inherit the shortcuts of its bases.

    Attributes:
        n_states: N.
        window: how many of the last states a prediction may depend on; 1 is the paper's setting.
        support: the steps that survived the cut; all before it.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Reasoner]]] = {}
    _shortcuts: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.kind = kind or cls.__name__
        Reasoner.kinds[cls.kind] = cls
        cls._shortcuts = frozenset(x for x in ("gather_logits", "cached_decoder") if _belongs_to_forward(cls, x))

    def __init__(self, n_states: int, window: int = 1) -> None:
        super().__init__()
        self.n_states = n_states
        self.window = window
        self.support = Support(n_states)

    @abstractmethod
    def forward(self, states: Tensor) -> Tensor:
        """Raw logits (B, T, N) of the next state after each prefix of `states` (B, T) int64, T ≤ window."""

    def gather_logits(self, states: Tensor, after: Tensor) -> Tensor:
        """Shortcut for raw logits (B, T, D) of the next states `after` (B, T, D) int64; here they are taken from `forward`.

        A model that need not compute all N logits overrides it. Callers use `logits_of`.
        """
        return self(states).gather(-1, after)

    def cached_decoder(self) -> Decoder:
        """Shortcut for walks with history; here every step reads the whole context. Callers use `decoder`."""
        return UncachedDecoder(self)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments, JSON-serialisable: by default the attributes of the same names.

        Raises:
            InputError: the reasoner has no attribute of the name of an argument.
        """
        names = inspect.signature(type(self)).parameters
        if missing := [name for name in names if not hasattr(self, name)]:
            raise InputError(
                f"{type(self).__name__} does not keep its constructor argument {missing[0]}, so that no file can hold it; "
                f"keep it as an attribute of that name, or give settings()"
            )
        return {name: getattr(self, name) for name in names}

    def check_buffers(self) -> str | None:
        """Error message about loaded buffers whose values lie outside their range, or None."""
        return None if bool(self.support.mask.any(-1).all()) else "leaves a state without any supported step"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}support" in state_dict:  # the name that `Support` saves its mask under
            state_dict[f"{prefix}support.mask"] = state_dict.pop(f"{prefix}support")
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def device(self) -> torch.device:
        """Device of the parameters and buffers."""
        return self.support.mask.device

    @property
    def n_parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    @property
    def numbers_per_context(self) -> int:
        """Numbers held for each context while its successors are predicted: blocks of contexts are sized by it."""
        return self.support.width

    # ---- predictions --------------------------------------------------------------------------------------------

    def log_probs(self, states: Tensor, cut: bool = True) -> Tensor:
        """Log-probabilities (B, T, N) of all next states after each prefix of `states` (B, T) int64.

        Args:
            states: contexts.
            cut: give unsupported steps probability 0.
        """
        allowed = self.support.mask[states] if cut and not self.support.complete else None
        return self.logits_among(states, None, allowed).log_softmax(-1)

    def successor_log_probs(self, states: Tensor) -> Tensor:
        """Log-probabilities (B, T, S) of the listed successors only, cut; columns are ordered as in `support.successors`.

        Without lists they are those of all N states.
        """
        return self.logits_among(states, self.support.successors_of(states), self.support.allowed(states)).log_softmax(
            -1
        )

    def log_probs_of(self, states: Tensor, after: Tensor | None) -> Tensor:
        """Log-probabilities (B, T, D) of some next states `after` (B, T, D) int64, cut; of all N next states for None."""
        if after is None:
            return self.log_probs(states)
        here = states[..., None]
        found = self.successor_log_probs(states).gather(-1, self.support.places(here, after))
        return torch.where(self.support.mask[here, after], found, -torch.inf)

    def logits_of(self, states: Tensor, after: Tensor) -> Tensor:
        """Raw logits (B, T, D) of some next states `after` (B, T, D) int64."""
        if "gather_logits" in self._shortcuts:
            return self.gather_logits(states, after)
        return Reasoner.gather_logits(self, states, after)

    def logits_among(self, states: Tensor, successors: Tensor | None, allowed: Tensor | None) -> Tensor:
        """Logits of some next states, −∞ where a step is not allowed: a function of tensors alone, as a compiler wants it.

        Args:
            states: (B, T) int64, contexts.
            successors: (B, T, S) int64 next states, or None for all N.
            allowed: (B, T, S) bool, or None where every step is allowed.

        Returns:
            (B, T, S), or (B, T, N) for None.
        """
        logits = self(states) if successors is None else self.logits_of(states, successors)
        return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)

    def decoder(self) -> Decoder:
        """A fresh decoder for walkers that have read nothing yet."""
        return self.cached_decoder() if "cached_decoder" in self._shortcuts else Reasoner.cached_decoder(self)

    # ---- kernels ------------------------------------------------------------------------------------------------

    def kernel(self, cut: bool = True, policy: Policy | None = None) -> Tensor:
        """Kernel p̂(y | x) (N, N) float64, changed by `policy`; `ValueError` unless the window is 1.

        >>> from mcot_torch.reasoners import LinearReasoner
        >>> LinearReasoner(2).kernel()
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
        """
        kernel = torch.empty(self.n_states, self.n_states, dtype=torch.float64, device=self.device)
        for states, rows in self.kernel_rows(cut, policy):
            kernel[states] = rows
        return kernel

    @torch.no_grad()
    def kernel_rows(self, cut: bool = True, policy: Policy | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Kernel in blocks of rows: (B,) int64 states and their (B, N) float64 predictions, changed by `policy`."""
        require_window_1(self, "kernel()")
        for block in torch.arange(self.n_states, device=self.device).split(rows_at_once(self.n_states, self.device)):
            allowed = self.support.mask[block, None] if cut and not self.support.complete else None
            logits = self.logits_among(block[:, None], None, allowed)[:, 0].double()
            yield block, logits.softmax(-1) if policy is None else policy(block, logits.log_softmax(-1), None).exp()

    @torch.no_grad()
    def context_kernel(
        self, paths: Tensor, cut: bool = True, policy: Policy | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions averaged over the contexts in `paths` that end in the same state.

        Args:
            paths: (B, T) int64, T ≤ window; every prefix is a context.
            cut: as in `log_probs`.
            policy: changes the predictions, as it does in `walker`.

        Returns:
            kernel (N, N) float64, zero on rows without a context; visits (N,) float64, contexts that end in each state;
            spread (N,) float64, mean total variation between a context's prediction and the row's average.
        """
        total = torch.zeros(self.n_states, self.n_states, dtype=torch.float64, device=self.device)
        visits = torch.zeros(self.n_states, dtype=torch.float64, device=self.device)
        spread = torch.zeros_like(visits)

        def predictions() -> Iterator[tuple[Tensor, Tensor]]:
            for block in paths.to(self.device).split(CONTEXTS):
                log_p = self.log_probs(block, cut).double().flatten(0, 1)
                yield block.reshape(-1), (policy(block.reshape(-1), log_p, None) if policy else log_p).exp()

        for states, p in predictions():
            total.index_add_(0, states, p)
            visits += torch.bincount(states, minlength=self.n_states)
        kernel = total / visits.clamp_min(1)[:, None]
        for states, p in predictions():
            spread.index_add_(0, states, (p - kernel[states]).abs().sum(-1) / 2)
        return kernel, visits, spread / visits.clamp_min(1)


def _belongs_to_forward(cls: type[Reasoner], shortcut: str) -> bool:
    """Whether `shortcut` is defined beside or below the `forward` of `cls` in the class hierarchy."""
    for base in cls.__mro__:
        if shortcut in vars(base):
            return True
        if "forward" in vars(base):
            return False
    return False


def require_window_1(reasoner: Reasoner, what: str) -> None:
    """Raise `ValueError`, which names `what` was asked for, unless the window is 1."""
    if reasoner.window != 1:
        raise ValueError(
            f"{what} needs window 1, and this reasoner has window {reasoner.window}: its next step depends on history; "
            f"use context_kernel(paths) for predictions averaged over contexts"
        )
