"""Groups against modular arithmetic, composed permutations and known tables; broken tables are named."""

import itertools

import pytest
import torch

from mcot_torch.errors import InputError
from mcot_torch.logic.groups import Group, cyclic, symmetric

QUATERNION = ["1", "-1", "i", "-i", "j", "-j", "k", "-k"]


def quaternion_product(a: str, b: str) -> str:
    """Hamilton's rules: ij = k and cyclically, ii = -1."""
    sign, x, y = a.count("-") + b.count("-"), a[-1], b[-1]
    if x == "1" or y == "1":
        unit = y if x == "1" else x
    elif x == y:
        unit, sign = "1", sign + 1
    else:
        (unit,) = set("ijk") - {x, y}
        sign += x + y not in ("ij", "jk", "ki")
    return "-" * (sign % 2) + unit


def quaternion_table() -> list[list[int]]:
    return [[QUATERNION.index(quaternion_product(a, b)) for b in QUATERNION] for a in QUATERNION]


@pytest.mark.parametrize("m", [1, 2, 5, 12])
def test_cyclic_is_addition_mod_m(m):
    group = cyclic(m)
    assert group.order == m
    for a, b in itertools.product(range(m), repeat=2):
        assert int(group.multiply(torch.tensor(a), torch.tensor(b))) == (a + b) % m
    assert group.inverses.tolist() == [-a % m for a in range(m)]
    assert group.is_abelian


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_symmetric_composes_permutations(n):
    """(a·b)(i) = a(b(i)), read off the names."""
    group = symmetric(n)
    assert len(set(group.names)) == group.order == [1, 1, 2, 6, 24][n]
    for a, b in itertools.product(range(group.order), repeat=2):
        composed = "".join(group.names[a][int(group.names[b][i]) - 1] for i in range(n))
        assert group.names[int(group.table[a, b])] == composed
    assert group.names[group.identity] == "1234"[:n]
    assert group.is_abelian == (n < 3)


@pytest.mark.parametrize("group", [cyclic(7), symmetric(3), symmetric(5), Group.from_table(quaternion_table())])
def test_inverses(group):
    every = torch.arange(group.order)
    assert (group.multiply(every, group.inverses) == group.identity).all()
    assert (group.multiply(group.inverses, every) == group.identity).all()


@pytest.mark.parametrize("group", [cyclic(6), symmetric(4)])
def test_built_groups_pass_the_check_of_tables(group):
    again = Group.from_table(group.table.numpy(), group.names)
    assert (again.identity, again.names) == (group.identity, group.names)


def test_quaternions():
    group = Group.from_table(quaternion_table(), QUATERNION)
    i, j, k = (torch.tensor(group.element(name)) for name in "ijk")
    assert group.names[int(group.multiply(i, j))] == "k"
    assert group.names[int(group.multiply(j, i))] == "-k"
    assert group.names[int(group.product(torch.stack([i, j, k])))] == "-1"
    assert group.inverses[i] == group.element("-i")
    assert not group.is_abelian


def test_product_of_batches_goes_from_left_to_right():
    group = symmetric(4)
    elements = torch.randint(24, (5, 3, 7), generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(5, 3, dtype=torch.int64)
    for b, c in itertools.product(range(5), range(3)):
        for g in elements[b, c].tolist():
            expected[b, c] = group.table[expected[b, c], g]
    assert torch.equal(group.product(elements), expected)
    assert group.product(elements[..., :0]).unique().tolist() == [group.identity]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([[0, 1], [1, 2]], "closure fails, 1·1 is 2"),
        ([[0, 0], [0, 0]], "no identity"),
        ([[0, 1], [1, 1]], "1 has no inverse"),
        # a loop of order 5: identity 0, every element its own inverse, and no group, since 2 does not divide 5
        (
            [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]],
            "associativity fails, (1·1)·2 = 2 but 1·(1·2) = 4",
        ),
        ([[0, 1]], "shape (1, 2)"),
        ([[0.0]], "dtype float64"),
    ],
)
def test_the_broken_axiom_is_named(table, words):
    with pytest.raises(InputError) as error:
        Group.from_table(table)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_names_and_sizes_are_checked():
    with pytest.raises(InputError, match="different names"):
        Group.from_table([[0, 1], [1, 0]], ["e", "e"])
    with pytest.raises(InputError, match="no element '321x'"):
        symmetric(3).element("321x")
    for build in (lambda: cyclic(0), lambda: symmetric(0), lambda: symmetric(7)):
        with pytest.raises(InputError):
            build()
