"""Student: the distilled reasoner over clusters, q̂_{Z+} of Algorithm 4, with its time rescaled.

A Reasoner like any other, over K clusters instead of N states: it can be saved, loaded, walked and evaluated alone. It
carries what ties its clusters to the teacher's states: the label ι(x) of every state and the representatives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.reasoners.reasoner import Reasoner

__all__ = ["Student"]


class Student(Reasoner, kind="student"):
    """A model over clusters plus β on its off-diagonal logits.

    Args:
        model: predicts the next cluster, in the teacher's steps; a `Reasoner` or its settings with their "kind".
        n_teacher_states: N.

    Attributes:
        beta: () float64, log(M/ε): a hop of probability about ε/M a step becomes one of Θ(1) a hop.
        labels: (N,) int64, ι(x).
        representatives: (K,) int64, S_o, one state of each cluster.
    """

    beta: Tensor
    labels: Tensor
    representatives: Tensor

    def __init__(self, model: Reasoner | dict[str, Any], n_teacher_states: int) -> None:
        if isinstance(model, dict):
            settings = dict(model)
            model = Reasoner.kinds[settings.pop("kind")](**settings)
        super().__init__(model.n_states, model.window)
        self.model = model
        self.register_buffer("beta", torch.zeros((), dtype=torch.float64))
        self.register_buffer("labels", torch.zeros(n_teacher_states, dtype=torch.int64))
        self.register_buffer("representatives", torch.zeros(model.n_states, dtype=torch.int64))

    def forward(self, states: Tensor) -> Tensor:
        """Logits (B, T, K) of the next cluster, with β added to every cluster but the current one."""
        logits = self.model(states)
        stay = torch.nn.functional.one_hot(states, self.n_states).bool()
        return torch.where(stay, logits, logits + self.beta.to(logits.dtype))

    def check_buffers(self) -> str | None:
        """As `Reasoner.check_buffers`: every label names a cluster, and the representatives name different states."""
        k, n = self.n_states, len(self.labels)
        if k > n:
            return f"holds {k} clusters, more than the {n} states that they are made of"
        if not (0 <= int(self.labels.min()) and int(self.labels.max()) < k):
            return f"labels a state with a cluster outside 0 .. {k - 1}"
        if not (0 <= int(self.representatives.min()) and int(self.representatives.max()) < n):
            return f"names a representative outside the states 0 .. {n - 1}"
        if len(self.representatives.unique()) < k:
            return "names a representative twice"
        return super().check_buffers()

    def settings(self) -> dict[str, Any]:
        """Constructor arguments."""
        inner = {"kind": self.model.kind, **self.model.settings()}
        return {"model": inner, "n_teacher_states": len(self.labels)}

    def graph(self) -> MetastableGraph:
        """The student's own chain: K clusters of one state, each hop a hard step (window 1).

        ε is its likeliest hop; clusters bear the numbers of their representatives as names.
        """
        kernel = self.kernel().cpu().numpy()
        clusters = np.arange(self.n_states)
        source, target = np.nonzero((kernel > 0) & ~np.eye(self.n_states, dtype=bool))
        hops = kernel[source, target]
        names = tuple(str(x) for x in self.representatives.tolist())
        ones = np.ones(self.n_states)
        largest = float(hops.max(initial=0.5))
        return MetastableGraph.from_edges(
            (clusters, clusters, ones), (source, target, hops / largest), clusters, largest, names
        )
