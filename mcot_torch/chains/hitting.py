"""Hitting times, committors, escape probabilities and survival of a finite chain: exact, without subtractions.

The quantities of Theorem 3.2 (hitting times Θ̃(KM/ε)) and Proposition 2.1 (metastability). A kernel is a dense array
or a CSR array (N, N) of which only the off-diagonal entries are used: the diagonal is implied, so that no digit is
lost at any ε (specification, "Cancellation", docs/specification.md#cancellation). `clusters`, where given, are
labels (N,) by which the elimination is done in blocks: the same numbers, much sooner, where few states have steps
between clusters.

Not here: sampling, learned models, and chains whose next step depends on more than the current state.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse as sp

from mcot_torch.chains.elimination import (
    Kernel,
    States,
    UnreachableError,
    as_kernel,
    as_labels,
    as_law,
    as_states,
    block,
    dense,
    implied_diagonal,
    reachable,
    row_sums,
)
from mcot_torch.chains.sparse import green_diagonal, solve
from mcot_torch.chains.stationary import stochastic_complement
from mcot_torch.errors import InputError

__all__ = [
    "committor",
    "escape_probabilities",
    "escape_probability",
    "hitting_time",
    "hitting_times",
    "metastability_ratio",
    "restricted_mean",
    "survival",
]

Array = NDArray[np.float64]
Clusters = NDArray[np.integer] | None
Names = Sequence[str] | None


def _outside(n_states: int, target: NDArray[np.int64]) -> NDArray[np.int64]:
    rest = np.ones(n_states, dtype=bool)
    rest[target] = False
    return np.flatnonzero(rest)


def _unreachable(P: Kernel, target: NDArray[np.int64], names: Names) -> InputError:
    """The error that says from where the target is out of reach."""
    lost = np.flatnonzero(~reachable(P, target, backwards=True))
    if len(lost) == 0:
        return InputError(
            "the probabilities of the kernel are so small that their products underflow to 0; rescale them"
        )
    shown = ", ".join(str(names[x]) if names is not None else str(x) for x in lost[:5])
    more = ", ..." if len(lost) > 5 else ""
    return InputError(
        f"{len(lost)} of {P.shape[0]} states cannot reach the target (states {shown}{more}), so that its hitting time is "
        "infinite; choose another target or add the missing steps"
    )


# ---- hitting times and committors -------------------------------------------------------------------------------


def hitting_times(P: Kernel, target: States, clusters: Clusters = None, names: Names = None) -> Array:
    """E_x[τ_A] in steps from every state x.

    Args:
        P: (N, N) kernel; the diagonal is not read.
        target: A, a state, a list of states or a mask (N,).
        clusters: optional labels (N,) for the elimination in blocks.
        names: optional names of the states, for the error.

    Returns:
        (N,) float64, 0 on A; relative error near 1e-15 at any ε.

    Raises:
        InputError: where some state cannot reach A; it names up to five of them and says how many there are.
    """
    P = as_kernel(P, sparse=clusters is not None)
    n = P.shape[0]
    A = as_states(target, n)
    rest = _outside(n, A)
    h = np.zeros(n)
    try:
        h[rest] = solve(
            block(P, rest, rest), row_sums(block(P, rest, A)), np.ones((len(rest), 1)), as_labels(clusters, n, rest)
        )[:, 0]
    except UnreachableError:
        raise _unreachable(P, A, names) from None
    return h


def hitting_time(P: Kernel, start: ArrayLike, target: States, clusters: Clusters = None, names: Names = None) -> float:
    """E[τ_A] in steps from a law (N,) or from one state (an integer); arguments and errors as `hitting_times`.

    Only states that the start leads to need to reach the target.
    """
    P = as_kernel(P, sparse=clusters is not None)
    n = P.shape[0]
    law, A = as_law(start, n), as_states(target, n)
    visited = reachable(P, np.flatnonzero(law))
    visited[A] = True
    keep = np.flatnonzero(visited)
    if len(keep) < n:
        P, law, A = block(P, keep, keep), law[keep], np.searchsorted(keep, A)
        clusters, names = as_labels(clusters, n, keep), None if names is None else [names[int(x)] for x in keep]
        names = names if names is not None else [str(x) for x in keep]
    return float(law @ hitting_times(P, A, clusters, names))


def committor(P: Kernel, A: States, B: States, clusters: Clusters = None, names: Names = None) -> Array:
    """P_x(τ_A < τ_B) from every state x: (N,) float64, 1 on A and 0 on B.

    Raises:
        InputError: where A and B share a state, or some state reaches neither.
    """
    P = as_kernel(P, sparse=clusters is not None)
    n = P.shape[0]
    first, second = as_states(A, n, "set A's"), as_states(B, n, "set B's")
    both = np.union1d(first, second)
    if len(both) < len(first) + len(second):
        raise InputError(f"A and B share state {np.intersect1d(first, second)[0]}; a committor needs disjoint sets")
    rest = _outside(n, both)
    q = np.zeros(n)
    q[first] = 1.0
    try:
        q[rest] = solve(
            block(P, rest, rest),
            row_sums(block(P, rest, both)),
            row_sums(block(P, rest, first))[:, None],
            as_labels(clusters, n, rest),
        )[:, 0]
    except UnreachableError:
        raise _unreachable(P, both, names) from None
    return q


# ---- escape -----------------------------------------------------------------------------------------------------


def escape_probabilities(P: Kernel, target: States, clusters: Clusters = None, names: Names = None) -> Array:
    """P_y(τ̄_A < τ̄_y) for every y outside A: the chance to reach A before coming back to y.

    It is 1 / G_A(y, y), G_A = (I - P_restricted)^-1 the Green's function of the chain stopped in A.

    Returns:
        (N,) float64, NaN on A.

    Raises:
        InputError: where some state cannot reach A.
    """
    P = as_kernel(P, sparse=clusters is not None)
    n = P.shape[0]
    A = as_states(target, n)
    rest = _outside(n, A)
    inside, exits = block(P, rest, rest), row_sums(block(P, rest, A))
    labels = as_labels(clusters, n, rest)
    escape = np.full(n, np.nan)
    try:
        visits = green_diagonal(inside, exits, labels)
    except UnreachableError:
        raise _unreachable(P, A, names) from None
    escape[rest] = 1.0 / visits
    return escape


def escape_probability(P: Kernel, x: int, A: States, clusters: Clusters = None) -> float:
    """P_x(τ̄_A < τ̄_x) of one state x outside A; 0 where x does not lead to A.

    The chain takes one step from x and must reach A before x; states from which it reaches neither count as lost.
    """
    P = as_kernel(P, sparse=clusters is not None)
    n = P.shape[0]
    target, here = as_states(A, n), as_states(x, n, "start")
    if here[0] in target:
        raise InputError(f"state {x} lies in A; the escape probability P_x(τ_A < τ_x) needs x outside A")
    lost = np.flatnonzero(~reachable(P, np.append(target, here), backwards=True))
    q = committor(P, target, np.append(here, lost), clusters)  # 0 at x itself
    return float((P[here] @ q)[0])


def metastability_ratio(P: Kernel, representatives: States, clusters: Clusters = None) -> float:
    """sup over x ∈ S_o, y ∉ S_o of P_x(τ̄_{S_o∖x} < τ̄_x) / P_y(τ̄_{S_o} < τ̄_y) (Proposition 2.1).

    Small where the representatives S_o are metastable: hard to leave for one another, easy to reach from elsewhere.
    """
    P = as_kernel(P, sparse=clusters is not None)
    n = P.shape[0]
    kept = as_states(representatives, n, "representatives")
    if len(kept) < 2 or len(kept) == n:
        raise InputError(
            f"{len(kept)} of {n} states as representatives; take at least 2 and leave at least 1 state out"
        )
    watched = stochastic_complement(P, kept, clusters)
    np.fill_diagonal(watched, 0.0)
    return float(watched.sum(1).max() / np.nanmin(escape_probabilities(P, kept, clusters)))


# ---- the law of the hitting time --------------------------------------------------------------------------------


class _Powers:
    """Q^n of the chain stopped in A for n = 1, 2, 4, ...: the kernel, P(τ ≤ n), P(τ > n) and E[min(τ, n)].

    Rows of Q^n and P(τ ≤ n) make 1 together; restoring that after every squaring keeps the roundoff of n steps from
    adding up, and the tail is its own sum of products once it is small: nothing cancels at either end.
    """

    def __init__(self, Q: Array, exits: Array) -> None:
        self.Q = Q
        self.hit = exits
        self.alive = 1.0 - exits
        self.mean = np.ones(len(exits))
        self._conserve(Q.sum(1))

    def _conserve(self, tail: Array) -> None:
        self.alive = np.where(self.hit < 0.5, 1.0 - self.hit, tail)
        mass = self.Q.sum(1)
        self.Q = self.Q * (self.alive / np.where(mass > 0, mass, 1.0))[:, None]

    def double(self) -> None:
        tail = self.Q @ self.alive
        self.hit = self.hit + self.Q @ self.hit
        self.mean = self.mean + self.Q @ self.mean
        self.Q = self.Q @ self.Q
        self._conserve(tail)


def _stopped(P: Kernel, start: ArrayLike, target: States) -> tuple[Kernel, Array, Array, Array]:
    """Off-diagonal Q (n, n), implied diagonal (n,), exits (n,) and start law (n,) of the chain stopped in the target."""
    P = as_kernel(P)
    n = P.shape[0]
    law, A = as_law(start, n), as_states(target, n)
    rest = _outside(n, A)
    Q = block(P, rest, rest)
    if sp.issparse(Q):
        Q = sp.csr_array(Q - sp.diags_array(Q.diagonal()))
    else:
        np.fill_diagonal(Q, 0.0)
    exits = row_sums(block(P, rest, A))
    return Q, implied_diagonal(row_sums(Q) + exits), exits, law[rest]


def _with_diagonal(Q: Kernel, stay: Array) -> Array:
    filled = np.array(dense(Q))
    np.fill_diagonal(filled, stay)
    return filled


def _stepping_is_cheaper(Q: Kernel, steps: int) -> bool:
    n = Q.shape[0]
    entries = n * n if isinstance(Q, np.ndarray) else Q.nnz
    return steps * (entries + 5000) < 0.1 * n**3 * max(1, steps.bit_length())


def survival(P: Kernel, start: ArrayLike, target: States, times: ArrayLike) -> Array:
    """P(τ_A > t) from a law (N,) or one state, at integer times t ≥ 0 (steps, any order, any shape).

    By doubling: log2(max t) products of (N, N) matrices for all times together. Short horizons of large chains are
    stepped through instead.

    Returns:
        float64 of the shape of `times`, 0 where the chain is surely stopped.
    """
    when = np.asarray(times)
    if when.size and (not np.issubdtype(when.dtype, np.integer) or when.min() < 0):
        raise InputError("times are whole numbers of steps, at least 0")
    Q, stay, exits, law = _stopped(P, start, target)
    flat, mass = when.ravel().astype(np.int64), float(law.sum())
    if mass == 0.0 or flat.size == 0:
        return np.zeros(when.shape)
    horizon = int(flat.max())
    if _stepping_is_cheaper(Q, horizon):
        unique, back = np.unique(flat, return_inverse=True)
        out, forward = np.empty(len(unique)), law / mass
        QT, lost = (np.ascontiguousarray(Q.T) if isinstance(Q, np.ndarray) else Q.T.tocsr()), 0.0
        for i, (t0, t1) in enumerate(pairwise([0, *unique.tolist()])):
            for _ in range(t1 - t0):
                lost += float(forward @ exits)
                forward = QT @ forward + stay * forward
            out[i] = 1.0 - lost if lost < 0.5 else forward.sum()
        return (mass * out[back]).reshape(when.shape)

    powers = _Powers(_with_diagonal(Q, stay), exits)
    hit, alive = np.zeros((len(law), len(flat))), np.ones((len(law), len(flat)))
    for j in range(horizon.bit_length()):
        if j:
            powers.double()
        now = (flat >> j & 1).astype(bool)
        hit[:, now] = powers.hit[:, None] + powers.Q @ hit[:, now]
        alive[:, now] = np.where(hit[:, now] < 0.5, 1.0 - hit[:, now], powers.Q @ alive[:, now])
    return (law @ alive).reshape(when.shape)


def restricted_mean(P: Kernel, start: ArrayLike, target: States, horizon: int) -> float:
    """E[min(τ_A, T)] in steps from a law (N,) or one state, T = `horizon` ≥ 0: the mean that T steps can show.

    By doubling, S_2n = S_n + Q^n S_n for the sums S_n of the survival; nothing is subtracted.
    """
    if not 0 <= horizon < np.inf or horizon != int(horizon):
        raise InputError(f"the horizon is {horizon}; it is a whole number of steps, at least 0")
    steps = int(horizon)
    Q, stay, exits, law = _stopped(P, start, target)
    if law.sum() == 0.0 or steps == 0:
        return 0.0
    mean = np.zeros(len(law))
    if _stepping_is_cheaper(Q, steps):
        for _ in range(steps):
            mean = 1.0 + (Q @ mean + stay * mean)
        return float(law @ mean)
    powers = _Powers(_with_diagonal(Q, stay), exits)
    for j in range(steps.bit_length()):
        if j:
            powers.double()
        if steps >> j & 1:
            mean = powers.mean + powers.Q @ mean
    return float(law @ mean)
