"""Sparse LU of I - P with its answer proved: the fallback where elimination without subtractions fills up.

LU subtracts, so its answer is off by about u·E[τ], u the unit roundoff (specification, "Cancellation",
docs/specification.md#cancellation). Iterative refinement corrects the error as long as the factors are worth
anything, if the residual is formed from off-diagonal entries and exits only. Whether it did is not guessed:
D - A is an M-matrix, its inverse is non-negative, so any z ≥ 0 with (D - A) z ≥ |residual| bounds the error of
every entry. An answer without such a proof is not given.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp
from scipy.sparse.linalg import splu

from mcot_torch.chains.elimination import Array, row_sums

__all__ = ["refined_solve"]

Long = NDArray[np.longdouble]

_TOLERANCE = 1e-13  # proved relative error of every entry
_MOST_STEPS = 12
_SLACK = 1e-15  # of what flows through a state, the backward error of a solve with the factors


def refined_solve(A: sp.csr_array, exits: Array, R: Array) -> Array | None:
    """Solve (D - A) X = R by sparse LU with refinement, D the diagonal of the outflow exits_i + Σ_{j≠i} A_ij.

    Args:
        A: (n, n) CSR, off-diagonal rates, at least 0.
        exits: (n,) rate out of the n states.
        R: (n, r) right-hand sides, at least 0.

    Returns:
        X (n, r), each entry proved to a relative error of 1e-13; None where that is out of reach (from E[τ] ≈ 1e15 on).
    """
    outflow = row_sums(A) + exits
    try:
        factors = splu(
            sp.csc_array(sp.diags_array(outflow) - A),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
    except (RuntimeError, MemoryError):  # singular to working precision; too full
        return None
    high, low = factors.solve(R).astype(np.longdouble), np.zeros(R.shape, dtype=np.longdouble)
    before = np.inf
    for _ in range(_MOST_STEPS):
        image, noise = _image(A, exits, high, low)
        residual = R - image
        above = np.abs(residual) + noise
        proof = factors.solve(above.astype(np.float64))
        proof = factors.solve(2.0 * (above + _SLACK * outflow[:, None] * proof).astype(np.float64))  # own errors too
        if (0 <= proof).all() and (proof <= _TOLERANCE * high).all():
            reach, noise = _image(A, exits, proof.astype(np.longdouble), np.zeros_like(low))
            if (reach - noise >= above).all():
                return high.astype(np.float64)
        step = factors.solve(residual.astype(np.float64)).astype(np.longdouble)
        size = float(np.abs(step).max(initial=0.0))
        if not size < before / 2:  # the factors are worth nothing, or rounding is all that is left
            return None
        before = size
        total = high + step
        low += step - (total - high)
        high = total
    return None


def _image(A: sp.csr_array, exits: Array, high: Long, low: Long) -> tuple[Long, Long]:
    """(D - A)(high + low), (n, r), from differences of neighbours, and a bound on its rounding errors."""
    source = np.repeat(np.arange(A.shape[0]), np.diff(A.indptr))
    flow = A.data.astype(np.longdouble)[:, None] * ((high[source] - high[A.indices]) + (low[source] - low[A.indices]))
    rows = np.flatnonzero(np.diff(A.indptr))  # reduceat has no empty sums
    image, scale = exits[:, None] * high, exits[:, None] * np.abs(high)
    image += exits[:, None] * low
    if len(rows):
        image[rows] += np.add.reduceat(flow, A.indptr[rows], axis=0)
        scale[rows] += np.add.reduceat(np.abs(flow), A.indptr[rows], axis=0)
    most = int(np.diff(A.indptr).max(initial=0)) + 8
    return image, most * np.finfo(np.longdouble).eps * scale
