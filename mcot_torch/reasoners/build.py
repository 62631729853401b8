"""ReasonerConfig: which model, how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mcot_torch.errors import InputError
from mcot_torch.reasoners.linear import LinearReasoner
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.transformer import TransformerReasoner
from mcot_torch.system.randomness import generator

__all__ = ["ReasonerConfig", "build_reasoner"]


@dataclass
class ReasonerConfig:
    """The model of p̂(next state | states so far)."""

    kind: Literal["transformer", "linear"] = "transformer"
    """ "transformer", or "linear", the paper's softmax table."""
    window: int = 1
    """States that a prediction may depend on; 1 is the paper's setting, a longer one reads history."""
    width: int = 64
    """Size of the transformer's residual stream."""
    n_layers: int = 2
    """Blocks of the transformer."""
    n_heads: int = 4
    """Attention heads."""
    tied: bool = False
    """Share the embedding with the output matrix."""


def build_reasoner(config: ReasonerConfig, n_states: int, seed: int, device: torch.device | str = "cpu") -> Reasoner:
    """A fresh model over `n_states` states, its weights drawn from `seed`; `InputError` outside a field's domain."""
    for name in ("window", "width", "n_layers", "n_heads"):
        if getattr(config, name) < 1:
            raise InputError(f"reasoner.{name} is {getattr(config, name)}; it must be at least 1")
    if config.kind == "linear":
        if config.window != 1:
            raise InputError(
                f"reasoner.window is {config.window}; the linear reasoner sees the current state only: use 1"
            )
        return LinearReasoner(n_states).to(device)
    sizes = (config.window, config.width, config.n_layers, config.n_heads, config.tied)
    model = TransformerReasoner(n_states, *sizes)
    model.reset_parameters(generator(seed, "reasoner"))
    return model.to(device)
