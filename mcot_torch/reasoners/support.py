"""Support: which steps a reasoner may take, as a mask and as lists of successors.

Of a large graph few steps are possible, and so is the cost of their predictions once they are listed: after the cut the
algorithms ask for the logits of S listed successors instead of all N states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Policy", "Support", "entries_at", "lists_pay"]

Policy = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Change of a reasoner's predictions: (states, log_p, successors) -> new log-probabilities of the shape of `log_p`.

`states` is (B,) int64. `log_p` is float64: (B, S) for the next states in `successors` (B, S) int64, or (B, N) for all next states
where `successors` is None. An entry −∞ must stay −∞, because its step is not supported.
"""

_SHORT = 16  # lists pay where they are this many times shorter than a row of all states


def lists_pay(most: int, n_states: int) -> bool:
    """Whether successors are listed in a graph of `n_states` states whose states have at most `most` supported steps."""
    return most * _SHORT <= n_states


def entries_at(table: Tensor, states: Tensor, successors: Tensor | None) -> Tensor:
    """Entries (..., S) of an (N, N) table at (...,) states and their (..., S) next states; whole rows (..., N) for None."""
    return table[states] if successors is None else table[states[..., None], successors]


class _Lists(NamedTuple):
    """What `Support` derives from its mask."""

    complete: bool
    successors: Tensor | None  # (N, S)
    keys: Tensor | None  # (N·S,) int64, x N + y of all listed steps, ascending


class Support(nn.Module):
    """Supported steps of a reasoner over N states: a mask, and the successor lists made from the mask.

    The lists are made when they are first asked for and kept until the mask changes. Write a new mask with `set`: the lists do
    not notice a write into `mask` itself. In a state dict the mask has the name of the support, `support`, without `.mask`.

    Attributes:
        mask: (N, N) bool buffer, row = current state; all True before the cut.
    """

    mask: Tensor

    def __init__(self, n_states: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(n_states, n_states, dtype=torch.bool))
        self._lists: _Lists | None = None

    # ---- the mask -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def set(self, mask: Tensor) -> None:
        """Replace the mask by `mask` (N, N), bool or convertible, on any device; `ValueError` for another shape."""
        if mask.shape != self.mask.shape:
            raise ValueError(f"the mask has shape {tuple(mask.shape)}; the support has {tuple(self.mask.shape)}")
        self.mask.copy_(mask)
        self._lists = None

    @torch.no_grad()
    def cut(self, kernel: Tensor, threshold: float) -> int:
        """Remove the steps whose probability is below a threshold: the cut of Algorithm 1 between its two stages.

        Args:
            kernel: (N, N) probabilities of all steps.
            threshold: smallest probability that stays. The likeliest step of a row stays whatever the threshold.

        Returns:
            The number of supported steps that are left.
        """
        keep = (kernel >= threshold) & self.mask
        keep[torch.arange(len(kernel)), kernel.argmax(-1)] = True
        self.set(keep)
        return int(keep.sum())

    # ---- lists made from it -------------------------------------------------------------------------------------

    def _derived(self) -> _Lists:
        if self._lists is None:
            with torch.inference_mode(False):  # lists made in inference mode could not be used in training later
                n_states, degree = len(self.mask), self.mask.sum(-1)
                most, complete = int(degree.max()), bool((degree == n_states).all())
                successors, keys = None, None
                if lists_pay(most, n_states):
                    successors = self.mask.to(torch.uint8).topk(most).indices.sort(-1).values
                    first = torch.arange(n_states, device=successors.device)[:, None] * n_states
                    keys = (first + successors).ravel()
                self._lists = _Lists(complete, successors, keys)
        return self._lists

    @property
    def complete(self) -> bool:
        """Whether every step is supported, as before the cut."""
        return self._derived().complete

    @property
    def successors(self) -> Tensor | None:
        """Listed next states (N, S) int64 of each state, ascending; None where lists do not pay (`lists_pay`).

        S is the largest number of supported steps of a state. A state with fewer supported steps lists other steps too, so that
        all lists have length S; `allowed` tells them apart.
        """
        return self._derived().successors

    @property
    def width(self) -> int:
        """Length S of the successor lists, or N where there are no lists: the last dimension of `successor_log_probs`."""
        return len(self.mask) if self.successors is None else self.successors.shape[1]

    def successors_of(self, states: Tensor) -> Tensor | None:
        """Successor lists (..., S) int64 of (...,) int64 states, or None where there are no lists."""
        return None if self.successors is None else self.successors[states]

    def allowed(self, states: Tensor) -> Tensor | None:
        """Which of the listed steps of (...,) int64 states are supported, (..., S) bool; None where every step is."""
        return None if self.complete else self.pick(self.mask, states)

    def pick(self, table: Tensor, states: Tensor) -> Tensor:
        """Entries (..., S) of an (N, N) table at the successors of (...,) int64 states; rows (..., N) without lists."""
        return entries_at(table, states, self.successors_of(states))

    def places(self, states: Tensor, after: Tensor) -> Tensor:
        """Positions of next states in the successor lists.

        Args:
            states: (...,) int64.
            after: (...,) int64, the next state of each; both may be broadcast.

        Returns:
            (...,) int64: `successors[states, places] == after` for supported steps; any position for a step that is not listed;
            `after` itself without lists.
        """
        _, successors, keys = self._derived()
        if successors is None or keys is None:
            return after
        n_states, width = successors.shape
        return (torch.searchsorted(keys, states * n_states + after) - states * width).clamp(0, width - 1)

    # ---- as part of a module ------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Support:
        self._lists = None
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix.removesuffix(".") or "mask"] = destination.pop(f"{prefix}mask")

    def _load_from_state_dict(self, *args: Any) -> None:
        self._lists = None
        super()._load_from_state_dict(*args)
