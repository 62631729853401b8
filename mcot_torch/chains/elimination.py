"""Elimination without subtractions: every linear system of this package is solved here.

Grassmann, Taksar and Heyman (1985): when a state is eliminated from a Markov chain, its pivot is the sum of what
leaves it, never 1 minus what stays. Products and sums of non-negative numbers are all that happens, so the relative
error stays near the unit roundoff however rarely the chain moves (specification, "Elimination
without subtractions", docs/specification.md#elimination-without-subtractions). `gth_solve` does it on a stack
of dense blocks, recursively, so that most of the work is matrix products. Sparse chains are taken apart in
layers.py and sparse.py.

Not here: what the solutions mean (hitting.py, stationary.py), and anything that needs the diagonal of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse as sp
from scipy.sparse.csgraph import breadth_first_order

from mcot_torch.errors import InputError

__all__ = [
    "Kernel",
    "States",
    "UnreachableError",
    "as_kernel",
    "as_labels",
    "as_law",
    "as_states",
    "block",
    "dense",
    "gth_solve",
    "implied_diagonal",
    "off_diagonal",
    "reachable",
    "row_sums",
]

Array: TypeAlias = NDArray[np.float64]
Kernel: TypeAlias = "NDArray[np.float64] | sp.csr_array"
States: TypeAlias = "int | Sequence[int] | NDArray[np.integer] | NDArray[np.bool_]"

_LEAF = 24  # below this many states the loop over single states beats the recursion
_ROW_SUM_TOLERANCE = 1e-9


class UnreachableError(Exception):
    """A pivot is zero: some state never leaves the states that are being eliminated."""


# ---- arguments --------------------------------------------------------------------------------------------------


def as_kernel(P: Kernel, sparse: bool = False) -> Kernel:
    """P as a float64 array or a canonical CSR array; `InputError` unless it is square, finite and non-negative.

    With `sparse` the answer is always CSR, in which elimination by clusters finds its edges sooner.
    """
    kernel: Kernel
    if sparse or sp.issparse(P):
        kernel = sp.csr_array(P, dtype=np.float64)
        if not kernel.has_canonical_format:
            kernel = kernel.copy()
            kernel.sum_duplicates()
        values = kernel.data
    else:
        values = kernel = np.asarray(P, dtype=np.float64)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] == 0:
        raise InputError(f"a kernel is a square matrix, one row a state; this one has shape {tuple(kernel.shape)}")
    if not (values.min(initial=0.0) >= 0.0 and values.max(initial=0.0) < np.inf):
        raise InputError("the kernel holds a negative or non-finite entry; probabilities are finite and at least 0")
    return kernel


def as_states(states: States, n_states: int, what: str = "target") -> NDArray[np.int64]:
    """A state, a list of states or a mask, as a sorted array of distinct indices; `InputError` if empty or outside."""
    array = np.asarray(states)
    if array.dtype == np.bool_:
        if array.shape != (n_states,):
            raise InputError(f"the {what} mask has shape {array.shape}; the chain has {n_states} states")
        array = np.flatnonzero(array)
    if array.size == 0:
        raise InputError(f"the {what} set is empty; name at least one state")
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"the {what} set has dtype {array.dtype}; states are integers or a mask of booleans")
    index = np.unique(array.ravel().astype(np.int64))
    if index[0] < 0 or index[-1] >= n_states:
        wrong = index[0] if index[0] < 0 else index[-1]
        raise InputError(f"the {what} state {wrong} lies outside the states 0 .. {n_states - 1}")
    return index


def as_labels(
    clusters: NDArray[np.integer] | None, n_states: int, kept: NDArray[np.int64]
) -> NDArray[np.integer] | None:
    """The labels of the states `kept`, None where there are none; `InputError` unless there is one for each state."""
    if clusters is None:
        return None
    if np.shape(clusters) != (n_states,):
        raise InputError(f"the cluster labels have shape {np.shape(clusters)}; the chain has {n_states} states")
    return np.asarray(clusters)[kept]


def as_law(start: ArrayLike, n_states: int) -> Array:
    """A law (N,) as float64, or the point mass of an integer state; `InputError` unless it is a probability vector."""
    law = np.asarray(start)
    if law.ndim == 0 and np.issubdtype(law.dtype, np.integer):
        point = np.zeros(n_states)
        point[as_states(int(law), n_states, "start")] = 1.0
        return point
    law = law.astype(np.float64)
    if law.shape != (n_states,):
        raise InputError(f"the start law has shape {law.shape}; the chain has {n_states} states")
    if not (law >= 0).all() or not abs(law.sum() - 1.0) <= _ROW_SUM_TOLERANCE:
        raise InputError(f"the start law sums to {law.sum():.9g} (smallest entry {law.min():.3g}); it must be a law")
    return law


# ---- dense and sparse alike -------------------------------------------------------------------------------------


def block(P: Kernel, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Kernel:
    """P[rows, columns], of the kind that P is."""
    return P[rows][:, columns] if sp.issparse(P) else P[np.ix_(rows, columns)]


def dense(P: Kernel) -> Array:
    """P as an array, itself where it is one."""
    return P if isinstance(P, np.ndarray) else P.toarray()


def row_sums(P: Kernel) -> Array:
    """(rows,) sums over the columns."""
    return np.asarray(P.sum(axis=1), dtype=np.float64).ravel()


def off_diagonal(P: Kernel) -> sp.csr_array:
    """P without its diagonal and without stored zeros, as CSR."""
    edges = sp.coo_array(P)
    keep = (edges.row != edges.col) & (edges.data != 0)
    return sp.csr_array((edges.data[keep], (edges.row[keep], edges.col[keep])), shape=P.shape)


def implied_diagonal(outflow: Array) -> Array:
    """(N,) 1 - outflow, where a remainder that is rounding is 0; only for what cannot lose digits by it.

    Raises:
        InputError: where a row sums to more than 1.
    """
    if outflow.max(initial=0.0) > 1.0 + _ROW_SUM_TOLERANCE:
        x = int(outflow.argmax())
        raise InputError(f"the off-diagonal entries of row {x} sum to {outflow[x]:.12g}; a row sums to at most 1")
    stay = 1.0 - outflow
    return np.where(stay < 1e-14, 0.0, stay)


def reachable(P: Kernel, states: NDArray[np.int64], backwards: bool = False) -> NDArray[np.bool_]:
    """(N,) mask of the states that `states` lead to, themselves included; `backwards`: that lead to `states`."""
    edges = off_diagonal(P).tocoo()
    tail, head = (edges.col, edges.row) if backwards else (edges.row, edges.col)
    n = P.shape[0]
    tail = np.concatenate([tail, np.full(len(states), n)])  # state n stands for all of `states`
    head = np.concatenate([head, states])
    graph = sp.csr_array((np.ones(len(tail)), (tail, head)), shape=(n + 1, n + 1))
    seen = np.zeros(n + 1, dtype=bool)
    seen[breadth_first_order(graph, n, return_predecessors=False)] = True
    return seen[:n]


# ---- dense blocks -----------------------------------------------------------------------------------------------


def gth_solve(A: Array, exits: Array, R: Array) -> Array:
    """Solve (D - A) X = R without subtractions, D the diagonal matrix of the outflow exits_i + Σ_{j≠i} A_ij.

    Args:
        A: (..., n, n) off-diagonal rates, at least 0; the diagonal is ignored.
        exits: (..., n) rate out of the n states.
        R: (..., n, r) right-hand sides, at least 0.

    Returns:
        X (..., n, r), each entry to a relative error near the unit roundoff.

    Raises:
        UnreachableError: where some state has no way out.

    Source: Grassmann, Taksar and Heyman, Operations Research 33 (1985), with halves in place of single states.
    """
    n = R.shape[-2]
    if n == 0:
        return np.zeros_like(R)
    if n <= _LEAF:
        return _gth_leaf(A, exits, R)
    h = n // 2
    down, low = A[..., h:, :h], exits[..., h:]
    # Where the second half goes (first half, out) and what it collects on the way.
    W = gth_solve(
        A[..., h:, h:], low + down.sum(-1), np.concatenate([down, low[..., None], R[..., h:, :]], axis=-1)
    )  # (..., n - h, h + 1 + r)
    T = A[..., :h, h:] @ W
    first = gth_solve(A[..., :h, :h] + T[..., :h], exits[..., :h] + T[..., h], R[..., :h, :] + T[..., h + 1 :])
    second = W[..., h + 1 :] + W[..., :h] @ first
    return np.concatenate([first, second], axis=-2)


def _gth_leaf(A: Array, exits: Array, R: Array) -> Array:
    n, r = R.shape[-2:]
    if r > n:
        return _gth_leaf(A, exits, np.broadcast_to(np.eye(n), A.shape)) @ R
    T = np.concatenate([R, exits[..., None], A], axis=-1)  # (..., n, r + 1 + n)
    for k in range(n - 1, -1, -1):
        row = T[..., k, : r + 1 + k]
        outflow = row[..., r:].sum(-1, keepdims=True)
        if not (outflow > 0).all():
            raise UnreachableError
        row /= outflow
        T[..., :k, : r + 1 + k] += T[..., :k, r + 1 + k, None] * row[..., None, :]
    X = T[..., :r]
    for k in range(1, n):
        X[..., k, :] += (T[..., k, None, r + 1 : r + 1 + k] @ X[..., :k, :])[..., 0, :]
    return X
