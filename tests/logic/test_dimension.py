"""SDA against closed forms (parities, the two tempting wrong versions) and against a search over all subsets."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from mcot_torch.errors import InputError
from mcot_torch.logic import ConceptClass, all_bits, parity_values, sda
from mcot_torch.logic.dimension import largest_compatible_set


def slow_sda(values, information, weights, tau):
    """Every subset, every pair, in fractions."""
    total = sum(weights)

    def low(i, j):
        inner = sum(Fraction(int(w)) * int(a) * int(b) for w, a, b in zip(weights, values[i], values[j], strict=True))
        return abs(inner) <= Fraction(tau) * total and information[i] == information[j]

    n = len(values)
    for size in range(n, 0, -1):
        if any(all(low(i, j) for i, j in itertools.combinations(s, 2)) for s in itertools.combinations(range(n), size)):
            return size
    return 0


@pytest.mark.parametrize("k", range(1, 9))
def test_parities_are_uncorrelated(k):
    """E_x (-1)^{(p + q)·x} = 0 for p ≠ q: correlations exactly 0, SDA = 2^K, and 1 where p is told."""
    bits = all_bits(k)
    concepts = ConceptClass(parity_values(bits, bits), {"none": [None] * 2**k, "global": list(range(2**k))})
    assert concepts.largest_correlation() == 0.0
    assert (concepts.inner_products == 2**k * np.eye(2**k)).all()
    assert sda(concepts, "none") == 2**k
    assert sda(concepts, "global") == 1


def test_what_halves_the_ignorance_halves_the_dimension():
    bits = all_bits(6)
    concepts = ConceptClass(
        parity_values(bits, bits), {f"{i} bits": [tuple(p[:i]) for p in bits.tolist()] for i in range(7)}
    )
    assert [sda(concepts, f"{i} bits") for i in range(7)] == [64, 32, 16, 8, 4, 2, 1]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_two_tempting_versions_are_wrong(k):
    """The product of all hidden bits does not depend on the path; the bit that picks the exit, so that an exit acts as −1 if

    x_k ≠ p_k, factors into a sign of p and the same function of x. Either way |correlation| is 1 and SDA is 1."""
    bits = all_bits(k).numpy()
    product = np.repeat(1 - 2 * (bits.sum(axis=1, keepdims=True) % 2), 2**k, axis=1)
    exits = 1 - 2 * ((bits[:, None, :] != bits[None, :, :]).sum(axis=2) % 2)
    for values in (product, exits):
        concepts = ConceptClass(values, {"none": [0] * 2**k})
        assert (np.abs(concepts.inner_products) == 2**k).all()
        assert concepts.largest_correlation() == 1.0
        assert sda(concepts, "none") == 1
        assert sda(concepts, "none", tau=0.999) == 1
        assert sda(concepts, "none", tau=1.0) == 2**k


@pytest.mark.parametrize("seed", range(12))
def test_random_classes_against_all_subsets(seed):
    rng = np.random.default_rng(seed)
    values = rng.choice([-1, 1], size=(9, 10)) if seed % 2 else rng.integers(-3, 4, size=(9, 7))
    weights = rng.integers(1, 5, size=values.shape[1])
    information = rng.integers(0, 2, size=9).tolist()
    concepts = ConceptClass(values, {"all": [0] * 9, "some": information}, weights)
    for tau in (0.0, 0.1, 0.25, 0.5, 1.0):
        assert sda(concepts, "all", tau) == slow_sda(values, [0] * 9, weights, tau)
        assert sda(concepts, "some", tau) == slow_sda(values, information, weights, tau)


def test_a_weight_is_a_repeated_path():
    rng = np.random.default_rng(0)
    values, weights = rng.choice([-1, 1], size=(6, 5)), np.array([3, 1, 2, 1, 4])
    repeated = ConceptClass(np.repeat(values, weights, axis=1), {})
    assert (ConceptClass(values, {}, weights).inner_products == repeated.inner_products).all()


def test_inner_products_of_large_values_are_exact():
    """2^26 squared is beyond float32, and a sum of them beyond its whole numbers."""
    values = np.array([[2**24 + 1, 1], [2**24 - 1, 3]])
    assert ConceptClass(values, {}).inner_products[0, 1] == 2**48 - 1 + 3
    with pytest.raises(InputError, match="below 2"):
        _ = ConceptClass(values * 2**10, {}).inner_products
    with pytest.raises(InputError, match="dtype float64"):
        _ = ConceptClass(values * 0.5, {}).inner_products


def test_tau_is_compared_exactly():
    """Correlation 1/5 against τ = .2 (a float a little above 1/5) and against the next float below 1/5."""
    concepts = ConceptClass(np.array([[1, 1, 1, 1, 1], [1, 1, 1, -1, -1]]), {"none": [0, 0]})
    assert sda(concepts, "none", 0.2) == 2
    assert sda(concepts, "none", float(np.nextafter(0.2, 0))) == 1


@pytest.mark.parametrize(("n", "expected"), [(3, 1), (4, 2), (5, 2), (60, 30), (61, 30)])
def test_largest_compatible_set_of_a_ring(n, expected):
    """Conflicts with both neighbours of a ring: ⌊n/2⌋."""
    conflicts = np.zeros((n, n), dtype=bool)
    conflicts[np.arange(n), (np.arange(n) + 1) % n] = True
    assert largest_compatible_set(conflicts | conflicts.T) == expected


def test_largest_compatible_set_adds_up_over_components():
    conflicts = np.zeros((10, 10), dtype=bool)
    conflicts[:3, :3] = True  # one of three
    for i, j in [(3, 4), (4, 5), (5, 6)]:  # a path of four: two
        conflicts[i, j] = conflicts[j, i] = True
    assert largest_compatible_set(conflicts) == 1 + 2 + 3  # and three without a conflict


def test_bad_input():
    concepts = ConceptClass(np.ones((2, 2), dtype=int), {"none": [0, 0], "path": [0, 0]})
    with pytest.raises(InputError, match="no access 'ball'; the class knows none, path"):
        sda(concepts, "ball")
    with pytest.raises(InputError, match="tau is -1"):
        sda(concepts, "none", -1)
    ring = np.roll(np.eye(400, dtype=bool), 1, axis=1)
    with pytest.raises(InputError, match="400 concepts hang together"):
        largest_compatible_set(ring | ring.T)
