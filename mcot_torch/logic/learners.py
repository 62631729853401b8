"""Learners of the parity task: from a path, and what they may see of the graph, to its value.

What a learner sees of the path is x, which way it went in each unit. What it sees of the graph is decided by its access
(`graph_features`): nothing, the rows on the path, those in a ball around it, or all of them. The searching learner runs Algorithm
2 and reads the hard steps off: of x it keeps the units where the path took one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mcot_torch.algorithms.search import search
from mcot_torch.graphs.families.lifts import LiftedUnits
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.scales import Scales
from mcot_torch.logic.constructions import ball, task_paths
from mcot_torch.logic.oracle import CorruptedOracle
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.training.loop import Context

__all__ = [
    "Curve",
    "PathMLP",
    "PathTransformer",
    "graph_features",
    "learn_from_oracle",
    "learn_from_samples",
    "searched_bits",
]


# ---- what a learner sees ----------------------------------------------------------------------------------------


def graph_features(units: LiftedUnits, graph: MetastableGraph, radius: float | None) -> Tensor:
    """(K, 2M) float32: for each unit and edge of H, 1 if it is seen to run parallel, -1 if to cross, 0 if out of sight.

    Args:
        units: the construction.
        graph: `units.graph(p)`.
        radius: of the ball around the task's longest path whose rows are seen; None sees no row, math.inf all of them.
    """
    told = torch.zeros(units.n_units, len(units.base))
    if radius is None:
        return told
    path = task_paths(units, torch.ones(1, units.n_units, dtype=torch.int64))
    seen = np.zeros(graph.n_states, dtype=bool)
    seen[ball(graph, path, radius)] = True
    shown = set(
        zip(graph.sources[seen[graph.sources]].tolist(), graph.indices[seen[graph.sources]].tolist(), strict=True)
    )
    for k in range(units.n_units):
        for e, (v, w) in enumerate(units.base.tolist()):
            ends = [(int(units.state(k, lane, v)), int(units.state(k, lane, w))) for lane in (0, 1)]
            twins = [(ends[0][0], ends[1][1]), (ends[1][0], ends[0][1])]
            for pairs, sign in ((ends, 1.0), (twins, -1.0)):
                if any((x, y) in shown or (y, x) in shown for x, y in pairs):
                    told[k, e] = sign
                    break  # e_k joins the lanes beside the parallel edge a u, and is no crossing of it
    return told


def searched_bits(units: LiftedUnits, reasoner: Reasoner, context: Context | None = None) -> NDArray[np.int64]:
    """(K,) p̂: 1 where Algorithm 2, walking `reasoner`, found e_k to be a hard step. Sees neither the graph nor p."""
    scales = Scales(2 * units.n_units + 1, 2 * units.cluster_size, units.epsilon, units.epsilon)
    found = set(map(tuple, search(reasoner, scales, context=context).model.edges.tolist()))
    return np.array([tuple(edge) in found for edge in units.detours.tolist()], dtype=np.int64)


# ---- models -----------------------------------------------------------------------------------------------------


class PathMLP(nn.Module):
    """(B, K) bits -> (B,) values: two hidden layers of ReLU; what is told of the graph is one constant input.

    Args:
        told: (K, 2M) from `graph_features`.
        width: of the hidden layers.
        generator: of the weights.
    """

    told: Tensor

    def __init__(self, told: Tensor, width: int = 64, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("told", told.flatten())
        self.view = nn.Linear(told.numel(), width, bias=False)
        self.layers = nn.Sequential(
            nn.Linear(len(told), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )
        _initialise(self, generator)

    def forward(self, bits: Tensor) -> Tensor:
        """(B, K) -> (B,)."""
        hidden = self.layers[0](2.0 * bits - 1.0) + self.view(self.told)
        for layer in list(self.layers)[1:]:
            hidden = layer(hidden)
        return hidden[:, 0]


class PathTransformer(nn.Module):
    """(B, K) bits -> (B,) values: a token a unit, one block of attention, the mean over tokens read out."""

    told: Tensor

    def __init__(self, told: Tensor, width: int = 16, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("told", told)
        self.view = nn.Linear(told.shape[1], width)
        self.unit = nn.Parameter(torch.empty(len(told), width))
        self.bit = nn.Parameter(torch.empty(width))
        self.attention = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.readout = nn.Linear(width, 1)
        _initialise(self, generator)

    def forward(self, bits: Tensor) -> Tensor:
        """(B, K) -> (B,)."""
        tokens = (2.0 * bits[..., None] - 1.0) * self.bit + self.unit + self.view(self.told)  # (B, K, width)
        query, key, value = self.attention(tokens).chunk(3, dim=-1)
        weights = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).softmax(-1)
        tokens = tokens + self.mix(weights @ value)
        tokens = tokens + self.layers(tokens)
        return self.readout(tokens.mean(1))[:, 0]


def _initialise(model: nn.Module, generator: torch.Generator | None) -> None:
    """He's normal weights, zero biases, and a last layer of almost zero: every learner starts near the zero predictor."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=math.sqrt(2.0 / parameter.shape[-1]), generator=generator)
        else:
            nn.init.zeros_(parameter)
    if isinstance(model, PathTransformer):
        nn.init.normal_(model.bit, generator=generator)
    for last in [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]:
        nn.init.normal_(last.weight, std=0.01, generator=generator)


