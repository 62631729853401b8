"""LinearReasoner: the paper's softmax table, one row of logits a state, W^(0) = 0 (Algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mcot_torch.reasoners.base import Reasoner

__all__ = ["LinearReasoner"]


class LinearReasoner(Reasoner, kind="linear"):
    """p̂_W(· | x) = softmax(W_x), W of shape (N, N); float64, since hard steps are told apart at 1e-12 (Prop 3.4)."""

    def __init__(self, n_states: int) -> None:
        super().__init__(n_states, window=1)
        self.logits = nn.Parameter(torch.zeros(n_states, n_states, dtype=torch.float64))

    def forward(self, states: Tensor) -> Tensor:
        """Logits (B, T, N): the row of each state, whatever came before it."""
        return self.logits[states]

    def settings(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"n_states": self.n_states}
