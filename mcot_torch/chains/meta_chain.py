"""The chain over clusters: the paper's escape kernel q*, the pair kernel q° that distillation sees, and rescaling.

Section 2 (meta-chain), Proposition 4.1 and Algorithm 4 of the paper: docs/specification.md#meta-chain,
docs/specification.md#proposition-41-distilled-kernel, docs/specification.md#algorithm-4-meta-chain-distillation.
All off-diagonal entries come without subtractions; a diagonal is what completes its row.

Not here: training a student on sampled pairs (algorithms/distill.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp

from mcot_torch.chains.elimination import Kernel, as_kernel
from mcot_torch.chains.sparse import escapes_to
from mcot_torch.chains.stationary import stationary_law
from mcot_torch.errors import InputError

if TYPE_CHECKING:
    from mcot_torch.graphs.graph import MetastableGraph

__all__ = ["cluster_laws", "meta_chain", "pair_kernel", "rescale"]

Array = NDArray[np.float64]


def _complete(off: Array) -> Array:
    """Replace the diagonal by what is missing to a row sum of 1, 0 where nothing is."""
    np.fill_diagonal(off, 0.0)
    np.fill_diagonal(off, np.maximum(1.0 - off.sum(1), 0.0))
    return off


def cluster_laws(graph: MetastableGraph) -> Array:
    """(N,) μ_k(x), the stationary law of p^0 on the cluster of each state x; sums to 1 over every cluster."""
    dense = ~graph.hard
    easy = sp.csr_array(
        (graph.weights[dense], (graph.sources[dense], graph.indices[dense])), shape=(graph.n_states, graph.n_states)
    )
    law = np.empty(graph.n_states)
    for k in range(graph.n_clusters):
        members = graph.members(k)
        law[members] = stationary_law(easy[members][:, members].toarray())
    return law


def meta_chain(graph: MetastableGraph) -> Array:
    """The meta-chain q*(C_l|C_k) = Σ_{x∈C_k} μ_k(x)² P_x(τ̄_{C_l} < τ̄_x), k ≠ l, at the graph's ε.

    μ_k is the stationary law of p^0 on C_k. Positive for every pair of clusters, with or without an edge between
    them. The paper gives no diagonal; here it is max(0, 1 - Σ_l q*(C_l|C_k)), which makes the rows laws whenever
    they can be (always for small ε; rows of clusters of one state can exceed 1, and then hold what they hold).

    Returns:
        (K, K) float64, [k, l] = q*(C_l|C_k).
    """
    weight = cluster_laws(graph) ** 2
    labels, n_clusters = graph.clusters, graph.n_clusters
    q = np.zeros((n_clusters, n_clusters))
    for cluster, escape in enumerate(escapes_to(graph.to_scipy(), labels)):
        q[:, cluster] = np.bincount(labels, weight * escape, minlength=n_clusters)
    return _complete(q)


def pair_kernel(P: Kernel, labels: NDArray[np.integer], n_clusters: int) -> Array:
    """q°(l|k) = Σ_{x∈C_k} π(x) p(x→C_l) / π(C_k), the law of the next label given this one, in equilibrium.

    What Algorithm 4 learns from pairs (ι(X_t), ι(X_{t+1})) of a long walk (Proposition 4.1).

    Args:
        P: (N, N) kernel of the teacher; the diagonal is not read.
        labels: (N,) label of each state, 0 .. n_clusters - 1.
        n_clusters: K.

    Returns:
        (K, K) float64, [k, l] = q°(l|k). Off-diagonal entries are exact, the diagonal completes the rows; the row of
        a label that no recurrent state has stays put.
    """
    P = as_kernel(P)
    labels = np.asarray(labels)
    if labels.shape != (P.shape[0],) or labels.min() < 0 or labels.max() >= n_clusters:
        raise InputError(
            f"labels of shape {labels.shape} from {labels.min()} to {labels.max()} do not fit a chain of {P.shape[0]} states "
            f"and {n_clusters} clusters; every state needs one label in 0 .. {n_clusters - 1}"
        )
    law = stationary_law(P, labels)
    member = sp.csr_array((np.ones(len(labels)), (np.arange(len(labels)), labels)), shape=(len(labels), n_clusters))
    flow = member.T @ (sp.diags_array(law) @ (sp.csr_array(P) @ member))
    mass = np.bincount(labels, law, minlength=n_clusters)
    return _complete(flow.toarray() / np.where(mass > 0, mass, 1.0)[:, None])


def rescale(q: Array, beta: float) -> Array:
    """Add β to the off-diagonal logits of a kernel q (K, K): Algorithm 4's rescaling of time.

    The odds of every hop against staying are multiplied by e^β and the row is normalised; a hop of probability 0
    stays at 0. Rows that surely hop or surely stay do not change.

    Returns:
        (K, K) float64, rows sum to 1.
    """
    q = np.asarray(q, dtype=np.float64)
    if q.ndim != 2 or q.shape[0] != q.shape[1] or not (q >= 0).all() or not np.allclose(q.sum(1), 1.0, atol=1e-6):
        raise InputError("rescale needs a square matrix of laws: entries at least 0, rows that sum to 1")
    off = ~np.eye(len(q), dtype=bool)
    # The larger of the two factors is 1, so that nothing overflows.
    scaled = np.where(off, q * np.exp(min(beta, 0.0)), q * np.exp(min(-beta, 0.0)))
    certain = (np.diagonal(q) == 0) | (q.sum(1, where=off) == 0)  # no odds to change
    scaled[certain] = q[certain]
    return scaled / scaled.sum(1, keepdims=True)