# ---- learning ---------------------------------------------------------------------------------------------------


@dataclass
class Curve:
    """How a learner fared.

    Attributes:
        queries: gradients asked so far, at each look.
        loss: squared loss over all paths.
        accuracy: share of paths whose sign is right; 0 counts as wrong.
    """

    queries: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)

    def look(self, queries: int, model: Callable[[Tensor], Tensor], inputs: Tensor, target: Tensor) -> None:
        """Add a point."""
        with torch.no_grad():
            output = model(inputs)
        self.queries.append(queries)
        self.loss.append(float((output - target).square().mean()))
        self.accuracy.append(float((output * target > 0).float().mean()))

    def reached(self, accuracy: float) -> int | None:
        """Queries at the first look with at least this accuracy; None if there was none."""
        return next((n for n, a in zip(self.queries, self.accuracy, strict=True) if a >= accuracy), None)


def learn_from_oracle(
    model: nn.Module, oracle: CorruptedOracle, queries: int, rate: float = 3e-3, looks: int = 30
) -> Curve:
    """Adam on the answers of a corrupted oracle."""
    optimizer, curve = torch.optim.Adam(model.parameters(), lr=rate), Curve()
    every = max(1, queries // looks)
    for asked in range(queries + 1):
        if asked % every == 0 or asked == queries:
            curve.look(asked, model, oracle.inputs, oracle.target)
        if asked < queries:
            for parameter, gradient in zip(model.parameters(), oracle.query(model)[0], strict=True):
                parameter.grad = gradient
            optimizer.step()
    return curve


def learn_from_samples(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    steps: int,
    draw: torch.Generator,
    batch_size: int = 256,
    rate: float = 1e-3,
    optimizer: Literal["adam", "sgd"] = "adam",
    looks: int = 60,
    enough: float = 1.0,
) -> Curve:
    """Adam or SGD on the squared loss of sampled paths, until a look finds `enough` accuracy.

    Args:
        model: (B, F) -> (B,).
        inputs: (n, F), all paths.
        target: (n,) their values, ±1.
        steps: gradient queries at most.
        draw: of the samples.
        batch_size: paths a query.
        rate: learning rate.
        optimizer: which.
        looks: at all paths.
        enough: accuracy.
    """
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    climber, curve = kind(model.parameters(), lr=rate), Curve()
    every = max(1, steps // looks)
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            curve.look(step, model, inputs, target)
            if curve.accuracy[-1] >= enough:
                break
        if step < steps:
            rows = torch.randint(len(inputs), (batch_size,), generator=draw)
            climber.zero_grad()
            (model(inputs[rows]) - target[rows]).square().mean().backward()
            climber.step()
    return curve
