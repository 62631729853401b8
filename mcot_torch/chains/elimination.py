"""Elimination without subtractions: every linear system of this package is solved here.

Grassmann, Taksar and Heyman (1985): when a state is eliminated from a Markov chain, its pivot is the sum of what
leaves it, never 1 minus what stays. Products and sums of non-negative numbers are all that happens, so the relative
error stays near the unit roundoff however rarely the chain moves (THEORY section 6). `gth_solve` does it on a stack
of dense blocks, recursively, so that most of the work is matrix products; `Blocks` eliminates the inside of every
cluster at once and leaves the small chain of portals, the states at the ends of steps between clusters.

Not here: what the solutions mean (hitting.py, stationary.py), and anything that needs the diagonal of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse as sp
from scipy.sparse.csgraph import breadth_first_order

from mcot_torch.errors import InputError

__all__ = [
    "Blocks",
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
    "solve",
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


# ---- clusters at once -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blocks:
    """A kernel cut into the insides of K clusters and the portals; m, p: most inner states, portals of a cluster.

    Attributes:
        n_states: N.
        inner: (K, m) inner states of each cluster, N where there is none.
        slots: (K, p) position in `portals` of each cluster's portals, n where there is none.
        portals: (n,) states that a step between clusters leaves or enters.
        inside: (K, m, m) rates among inner states.
        outward: (K, m, p) rates from inner states to portals.
        inward: (K, p, m) rates from portals to inner states.
        among: (n, n) rates among portals, diagonal unused.
    """

    n_states: int
    inner: NDArray[np.int64]
    slots: NDArray[np.int64]
    portals: NDArray[np.int64]
    inside: Array
    outward: Array
    inward: Array
    among: Array

    @classmethod
    def cut(cls, P: Kernel, clusters: NDArray[np.integer]) -> Blocks | None:
        """Cut P by its labels (N,); None where clusters so unequal are padded beyond the size of the dense matrix."""
        n_states = P.shape[0]
        names, label = np.unique(clusters, return_inverse=True)
        edges = off_diagonal(P).tocoo()
        source, target, value = edges.row, edges.col, edges.data
        crossing = label[source] != label[target]
        portal = np.zeros(n_states, dtype=bool)
        portal[source[crossing]] = portal[target[crossing]] = True

        group = 2 * label + portal
        count = np.bincount(group, minlength=2 * len(names))
        order = np.argsort(group, kind="stable")
        rank = np.empty(n_states, dtype=np.int64)
        rank[order] = np.arange(n_states) - (np.cumsum(count) - count)[group[order]]
        m, p = int(count[0::2].max()), int(count[1::2].max())
        if len(names) * m * (m + p) > n_states * n_states:
            return None

        portals = np.flatnonzero(portal)
        position = np.full(n_states, len(portals))
        position[portals] = np.arange(len(portals))
        inner = np.full((len(names), m), n_states)
        inner[label[~portal], rank[~portal]] = np.flatnonzero(~portal)
        slots = np.full((len(names), p), len(portals))
        slots[label[portals], rank[portals]] = np.arange(len(portals))

        tail, head = portal[source], portal[target]
        inside, outward = np.zeros((len(names), m, m)), np.zeros((len(names), m, p))
        inward, among = np.zeros((len(names), p, m)), np.zeros((len(portals), len(portals)))
        for array, keep in ((inside, ~tail & ~head), (outward, ~tail & head), (inward, tail & ~head)):
            array[label[source[keep]], rank[source[keep]], rank[target[keep]]] = value[keep]
        keep = tail & head
        among[position[source[keep]], position[target[keep]]] = value[keep]
        return cls(n_states, inner, slots, portals, inside, outward, inward, among)

    def gather(self, values: Array, padding: float = 0.0) -> Array:
        """(N, ...) values of states -> (K, m, ...) of the inner states."""
        return np.concatenate([values, np.full((1, *values.shape[1:]), padding)])[self.inner]

    def by_cluster(self, values: Array) -> Array:
        """(n, ...) values of portals -> (K, p, ...), 0 where there is none."""
        return np.concatenate([values, np.zeros((1, *values.shape[1:]))])[self.slots]

    def spread(self, values: Array) -> Array:
        """(K, p, ...) values of portals -> (n, ...)."""
        out = np.zeros((len(self.portals) + 1, *values.shape[2:]))
        out[self.slots] = values
        return out[:-1]

    def assemble(self, inner: Array, portals: Array) -> Array:
        """(K, m, ...) of the inner states and (n, ...) of the portals -> (N, ...)."""
        out = np.empty((self.n_states + 1, *portals.shape[1:]))
        out[self.inner] = inner
        out[self.portals] = portals
        return out[:-1]

    def censored(self, through: Array) -> Array:
        """(n, n) rates of the chain watched on the portals, `through` (K, m, p) being exits of the insides."""
        n = len(self.portals)
        rates = np.zeros((n + 1, n + 1))
        rates[:n, :n] = self.among
        rates[self.slots[:, :, None], self.slots[:, None, :]] += self.inward @ through
        return rates[:n, :n]

    def local_green(self, exits: Array) -> tuple[Array, Array, Array]:
        """Visits to inner states before the first portal or exit, for exits (N,).

        Returns:
            visits (K, m, m); through (K, m, p), the portal reached first; into (K, p, m), visits after a portal.
        """
        visits = gth_solve(
            self.inside,
            self.gather(exits, padding=1.0) + self.outward.sum(-1),
            np.broadcast_to(np.eye(self.inside.shape[-1]), self.inside.shape),
        )
        return visits, visits @ self.outward, self.inward @ visits

    def stationary(self, law_of: Callable[[Array], Array]) -> Array:
        """(N,) stationary law of an irreducible chain, `law_of` being the solver (n, n) -> (n,) for the portals."""
        _, through, into = self.local_green(np.zeros(self.n_states))
        at_portals = law_of(self.censored(through))
        inner = self.by_cluster(at_portals)[:, None, :] @ into  # (K, 1, m)
        law = self.assemble(inner[:, 0], at_portals)
        return law / law.sum()

    def green_diagonal(self, exits: Array) -> Array:
        """(N,) G(y, y) of the chain stopped when it takes an exit (N,): expected visits to y from y, the first included."""
        visits, through, into = self.local_green(exits)
        out = exits[self.portals] + self.spread(self.inward @ (visits @ self.gather(exits)[..., None]))[:, 0]
        green = gth_solve(self.censored(through), out, np.eye(len(self.portals)))
        return self.assemble(self._inner_diagonal(green, visits, through, into), np.diagonal(green))

    def escape_to(self, cluster: int, visits: Array, through: Array, into: Array) -> Array:
        """(N,) P_y(τ̄_C < τ̄_y) for C one whole cluster of a chain without exits, 0 on C; arguments from `local_green`."""
        n = len(self.portals)
        rates = self.censored(through)
        inside = np.zeros(n + 1, dtype=bool)
        inside[self.slots[cluster]] = True
        rest = np.flatnonzero(~inside[:n])
        green = np.zeros((n, n))
        green[np.ix_(rest, rest)] = gth_solve(
            rates[np.ix_(rest, rest)], rates[np.ix_(rest, np.flatnonzero(inside[:n]))].sum(1), np.eye(len(rest))
        )
        diagonal = np.diagonal(green).copy()
        diagonal[inside[:n]] = np.inf
        inner = self._inner_diagonal(green, visits, through, into)
        inner[cluster] = np.inf
        return 1.0 / self.assemble(inner, diagonal)

    def _inner_diagonal(self, green: Array, visits: Array, through: Array, into: Array) -> Array:
        """(K, m) diagonal of visits + through · green · into, green (n, n) cut to each cluster's own portals."""
        n = len(self.portals)
        padded = np.zeros((n + 1, n + 1))
        padded[:n, :n] = green
        own = padded[self.slots[:, :, None], self.slots[:, None, :]]  # (K, p, p)
        return np.diagonal(visits, axis1=1, axis2=2) + ((through @ own) * np.swapaxes(into, 1, 2)).sum(-1)


def solve(A: Kernel, exits: Array, R: Array, clusters: NDArray[np.integer] | None = None) -> Array:
    """`gth_solve` for one chain, dense or sparse; with labels (n,) the clusters are eliminated at once.

    K·m³ operations for the clusters and n³ for the n portals in place of N³ (THEORY section 6.3).
    """
    blocks = None if clusters is None else Blocks.cut(A, clusters)
    if blocks is None:
        return gth_solve(dense(A), exits, R)
    p = blocks.slots.shape[1]
    out = blocks.gather(exits)
    W = gth_solve(
        blocks.inside,
        blocks.gather(exits, padding=1.0) + blocks.outward.sum(-1),
        np.concatenate([blocks.outward, out[..., None], blocks.gather(R)], axis=-1),
    )  # (K, m, p + 1 + r): the portal reached first, the exit, what is collected until then
    collected = blocks.spread(blocks.inward @ W[..., p:])  # (n, 1 + r)
    at_portals = gth_solve(
        blocks.censored(W[..., :p]),
        exits[blocks.portals] + collected[:, 0],
        R[blocks.portals] + collected[:, 1:],
    )
    return blocks.assemble(W[..., p + 1 :] + W[..., :p] @ blocks.by_cluster(at_portals), at_portals)
