"""What several experiments need: the exact reasoner, exact times, the cluster-to-cluster task."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcot_torch.chains import hitting_time
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.reasoners import LinearReasoner

__all__ = ["cluster_hitting_time", "exact_reasoner", "start_law", "synthetic"]


def synthetic(
    shape: str, n_clusters: int, cluster_size: int, epsilon: float, seed: int = 0, cluster: str = "random_regular"
) -> MetastableGraph:
    """A graph of the synthetic families; the circulant has the default jumps, the complete family 4 hard steps a source.

    The last few are kept, since one graph at many ε is what grids ask for.
    """
    return _build(shape, n_clusters, cluster_size, seed, cluster).with_epsilon(epsilon)


@lru_cache(maxsize=8)
def _build(shape: Any, n_clusters: int, cluster_size: int, seed: int, cluster: Any) -> MetastableGraph:
    d_out = 4 if shape == "complete" else 1
    return clustered_graph(n_clusters, cluster_size, 1e-3, shape=shape, cluster=cluster, d_out=d_out, seed=seed)


def start_law(graph: MetastableGraph, cluster: int = 0) -> NDArray[np.float64]:
    """(N,) X_in uniform in one cluster."""
    return (graph.clusters == cluster) / float(graph.cluster_sizes[cluster])


def cluster_hitting_time(graph: MetastableGraph) -> float:
    """Exact E[τ] in steps from C_0 to the cluster C_{K/2}, the default task with a cluster as its target."""
    target = graph.members(graph.n_clusters // 2)
    return hitting_time(graph.to_scipy(), start_law(graph), target, graph.clusters)


def exact_reasoner(graph: MetastableGraph) -> LinearReasoner:
    """The table whose cut kernel is p^ε exactly: what perfect pretraining would give."""
    return LinearReasoner.from_kernel(torch.from_numpy(graph.kernel()))
