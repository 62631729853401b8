"""Finite groups as multiplication tables: what the hard steps of a chain of thought act with (the paper's Section 5).

An element is its number 0 .. n - 1, so that a tensor of elements multiplies by one look-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mcot_torch.errors import InputError

__all__ = ["Group", "cyclic", "symmetric"]

_MOST_LETTERS = 6  # 720 elements, a table of 4 MiB
_MOST_ELEMENTS = 1024


@dataclass(frozen=True, eq=False)
class Group:
    """A finite group of n elements.

    Attributes:
        table: (n, n) int64, table[a, b] = a·b; use `Group.from_table` for a table that has to be checked.
        identity: the element that changes nothing.
        names: what each element is called.
    """

    table: Tensor
    identity: int
    names: tuple[str, ...]

    @classmethod
    def from_table(cls, table: ArrayLike, names: Sequence[str] | None = None) -> Group:
        """The group of an (n, n) multiplication table, n at most 1,024.

        Raises:
            InputError: the axiom that fails (closure, identity, inverses, associativity) and the elements at which it does.
        """
        array = np.asarray(table)
        n = len(array)
        if array.ndim != 2 or array.shape != (n, n) or n == 0 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"the group's table has shape {array.shape} and dtype {array.dtype}; a multiplication table is a square of integers"
            )
        if n > _MOST_ELEMENTS:
            raise InputError(f"the group's table has {n} elements; {_MOST_ELEMENTS} are the most that are checked")
        named = tuple(map(str, range(n))) if names is None else tuple(names)
        if len(set(named)) != n or len(named) != n:
            raise InputError(f"{n} group elements need {n} different names; got {list(named)}")
        identity = _check_axioms(array.astype(np.int64), named)
        return cls(torch.from_numpy(array.astype(np.int64)), identity, named)

    @property
    def order(self) -> int:
        """n, the number of elements."""
        return len(self.table)

    @cached_property
    def inverses(self) -> Tensor:
        """(n,) int64, the inverse of each element."""
        return (self.table == self.identity).int().argmax(dim=1)

    @cached_property
    def is_abelian(self) -> bool:
        """Whether a·b = b·a for all pairs."""
        return bool((self.table == self.table.T).all())

    def element(self, name: str | int) -> int:
        """The number of the element called `name`; `InputError` where there is none."""
        if str(name) not in self.names:
            shown = ", ".join(self.names[:8]) + (", ..." if self.order > 8 else "")
            raise InputError(f"the group has no element {str(name)!r}; its {self.order} elements are {shown}")
        return self.names.index(str(name))

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """left·right, element by element; int64 tensors whose shapes broadcast."""
        return self.table.to(left.device)[left, right]

    def product(self, elements: Tensor) -> Tensor:
        """(...,) the product g_1·g_2· ... ·g_T along the last axis of (..., T) int64; the identity for T = 0."""
        value = torch.full(elements.shape[:-1], self.identity, dtype=torch.int64, device=elements.device)
        table = self.table.to(elements.device)
        for t in range(elements.shape[-1]):
            value = table[value, elements[..., t]]
        return value


def cyclic(m: int) -> Group:
    """Z_m, the integers mod m under addition, m at most 1,024; Z_2 is the signs, 0 for +1 and 1 for −1."""
    if not 1 <= m <= _MOST_ELEMENTS:
        raise InputError(f"m is {m}; the cyclic group Z_m has 1 to {_MOST_ELEMENTS} elements")
    numbers = torch.arange(m)
    return Group((numbers[:, None] + numbers) % m, 0, tuple(map(str, range(m))))


def symmetric(n: int) -> Group:
    """S_n, the permutations of 1 .. n, n at most 6: (a·b)(i) = a(b(i)).

    Named by their images, "213" for 1 -> 2, 2 -> 1, 3 -> 3, and numbered in the order of their names, the identity first.
    """
    if not 1 <= n <= _MOST_LETTERS:
        raise InputError(f"n is {n}; symmetric groups are built for 1 to {_MOST_LETTERS} letters")
    images = np.array(list(permutations(range(n))), dtype=np.int64)  # (n!, n), in lexicographic order
    place = n ** np.arange(n - 1, -1, -1)
    products = images[:, images] @ place  # (n!, n!): a(b(i)), read as a number in base n
    table = np.searchsorted(images @ place, products)
    return Group(torch.from_numpy(table), 0, tuple("".join(str(i + 1) for i in row) for row in images.tolist()))


def _check_axioms(table: NDArray[np.int64], names: tuple[str, ...]) -> int:
    """The identity of a table that obeys the axioms."""
    n, numbers = len(table), np.arange(len(table))
    outside = np.argwhere((table < 0) | (table >= n))
    if len(outside):
        a, b = outside[0]
        raise InputError(
            f"not a group: closure fails, {names[a]}·{names[b]} is {table[a, b]}; products are elements 0 .. {n - 1}"
        )
    neutral = np.flatnonzero((table == numbers).all(axis=1) & (table.T == numbers).all(axis=1))
    if len(neutral) == 0:
        raise InputError(
            "not a group: there is no identity, no element e has e·g = g·e = g for all g; correct the table"
        )
    identity = int(neutral[0])
    paired = (table == identity) & (table.T == identity)
    if not paired.any(axis=1).all():
        a = int(np.flatnonzero(~paired.any(axis=1))[0])
        raise InputError(
            f"not a group: {names[a]} has no inverse, no element g has {names[a]}·g = g·{names[a]} = {names[identity]}; correct the table"
        )
    for a in range(n):
        wrong = np.argwhere(table[table[a]] != table[a][table])
        if len(wrong):
            b, c = wrong[0]
            raise InputError(
                f"not a group: associativity fails, ({names[a]}·{names[b]})·{names[c]} = {names[table[table[a, b], c]]} but "
                f"{names[a]}·({names[b]}·{names[c]}) = {names[table[a, table[b, c]]]}; correct the table"
            )
    return identity
