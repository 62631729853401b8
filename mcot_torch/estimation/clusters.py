"""Clusters from counts: how many (the gap in the spectrum) and which states (the leading eigenvectors of C + Cᵀ).

A cut at a fixed gap in log-probability fails on sampled counts; the leading eigenvectors of C + Cᵀ are right from about
100 visits a state (docs/specification.md#clusters-from-a-kernel-or-from-counts). They belong to the reversible chain
with flows C + Cᵀ; on clusters joined by rare steps those of the slow processes are nearly constant on each cluster, so
that the states lie at the corners of a simplex (Weber and Galliat 2002, Deuflhard and Weber 2005).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp
from scipy.sparse.linalg import eigsh

from mcot_torch.errors import InputError

__all__ = ["METASTABLE", "Spectrum", "number_of_clusters", "pcca_clusters", "simplex_clusters", "spectrum"]

METASTABLE = 6.0
"""[ours] Least ratio of relaxation rates at the gap. Walks without any barrier have less: a line or a ring 4, the Tower of
Hanoi with all moves easy 5."""
_MOST_CLUSTERS = 100
_DENSE = 500  # states up to which all eigenvalues are found
_SHIFT = 1e-6
_LLOYD = 50

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The slow end of the spectrum of the reversible chain with flows C + Cᵀ.

    Attributes:
        rates: (n,) float64, 1 - λ, ascending; the first is 0, the others positive.
        vectors: (N, n) float64, right eigenvectors, normalised in the stationary law, the first constant.
    """

    rates: Array
    vectors: Array


def spectrum(counts: sp.csr_array, most: int = _MOST_CLUSTERS + 1) -> Spectrum:
    """The `most` algebraically largest eigenvalues (never by modulus: a bipartite cluster has one near -1)."""
    flow = sp.csr_array(counts + counts.T)
    mass = flow.sum(axis=1)
    n, root = len(mass), np.sqrt(mass)
    most = min(most, n)
    scaled = sp.csr_array(sp.diags_array(1 / root) @ flow @ sp.diags_array(1 / root))
    if n <= _DENSE:
        values, vectors = np.linalg.eigh(scaled.toarray())
        values, vectors = values[::-1][:most], vectors[:, ::-1][:, :most]
    else:
        # shift-invert just above 1: near-degenerate slow modes converge, and the largest come first
        values, vectors = eigsh(sp.csc_array(scaled), k=most, sigma=1 + _SHIFT, which="LM", v0=root)
        order = values.argsort()[::-1]
        values, vectors = values[order], vectors[:, order]
    right = vectors / root[:, None] * np.sqrt(mass.sum())
    return Spectrum(np.maximum(1.0 - values, 0.0), right)


def number_of_clusters(rates: Array, n_states: int) -> tuple[int, float]:
    """(K >= 2, ratio): the widest gap between neighbouring rates, ratio = (K + 1)-th rate / K-th rate.

    A cluster has two states at least, on average. A chain too small to have such a gap has K = 2 and ratio 1.
    """
    # rates below this are rounding errors of 1 - λ
    slow = np.maximum(rates[1:], 1e-12)
    ratios = (slow[1:] / slow[:-1])[: max(n_states // 2 - 1, 0)]
    if len(ratios) == 0:
        return 2, 1.0
    return int(ratios.argmax()) + 2, float(ratios.max())


def simplex_clusters(vectors: Array, mass: Array, n_clusters: int) -> NDArray[np.int64]:
    """(N,) cluster of each state, 0 .. K - 1, by first state.

    The corners of the simplex are found one after the other as the state farthest from the span of those before; then
    k-means from there, states weighted by `mass`.

    Args:
        vectors: (N, >= K) right eigenvectors.
        mass: (N,) visits.
        n_clusters: K.
    """
    points = vectors[:, :n_clusters]
    rest = points - points[np.linalg.norm(points, axis=1).argmax()]
    corners = [int(np.linalg.norm(points, axis=1).argmax())]
    for _ in range(1, n_clusters):
        length = np.linalg.norm(rest, axis=1)
        corners.append(int(length.argmax()))
        direction = rest[corners[-1]] / length.max()
        rest = rest - np.outer(rest @ direction, direction)
    centres = points[corners]
    for _ in range(_LLOYD):
        distance = ((points[:, None, :] - centres[None]) ** 2).sum(-1)
        labels = distance.argmin(1)
        weight = np.bincount(labels, mass, minlength=n_clusters)
        sums = np.stack([np.bincount(labels, mass * p, minlength=n_clusters) for p in points.T], axis=1)
        moved = np.where(weight[:, None] > 0, sums / np.maximum(weight, 1e-300)[:, None], centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return _by_first_state(labels)


def pcca_clusters(counts: sp.csr_array, n_clusters: int) -> NDArray[np.int64]:
    """(N,) the same by PCCA+ of deeptime, on the reversible chain with flows C + Cᵀ.

    Raises:
        InputError: deeptime is not installed, or finds no such clusters.
    """
    try:
        from deeptime.markov import pcca
    except ImportError:
        raise InputError('PCCA+ needs deeptime: pip install "mcot_torch[traces]"') from None
    flow = (counts + counts.T).toarray()
    mass = flow.sum(1)
    try:
        found = pcca(flow / mass[:, None], n_clusters, stationary_distribution=mass / mass.sum())
    except ValueError as error:
        raise InputError(f"PCCA+ finds no {n_clusters} clusters ({error}); leave the method at spectral") from None
    return _by_first_state(np.asarray(found.assignments))


def _by_first_state(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    number = {label: k for k, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([number[label] for label in labels.tolist()], dtype=np.int64)
