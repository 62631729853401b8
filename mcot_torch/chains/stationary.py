"""Stationary laws, stochastic complements and spectral gaps of a finite chain: exact, without subtractions.

What A1 asks of the clusters (pseudo-spectral gap, stationary law of the stochastic complement). Laws and complements
come from the elimination of Grassmann, Taksar and Heyman (1985); a gap is found as 1 / the largest eigenvalue of a
Green's function rather than as 1 - λ, so that a gap of 1e-14 keeps its digits. Kernels are dense arrays or CSR arrays
of which only the off-diagonal entries are used.

Not here: eigenvectors (estimation has those), mixing times, chains in continuous time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp
from scipy.linalg import eigvalsh
from scipy.sparse.csgraph import connected_components

from mcot_torch.chains.elimination import (
    Kernel,
    States,
    UnreachableError,
    as_kernel,
    as_labels,
    as_states,
    block,
    dense,
    gth_solve,
    implied_diagonal,
    off_diagonal,
    row_sums,
)
from mcot_torch.chains.sparse import invariant_weights, solve
from mcot_torch.errors import InputError

__all__ = ["pseudo_spectral_gap", "spectral_gap", "stationary_law", "stochastic_complement", "time_reversal"]

Array = NDArray[np.float64]
Clusters = NDArray[np.integer] | None

_STEP = 32  # states eliminated at once


# ---- stationary law ---------------------------------------------------------------------------------------------


def stationary_law(P: Kernel, clusters: Clusters = None) -> Array:
    """The law π = πP of a chain with one recurrent class: (N,) float64, 0 on transient states, sums to 1.

    Args:
        P: (N, N) kernel; the diagonal is not read.
        clusters: optional labels (N,) for the elimination in blocks.

    Raises:
        InputError: where there is more than one recurrent class, so that the law is not unique.
    """
    P = as_kernel(P, sparse=clusters is not None)
    n = P.shape[0]
    edges = off_diagonal(P)
    count, labels = connected_components(edges, directed=True, connection="strong")
    recurrent = np.arange(n)
    if count > 1:
        edges = edges.tocoo()
        leaves = np.zeros(count, dtype=bool)
        leaves[labels[edges.row[labels[edges.row] != labels[edges.col]]]] = True
        closed = np.flatnonzero(~leaves)
        if len(closed) > 1:
            x, y = (int(np.flatnonzero(labels == c)[0]) for c in closed[:2])
            raise InputError(
                f"the chain has {len(closed)} classes that are never left (states {x} and {y} lie in two of them), so that "
                "its stationary law is not unique; take one class"
            )
        recurrent = np.flatnonzero(labels == closed[0])
        P = block(P, recurrent, recurrent)
    law = np.zeros(n)
    try:
        law[recurrent] = invariant_weights(P, _gth_law, as_labels(clusters, n, recurrent))
    except UnreachableError:
        raise InputError("the probabilities are so small that their products underflow to 0; rescale them") from None
    return law / law.sum()


def _gth_law(A: Array) -> Array:
    """Stationary law of an irreducible chain from its off-diagonal entries A (n, n), which are overwritten."""
    n = len(A)
    starts = list(range(1, n, _STEP))  # state 0 is never eliminated
    returns = []
    for i in reversed(starts):
        j = min(i + _STEP, n)
        G = gth_solve(A[i:j, i:j], A[i:j, :i].sum(1), np.eye(j - i))
        returns.append(A[:i, i:j] @ G)  # (i, j - i): expected visits from each state before the next below i
        A[:i, :i] += returns[-1] @ A[i:j, :i]
    law = np.ones(n)
    for i, visits in zip(starts, reversed(returns), strict=True):
        law[i : i + visits.shape[1]] = law[:i] @ visits
        law /= law[: i + visits.shape[1]].sum()
    return law / law.sum()


# ---- the chain watched on a part, and backwards -----------------------------------------------------------------


def stochastic_complement(P: Kernel, states: States, clusters: Clusters = None) -> Array:
    """The chain watched only while in `states`, P_CC + P_CR (I - P_RR)^-1 P_RC: (n, n), `states` ascending.

    Off-diagonal entries are exact; the diagonal completes the rows to 1 and is as good as 1 minus their sum.

    Raises:
        InputError: where some state outside never comes to `states`.
    """
    P = as_kernel(P, sparse=clusters is not None)
    n = P.shape[0]
    kept = as_states(states, n, "watched")
    rest = np.setdiff1d(np.arange(n), kept)
    watched = np.array(dense(block(P, kept, kept)))
    if len(rest):
        back = dense(block(P, rest, kept))
        try:
            arrival = solve(block(P, rest, rest), back.sum(1), back, as_labels(clusters, n, rest))
        except UnreachableError:
            raise InputError(
                "some state outside never comes to the watched states; watch one of its class too"
            ) from None
        watched += block(P, kept, rest) @ arrival
    np.fill_diagonal(watched, 0.0)
    np.fill_diagonal(watched, np.maximum(1.0 - watched.sum(1), 0.0))
    return watched


def time_reversal(P: Kernel, law: Array | None = None) -> Kernel:
    """P*_xy = π_y P_yx / π_x, of the kind that P is; the diagonal is the implied one of P.

    Raises:
        InputError: where the law is 0 somewhere: there is no step back from a transient state.
    """
    P = as_kernel(P)
    pi = _positive_law(P, law)
    if sp.issparse(P):
        edges = off_diagonal(P)
        stay = implied_diagonal(row_sums(edges))
        return sp.csr_array(sp.diags_array(1.0 / pi) @ (edges.T @ sp.diags_array(pi)) + sp.diags_array(stay))
    filled, stay = _filled(P)
    reverse = filled.T * pi / pi[:, None]
    np.fill_diagonal(reverse, stay)
    return reverse


def _positive_law(P: Kernel, law: Array | None) -> Array:
    pi = stationary_law(P) if law is None else np.asarray(law, dtype=np.float64)
    if pi.shape != (P.shape[0],) or not (pi > 0).all():
        raise InputError(
            "the stationary law must be positive, one entry a state; restrict the chain to its recurrent class"
        )
    return pi


def _filled(P: Kernel) -> tuple[Array, Array]:
    """P as a dense copy with its implied diagonal, and that diagonal."""
    filled = np.array(dense(P))
    np.fill_diagonal(filled, 0.0)
    stay = implied_diagonal(filled.sum(1))
    np.fill_diagonal(filled, stay)
    return filled, stay


# ---- gaps -------------------------------------------------------------------------------------------------------


def spectral_gap(P: Kernel, law: Array | None = None) -> float:
    """γ(P) = 1 - λ_2 of the reversible part (P + P*)/2, λ_2 its algebraically second largest eigenvalue.

    For a reversible chain that is its own gap. A single state has gap 1, a chain in separate pieces gap 0. The gap
    is 1 / the largest eigenvalue of the Green's function with the stationary mode removed, so its relative error is
    near 1e-14 whatever its size; an eigenvalue near -1 plays no part (specification, "Spectra",
    docs/specification.md#spectra). N³ operations.

    Args:
        P: (N, N) kernel; the diagonal is not read.
        law: its stationary law (N,), positive; found where it is not given.
    """
    P = as_kernel(P)
    pi = _positive_law(P, law)
    flow = pi[:, None] * dense(P)
    return _reversible_gap(0.5 * (flow + flow.T), pi)


def _reversible_gap(flow: Array, pi: Array) -> float:
    """Gap of the reversible chain with flows π_x P_xy = flow (N, N), symmetric, diagonal unused."""
    n = len(pi)
    if n == 1:
        return 1.0
    if connected_components(off_diagonal(flow), directed=False)[0] > 1:
        return 0.0
    # Green's function of the chain stopped in its likeliest state, in the coordinates f·sqrt(π): symmetric.
    stop = int(pi.argmax())
    rest = np.delete(np.arange(n), stop)
    rates = flow[np.ix_(rest, rest)] / pi[rest, None]
    root = np.sqrt(pi)
    green = np.zeros((n, n))
    try:
        green[np.ix_(rest, rest)] = gth_solve(rates, flow[rest, stop] / pi[rest], np.eye(n - 1))
    except UnreachableError:
        return 0.0
    green *= root[:, None] / root
    green = 0.5 * (green + green.T)
    # Project the stationary mode out on both sides: what is left has the eigenvalues 1/(1 - λ).
    mode = root / np.linalg.norm(root)
    image = green @ mode
    green -= np.outer(mode, image) + np.outer(image, mode) - (mode @ image) * np.outer(mode, mode)
    return float(1.0 / eigvalsh(green, subset_by_index=[n - 1, n - 1])[0])


def pseudo_spectral_gap(P: Kernel, law: Array | None = None, max_power: int = 64) -> float:
    """γ†(P) = max over j ≥ 1 of γ((P*)^j P^j) / j (Paulin 2015; assumption A1).

    A gap is at most 1, so the search ends at the first j with 1/j below the best value; that is the exact maximum.
    Where it reaches `max_power` first, the value is a lower bound (and within 1/max_power of the maximum).

    Args:
        P: (N, N) kernel; the diagonal is not read.
        law: its stationary law (N,), positive; found where it is not given.
        max_power: largest j that is tried.
    """
    P = as_kernel(P)
    pi = _positive_law(P, law)
    if max_power < 1:
        raise InputError(f"max_power is {max_power}; it counts powers of the kernel and must be at least 1")
    step, _ = _filled(P)
    power, best = step, 0.0
    for j in range(1, max_power + 1):
        if 1.0 / j <= best:
            break
        if j > 1:
            power = power @ step
        # π (P*)^j P^j, as a flow: Σ_z π_z P^j(z, x) P^j(z, y)
        best = max(best, _reversible_gap(power.T @ (pi[:, None] * power), pi) / j)
    return best
