import numpy as np
import pytest
from chain_support import Exact, clustered_graph, near, worst
from scipy import sparse as sp

from mcot_torch.chains import (
    pseudo_spectral_gap,
    spectral_gap,
    stationary_law,
    stochastic_complement,
    time_reversal,
)
from mcot_torch.errors import InputError

EPSILONS = [1e-1, 1e-2, 1e-6, 1e-10, 1e-14]


def cycle(n):
    return np.roll(np.eye(n), 1, axis=1)


# ---- stationary law ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.25), (1e-14, 1e-3), (1e-200, 1e-190)])
def test_two_states(a, b):
    law = stationary_law(np.array([[1 - a, a], [b, 1 - b]]))
    assert law.tolist() == near([b / (a + b), a / (a + b)], rel=1e-15)


@pytest.mark.parametrize("n", [1, 2, 33, 34, 70])
def test_uniform_laws(n):
    assert stationary_law(np.full((n, n), 1 / n)) == near(np.full(n, 1 / n), rel=1e-13)
    assert stationary_law(cycle(n)) == near(np.full(n, 1 / n), rel=1e-13)


def test_birth_and_death_over_sixty_orders():
    n, r = 60, 0.1  # π_{i+1} / π_i = up / down
    P = np.diag(np.full(n - 1, 0.05), 1) + np.diag(np.full(n - 1, 0.5), -1)
    expected = r ** np.arange(n) * (1 - r) / (1 - r**n)
    assert stationary_law(P) == near(expected, rel=1e-13, abs=0)


def test_birth_and_death_upwards_over_two_hundred_orders():
    n = 200  # π_{i+1} / π_i = 10: weights from 1 at the first state would pass 10^199
    P = np.diag(np.full(n - 1, 0.5), 1) + np.diag(np.full(n - 1, 0.05), -1)
    expected = 10.0 ** (np.arange(n) - n + 1) * 0.9  # the rest of the sum, 10^-200, is below rounding
    assert stationary_law(P) == near(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("periodic", [False, True])
def test_stationary_law_to_twelve_digits(epsilon, periodic):
    graph = clustered_graph((8, 5, 1, 7, 6), epsilon, seed=1, periodic=periodic)
    exact = Exact(graph.kernel()).stationary()
    assert worst(stationary_law(graph.kernel()), exact) < 1e-12
    assert worst(stationary_law(graph.to_scipy(), graph.clusters), exact) < 1e-12


@pytest.mark.parametrize("sizes", [(40, 40), (3, 60, 1, 25)])
def test_stationary_law_against_quantecon(sizes):
    graph = clustered_graph(sizes, 1e-9)
    expected = pytest.importorskip("quantecon.markov").gth_solve(graph.kernel())
    assert stationary_law(graph.kernel()) == near(expected, rel=1e-12)
    assert stationary_law(graph.kernel(), graph.clusters) == near(expected, rel=1e-12)


def test_transient_states_have_no_mass():
    P = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.25, 0.75, 0.0], [1.0, 0.0, 0.0, 0.0]])
    for clusters in (None, np.array([0, 0, 1, 1])):
        assert stationary_law(P, clusters) == near(np.array([0, 0.2, 0.8, 0]), rel=1e-15)


def test_two_recurrent_classes_are_an_error():
    with pytest.raises(InputError, match=r"2 classes that are never left \(states 0 and 2"):
        stationary_law(np.kron(np.eye(2), np.full((2, 2), 0.5)))


# ---- complement and reversal ------------------------------------------------------------------------------------


def test_complement_of_the_directed_ring_is_the_smaller_ring():
    assert (stochastic_complement(cycle(9), [0, 2, 5, 8]) == cycle(4)).all()


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("clustered", [False, True])
def test_complement_to_twelve_digits(epsilon, clustered):
    graph = clustered_graph((8, 5, 1, 7), epsilon, seed=2)
    kept = [0, 3, 9, 13, 20]
    exact = Exact(graph.kernel())
    green, rest = exact.green(kept)
    S = stochastic_complement(graph.to_scipy(), kept, graph.clusters if clustered else None)
    for a, x in enumerate(kept):
        visits = [sum(exact.P[x][i] * green[k, m] for k, i in enumerate(rest)) for m in range(len(rest))]
        row = [exact.P[x][y] + sum(v * exact.P[j][y] for v, j in zip(visits, rest, strict=True)) for y in kept]
        off = [b for b in range(len(kept)) if b != a]
        assert worst(S[a, off], [row[b] for b in off]) < 1e-12
        assert S[a, a] == near(float(row[a]), abs=1e-14)


def test_complement_keeps_the_law_and_the_rows():
    graph = clustered_graph((8, 5, 7), 1e-2)
    members = graph.members(1)
    S = stochastic_complement(graph.kernel(), members)
    assert S.sum(1) == near(np.ones(5), rel=1e-15)
    law = stationary_law(graph.kernel())[members]
    assert stationary_law(S) == near(law / law.sum(), rel=1e-13)
    full = graph.kernel()
    off = ~np.eye(20, dtype=bool)
    assert stochastic_complement(full, np.arange(20))[off].tolist() == full[off].tolist()


