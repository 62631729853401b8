"""The sizes that the paper's algorithms take as known: K, M, ε, ε_max. Numbers, never labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mcot_torch.graphs.graph import MetastableGraph

__all__ = ["Scales"]


@dataclass(frozen=True)
class Scales:
    """Four numbers that set the lengths of walks and the aim of PPO.

    Attributes:
        n_clusters: K.
        cluster_size: M, states of the largest cluster.
        epsilon: ε, probability a step of a hard step of weight 1 in the base chain.
        epsilon_max: ε_max, where PPO shall raise it to.
        smallest_weight: smallest weight w of a hard step; the cut's threshold is proportional to it.
    """

    n_clusters: int
    cluster_size: int
    epsilon: float
    epsilon_max: float
    smallest_weight: float = 1.0

    @property
    def cover_steps(self) -> int:
        """⌈2.5 M ln M⌉, steps after which a walk has visited nearly all states of its cluster (T_0 of Algorithm 2)."""
        size = max(2, self.cluster_size)
        return math.ceil(2.5 * size * math.log(size))

    @classmethod
    def of(cls, graph: MetastableGraph, epsilon_max: float) -> Scales:
        """The scales of a graph."""
        return cls(
            graph.n_clusters,
            graph.cluster_size,
            graph.epsilon,
            epsilon_max,
            float(graph.weights[graph.hard].min(initial=1.0)),
        )
