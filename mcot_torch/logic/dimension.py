"""The statistical query dimension with access (the paper's Section 5), exact for small concept classes.

SDA_τ(P; I) is the size of the largest set of concepts that are pairwise nearly uncorrelated, |<h_p1, h_p2>| ≤ τ, and about
which the learner is told the same, I_p1 = I_p2. Theorem 5.2: with polynomially many queries to a corrupted gradient oracle the
loss stays at least 1 − 1/SDA.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse as sp
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse.csgraph import connected_components

from mcot_torch.errors import InputError

__all__ = ["ConceptClass", "largest_compatible_set", "sda"]

_MOST_BY_SEARCH = 300


@dataclass(frozen=True, eq=False)
class ConceptClass:
    """P concepts on n paths.

    Attributes:
        values: (P, n) integers, h_p of each path.
        information: access -> I_p of each concept, P things that compare equal where the learner is told the same.
        weights: (n,) integers > 0, the law of the paths up to a factor; None for uniform.
    """

    values: NDArray[np.integer]
    information: Mapping[str, Sequence[Hashable]]
    weights: NDArray[np.integer] | None = None

    @property
    def n_concepts(self) -> int:
        """P."""
        return len(self.values)

    @cached_property
    def total_weight(self) -> int:
        """The sum of the weights: <h_p1, h_p2> is an inner product divided by it."""
        return self.values.shape[1] if self.weights is None else int(np.sum(self.weights, dtype=np.int64))

    @cached_property
    def inner_products(self) -> NDArray[np.floating]:
        """(P, P) Σ_x weight(x)·h_p1(x)·h_p2(x): whole numbers, exact, since all partial sums are below the mantissa.

        Raises:
            InputError: values or weights that are no integers, or so large that float64 cannot hold the sums.
        """
        for what, array in (("values", self.values), ("weights", self.weights)):
            if array is not None and not np.issubdtype(array.dtype, np.integer):
                raise InputError(
                    f"the {what} of the concepts have dtype {array.dtype}; exact correlations need integers"
                )
        largest = int(np.abs(self.values).max(initial=0)) ** 2 * self.total_weight
        if largest >= 2**53:
            raise InputError(f"inner products of the concepts reach {largest}; exact ones must stay below 2^53")
        dtype = np.dtype(np.float32 if largest < 2**24 else np.float64)
        values: NDArray[np.floating] = self.values.astype(dtype)
        weighted = values if self.weights is None else values * self.weights.astype(dtype)
        product: NDArray[np.floating] = values @ weighted.T
        return product

    def largest_correlation(self) -> float:
        """max |<h_p1, h_p2>| over pairs p1 ≠ p2; 0 for a single concept."""
        inner = np.abs(self.inner_products)
        np.fill_diagonal(inner, 0)
        return float(inner.max(initial=0)) / self.total_weight


def sda(concepts: ConceptClass, access: str, tau: float = 0.0) -> int:
    """SDA_τ(P; I), exact: over the classes of equal information, the largest set of concepts with |<h_p1, h_p2>| ≤ τ.

    Args:
        concepts: the class P.
        access: a key of its `information`.
        tau: τ ≥ 0, compared in whole numbers.

    Raises:
        InputError: an access that the class does not know, τ < 0, or see `largest_compatible_set`.
    """
    if access not in concepts.information:
        raise InputError(f"there is no access {access!r}; the class knows {', '.join(concepts.information)}")
    if not tau >= 0.0:
        raise InputError(f"tau is {tau}; a bound on correlations is at least 0")
    told: dict[Hashable, list[int]] = {}
    for p, information in enumerate(concepts.information[access]):
        told.setdefault(information, []).append(p)
    limit = int(Fraction(tau) * concepts.total_weight)  # |inner| is whole: at most the floor
    largest = 0
    for group in sorted(told.values(), key=len, reverse=True):
        if len(group) <= largest:
            break
        conflicts = np.ones((1, 1), dtype=bool)
        if len(group) > 1:
            conflicts = np.abs(concepts.inner_products[np.ix_(group, group)]) > limit
        largest = max(largest, largest_compatible_set(conflicts))
    return largest


def largest_compatible_set(conflicts: ArrayLike) -> int:
    """The size of the largest set without a conflict in it; exact.

    Components of the conflict graph add up. In one of which all members are in conflict one can be chosen; any other, of up
    to 300 members, goes to SciPy's mixed-integer solver.

    Args:
        conflicts: (n, n) bool, symmetric; the diagonal does not matter.

    Raises:
        InputError: a component too large for the solver.
    """
    matrix = np.array(conflicts, dtype=bool)
    np.fill_diagonal(matrix, False)
    count, labels = connected_components(sp.csr_array(matrix), directed=False)
    sizes, degrees = np.bincount(labels, minlength=count), matrix.sum(axis=1)
    total = 0
    for component, size in enumerate(sizes):
        if size == 1:
            total += 1
            continue
        members = np.flatnonzero(labels == component)
        if (degrees[members] == size - 1).all():
            total += 1
        elif size > _MOST_BY_SEARCH:
            raise InputError(
                f"{size} concepts hang together by their correlations; the exact search is for up to {_MOST_BY_SEARCH}: use fewer "
                "concepts, or another tau"
            )
        else:
            total += _independent_set(matrix[np.ix_(members, members)])
    return total


def _independent_set(conflicts: NDArray[np.bool_]) -> int:
    """The size of a maximum independent set: max Σ z_i with z_i + z_j ≤ 1 for each conflict, z_i in {0, 1}."""
    n = len(conflicts)
    pairs = np.argwhere(np.triu(conflicts))
    rows = np.repeat(np.arange(len(pairs)), 2)
    at_most_one = LinearConstraint(
        sp.csr_array((np.ones(2 * len(pairs)), (rows, pairs.ravel())), shape=(len(pairs), n)), ub=1
    )
    found = milp(-np.ones(n), integrality=np.ones(n), bounds=Bounds(0, 1), constraints=at_most_one)
    if not found.success:
        raise RuntimeError(f"the mixed-integer solver stopped without an answer: {found.message}")
    return round(-found.fun)