def test_complement_needs_a_way_back():
    with pytest.raises(InputError, match="never comes to the watched states"):
        stochastic_complement(np.array([[0.0, 1.0], [0.0, 1.0]]), [0])


def test_reversal():
    graph = clustered_graph((8, 5, 7), 1e-2)
    P = graph.kernel()
    law = stationary_law(P)
    R = time_reversal(P)
    assert R.sum(1) == near(np.ones(20), rel=1e-12)
    assert (law[:, None] * R) == near((law[:, None] * P).T, rel=1e-12)
    assert time_reversal(R) == near(P, rel=1e-12)
    assert time_reversal(graph.to_scipy(), law).toarray() == near(R, rel=1e-15)
    assert (time_reversal(cycle(7)) == cycle(7).T).all()
    with pytest.raises(InputError, match="must be positive"):
        time_reversal(np.array([[0.5, 0.5], [0.0, 1.0]]))


# ---- gaps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.25), (1e-14, 1e-3), (1.0, 1.0), (1e-200, 1e-190)])
def test_gap_of_two_states(a, b):
    # eigenvalues 1 and 1 - a - b; at a = b = 1 the gap is 2
    assert spectral_gap(np.array([[1 - a, a], [b, 1 - b]])) == near(a + b, rel=1e-13)


@pytest.mark.parametrize("n", [3, 10, 80])
def test_gaps_of_complete_graph_cycle_and_ring(n):
    assert spectral_gap(np.full((n, n), 1 / n)) == near(1.0, rel=1e-12)
    # the simple walk on the ring, even n: λ = -1 is there and plays no part; the directed ring has the same real part
    expected = 2 * np.sin(np.pi / n) ** 2
    assert spectral_gap(0.5 * (cycle(n) + cycle(n).T)) == near(expected, rel=1e-11)
    assert spectral_gap(cycle(n)) == near(expected, rel=1e-11)
    assert spectral_gap(sp.csr_array(cycle(n))) == near(expected, rel=1e-11)


def test_trivial_gaps():
    assert spectral_gap(np.ones((1, 1))) == 1.0
    assert spectral_gap(np.kron(np.eye(2), np.full((2, 2), 0.5)), np.full(4, 0.25)) == 0.0


@pytest.mark.parametrize("leave", [1e-1, 1e-8, 1e-14, 1e-30])
def test_a_tiny_gap_keeps_its_digits(leave):
    # two complete graphs of M states that exchange evenly: slow mode λ = 1 - 2·leave
    M = 6
    P = np.kron(np.eye(2), np.full((M, M), 1 / M)) * (1 - leave) + np.kron(cycle(2), np.full((M, M), leave / M))
    assert spectral_gap(P) == near(2 * leave, rel=1e-12)


def test_gap_against_eigenvalues():
    graph = clustered_graph((8, 5, 7), 1e-2, seed=3)
    P, law = graph.kernel(), stationary_law(graph.kernel())
    half = 0.5 * (P + time_reversal(P, law))
    eigenvalues = np.sort(np.linalg.eigvals(half).real)
    assert spectral_gap(P, law) == near(1 - eigenvalues[-2], rel=1e-10)


def test_pseudo_gap_closed_forms():
    n = 7
    assert pseudo_spectral_gap(np.full((n, n), 1 / n)) == near(1.0, rel=1e-12)
    assert pseudo_spectral_gap(cycle(n)) == 0.0  # P*P = I at every power
    # reversible: λ*² with λ* the largest modulus below 1
    lazy = 0.5 * np.eye(n) + 0.25 * (cycle(n) + cycle(n).T)
    top = 0.5 + 0.5 * np.cos(2 * np.pi / n)
    expected = max((1 - top ** (2 * j)) / j for j in range(1, 50))
    assert pseudo_spectral_gap(lazy) == near(expected, rel=1e-11)
    # an odd ring without laziness: modulus of λ = cos(π (n-1)/n) counts here, by P*P
    ring = 0.5 * (cycle(n) + cycle(n).T)
    top = abs(np.cos(np.pi * (n - 1) / n))
    expected = max((1 - top ** (2 * j)) / j for j in range(1, 50))
    assert pseudo_spectral_gap(ring) == near(expected, rel=1e-11)
    assert pseudo_spectral_gap(0.5 * (cycle(8) + cycle(8).T)) == near(0.0, abs=1e-15)


def test_pseudo_gap_of_a_chain_that_contracts_late():
    # shift register of 3 random bits: P^3 is uniform, (P*)^j P^j has gap 0 before; γ† = 1/3
    P = np.zeros((8, 8))
    for s in range(8):
        P[s, (2 * s) % 8] = P[s, (2 * s + 1) % 8] = 0.5
    assert pseudo_spectral_gap(P) == near(1 / 3, rel=1e-12)
    assert pseudo_spectral_gap(P, max_power=2) == near(0.0, abs=1e-15)
    assert pseudo_spectral_gap(P, max_power=3) == near(1 / 3, rel=1e-12)
    with pytest.raises(InputError, match="max_power is 0"):
        pseudo_spectral_gap(P, max_power=0)
