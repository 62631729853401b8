"""LinearReasoner: the paper's softmax table, one row of logits a state, W^(0) = 0 (Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcot_torch.reasoners.reasoner import Reasoner

__all__ = ["LinearReasoner"]


class LinearReasoner(Reasoner, kind="linear"):
    """p̂_W(· | x) = softmax(W_x), W of shape (N, N); float64, since hard steps are told apart at 1e-12 (Prop 3.4)."""

    def __init__(self, n_states: int) -> None:
        super().__init__(n_states, window=1)
        self.logits = nn.Parameter(torch.zeros(n_states, n_states, dtype=torch.float64))

    @classmethod
    def from_kernel(cls, kernel: Tensor) -> LinearReasoner:
        """The table whose cut kernel is `kernel` (N, N): what perfect training would give; its support is where that is > 0."""
        model = cls(len(kernel))
        with torch.no_grad():
            model.logits.copy_(torch.where(kernel > 0, kernel.double().clamp_min(1e-300).log(), 0.0))
        model.support.set(kernel > 0)
        return model

    def forward(self, states: Tensor) -> Tensor:
        """Logits (B, T, N): the row of each state, whatever came before it."""
        return self.logits[states]

    def gather_logits(self, states: Tensor, after: Tensor) -> Tensor:
        """As `Reasoner.gather_logits`: entries of the table."""
        return self.logits[states[..., None], after]
