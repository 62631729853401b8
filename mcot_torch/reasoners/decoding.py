"""Decoding: logits of the next state for walkers that take one step after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

__all__ = ["Decoder", "UncachedDecoder"]


class Decoder(Protocol):
    """Logits after contexts that grow by one state a step; it may remember what it has read (`Reasoner.decoder`).

    Between two calls of `logits` a context grows by one state, and its newest state may be replaced before it is read. A context
    that is shortened needs a fresh decoder.
    """

    def logits(self, context: Tensor, successors: Tensor | None) -> Tensor:
        """Raw logits of the next states of W walkers.

        Args:
            context: (W, T) int64, T ≤ window.
            successors: (W, S) int64 next states, or None for all N.

        Returns:
            (W, S) or (W, N).
        """

    def keep(self, alive: Tensor) -> None:
        """Continue with the walkers marked in (W,) bool `alive` only."""


class UncachedDecoder:
    """A decoder that reads the whole context at every step: right for every `forward`.

    Args:
        forward: (W, T) int64 -> (W, T, N) raw logits, as `Reasoner.forward`.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self._forward = forward

    def logits(self, context: Tensor, successors: Tensor | None) -> Tensor:
        """As `Decoder.logits`."""
        logits = self._forward(context)[:, -1]
        return logits if successors is None else logits.gather(-1, successors)

    def keep(self, alive: Tensor) -> None:
        """As `Decoder.keep`; nothing is remembered."""
