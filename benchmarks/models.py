"""What several rows share: a small training loop, nanoGPT's model at equal size, a reasoner that knows its graph."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from mcot_torch.graphs import GraphConfig, MetastableGraph, build_graph
from mcot_torch.reasoners import LinearReasoner

WIDTH, LAYERS, HEADS = 64, 2, 4


def default_graph(quick: bool) -> MetastableGraph:
    """N = 320 states, or 32."""
    return build_graph(GraphConfig(n_clusters=4, cluster_size=8, epsilon=0.01) if quick else GraphConfig())


def trainer(model: nn.Module, loss: Callable[..., Tensor]) -> Callable[..., None]:
    """One optimiser step a call: Adam with β2 = .95, gradients clipped to 1, for whoever is measured."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)

    def step(*batch: Tensor) -> None:
        optimizer.zero_grad()
        loss(*batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def nanogpt(module: ModuleType, n_states: int, window: int, device: str) -> nn.Module:
    """nanoGPT's GPT with our width, layers and heads, no dropout, no biases."""
    config = module.GPTConfig(
        block_size=window, vocab_size=n_states, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, dropout=0.0, bias=False
    )
    return module.GPT(config).to(device)


def knowing(graph: MetastableGraph, device: str) -> LinearReasoner:
    """A table that has learned the graph exactly."""
    return LinearReasoner.from_kernel(torch.from_numpy(graph.kernel())).to(device)
