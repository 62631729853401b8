import numpy as np
import pytest
from chain_support import Exact, clustered_graph, near, worst
from scipy import sparse as sp

from mcot_torch.chains import (
    committor,
    escape_probabilities,
    escape_probability,
    hitting_time,
    hitting_times,
    metastability_ratio,
    restricted_mean,
    stochastic_complement,
    survival,
)
from mcot_torch.errors import InputError

EPSILONS = [1e-1, 1e-2, 1e-6, 1e-10, 1e-14]
TARGET = 8  # entry of the second cluster of SIZES
SIZES = (8, 5, 1, 7, 6)


def walk(n, up, down):
    """Birth-death chain on 0 .. n with probabilities up and down, reflected at 0, held at n."""
    P = np.zeros((n + 1, n + 1))
    for i in range(n + 1):
        if i < n:
            P[i, i + 1] = up
        if i > 0:
            P[i, i - 1] = down
    np.fill_diagonal(P, 1 - P.sum(1))
    return P


# ---- closed forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.5, 1e-3, 1e-15, 1e-200])
def test_two_states_wait_a_geometric_time(a):
    P = np.array([[1 - a, a], [0.25, 0.75]])
    assert hitting_times(P, 1).tolist() == near([1 / a, 0.0], rel=1e-15)
    assert escape_probabilities(P, 1)[0] == near(a, rel=1e-15)
    assert escape_probability(P, 0, 1) == near(a, rel=1e-15)


def test_the_diagonal_is_not_read():
    P = np.array([[np.pi, 0.25, 0.0], [0.125, 7.0, 0.5], [0.0, 0.5, 99.0]])
    # from 1: s = .625, from 0: 4 + h1; h1 = (1 + .125 (4 + h1)) / .625
    assert hitting_times(P, 2).tolist() == near([7.0, 3.0, 0.0], rel=1e-15)


@pytest.mark.parametrize("n", [3, 24, 25, 60, 130])
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_gamblers_ruin(n, p):
    P = walk(n, p, 1 - p)
    r = (1 - p) / p
    i = np.arange(n + 1)
    wins = i / n if r == 1 else (r**i - 1) / (r**n - 1)
    assert committor(P, n, 0) == near(wins, rel=1e-12)
    duration = i * (n - i) if r == 1 else (i - n * wins) / (1 - 2 * p)
    assert hitting_times(P, [0, n]) == near(duration, rel=1e-12)


@pytest.mark.parametrize("n", [5, 50, 200])
def test_birth_and_death_upwards(n):
    up, down = 1e-3, 3e-4
    # E_i[τ_{i+1}] = 1/up + down/up E_{i-1}[τ_i]
    steps = [1 / up]
    for _ in range(n - 1):
        steps.append((1 + down * steps[-1]) / up)
    expected = np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]])
    assert hitting_times(walk(n, up, down), n) == near(expected, rel=1e-13)


def test_directed_ring_counts_its_steps():
    n = 100
    P = np.zeros((n, n))
    P[np.arange(n), (np.arange(n) + 1) % n] = 1.0
    assert hitting_times(P, 0).tolist() == [0.0, *range(n - 1, 0, -1)]
    assert escape_probabilities(P, 0)[1:].tolist() == [1.0] * (n - 1)


@pytest.mark.parametrize("n", [2, 10, 70])
def test_complete_graph(n):
    P = np.full((n, n), 1.0 / n)
    h = hitting_times(P, 0)
    assert h[1:] == near(np.full(n - 1, n), rel=1e-13)
    # y escapes to 0 before y: both equally likely to come next among the two
    assert escape_probabilities(P, 0)[1:] == near(np.full(n - 1, 0.5), rel=1e-13)


def test_ring_of_single_states():
    # every cluster is one state that moves on with probability ε: K/2 geometric waits
    graph = clustered_graph((1,) * 6, 1e-9, jumps=(1,))
    w = graph.weights[graph.hard]
    expected = sum(1 / (1e-9 * w[k]) for k in range(3))
    for clusters in (None, graph.clusters):
        assert hitting_time(graph.to_scipy(), 0, 3, clusters) == near(expected, rel=1e-14)


# ---- against 120 digits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("clustered", [False, True])
def test_hitting_committor_and_escape_to_twelve_digits(epsilon, clustered):
    graph = clustered_graph(SIZES, epsilon, seed=1)
    P, labels = graph.kernel(), graph.clusters if clustered else None
    exact = Exact(P)
    assert worst(hitting_times(P, TARGET, labels), exact.hitting_times([TARGET])) < 1e-12
    A, B = [TARGET, 9], [0, 15]
    assert worst(committor(graph.to_scipy(), A, B, labels), exact.committor(A, B)) < 1e-12
    escape = escape_probabilities(P, A, labels)
    true = exact.escape(A)
    assert np.isnan(escape[A]).all()
    assert worst([escape[i] for i in true], list(true.values())) < 1e-12
    assert worst([escape_probability(P, 3, A, labels)], [true[3]]) < 1e-12


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_periodic_clusters_to_twelve_digits(epsilon):
    graph = clustered_graph((4, 6, 2, 4, 8), epsilon, seed=2, periodic=True)
    exact = Exact(graph.kernel()).hitting_times([10])
    for clusters in (None, graph.clusters):
        assert worst(hitting_times(graph.to_scipy(), 10, clusters), exact) < 1e-12


@pytest.mark.parametrize("epsilon", [1e-1, 1e-6, 1e-14])
def test_metastability_ratio_to_twelve_digits(epsilon):
    graph = clustered_graph((6, 5, 4, 7), epsilon, seed=3)
    kept = graph.entries
    exact = Exact(graph.kernel())
    above = max(exact.escape([z for z in kept if z != x])[int(x)] for x in kept)
    below = min(exact.escape(kept).values())
    for clusters in (None, graph.clusters):
        assert worst([metastability_ratio(graph.to_scipy(), kept, clusters)], [above / below]) < 1e-12


# ---- what must agree --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(30, 30, 30), (3, 40, 11, 1, 1, 26), (70, 2)])
def test_blocks_and_one_elimination_agree(sizes):
    graph = clustered_graph(sizes, 1e-7, seed=4)
    P = graph.to_scipy()
    target = np.array([1, graph.n_states - 1])
    for function in (hitting_times, escape_probabilities):
        assert function(P, target, graph.clusters) == near(function(P, target), rel=1e-12, nan_ok=True)
    A, B = graph.members(0), graph.members(1)[:1]
    assert committor(P, A, B, graph.clusters) == near(committor(P, A, B), rel=1e-12)


def test_any_labels_give_the_same_times():
    graph = clustered_graph((9, 8, 7), 1e-5)
    P, rng = graph.to_scipy(), np.random.default_rng(0)
    h = hitting_times(P, 4)
    for labels in (rng.integers(0, 4, 24), np.zeros(24, dtype=int), np.arange(24) + 7):
        assert hitting_times(P, 4, labels) == near(h, rel=1e-12)


def test_a_whole_cluster_a_mask_and_a_list_are_the_same_target():
    graph = clustered_graph((9, 8, 7), 1e-5)
    members = graph.members(1)
    h = hitting_times(graph.to_scipy(), members, graph.clusters)
    assert (h[members] == 0).all()
    assert (h == hitting_times(graph.to_scipy(), graph.clusters == 1, graph.clusters)).all()
    assert (h == hitting_times(graph.to_scipy(), list(map(int, members)), graph.clusters)).all()


def test_the_first_step_equations_hold():
    graph = clustered_graph((9, 8, 7), 1e-2)
    P, A = graph.kernel(), [10]
    h = hitting_times(P, A)
    rest = np.setdiff1d(np.arange(24), A)
    assert (1 + P @ h)[rest] == near(h[rest], rel=1e-11)
    q = committor(P, A, [0])
    rest = np.setdiff1d(rest, [0])
    assert (P @ q)[rest] == near(q[rest], rel=1e-11)
    assert q + committor(P, [0], A) == near(np.ones(24), rel=1e-13)


def test_a_lumpable_chain_has_the_times_of_its_quotient():
    # clusters are complete graphs whose every state moves on with the same probability
    K, M, leave = 5, 6, 1e-8
    P = np.kron(np.eye(K), np.full((M, M), 1 / M)) * (1 - leave)
    P += np.kron(np.roll(np.eye(K), 1, axis=1), np.full((M, M), leave / M))
    h = hitting_times(P, np.arange(M), np.repeat(np.arange(K), M))
    assert h.reshape(K, M) == near(np.tile(np.array([0, 4, 3, 2, 1])[:, None] / leave, (1, M)), rel=1e-13)


def test_small_epsilon_scales_the_time_by_its_inverse():
    base = clustered_graph((9, 8, 7), 1e-14)
    h = [hitting_time(base.with_epsilon(e).to_scipy(), 0, 9, base.clusters) * e for e in (1e-14, 1e-13)]
    assert h[0] == near(h[1], rel=1e-11)


def test_two_clusters_exchange_at_the_rate_of_their_hard_edges():
    # ε -> 0: the escape from a cluster is π_0(source) ε w
    graph = clustered_graph((6, 7), 1e-13, jumps=(1,))
    from mcot_torch.chains.meta_chain import cluster_laws

    (x, _), w = graph.sparse_edges[0], graph.weights[graph.hard][0]
    expected = 1 / (cluster_laws(graph)[x] * w * 1e-13)
    assert hitting_time(graph.to_scipy(), 0, graph.members(1), graph.clusters) == near(expected, rel=1e-9)


# ---- survival ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-1, 1e-3])
def test_survival_and_restricted_mean_against_a_loop(epsilon):
    graph = clustered_graph((6, 5, 4), epsilon, seed=5)
    P, target = graph.kernel(), graph.members(1)
    law = np.random.default_rng(0).dirichlet(np.ones(15))
    Q, alive, loop = P.copy(), law.copy(), []
    Q[:, target] = 0
    alive[target] = 0
    for _ in range(301):
        loop.append(alive.sum())
        alive = alive @ Q
    times = np.array([0, 1, 2, 3, 64, 65, 299, 300])
    for kernel in (P, graph.to_scipy()):
        assert survival(kernel, law, target, times) == near(np.array(loop)[times], rel=1e-12)
        assert survival(kernel, law, target, times[::-1].reshape(2, 4)).ravel() == near(
            np.array(loop)[times[::-1]], rel=1e-12
        )
        for horizon in (0, 1, 2, 77, 300):
            assert restricted_mean(kernel, law, target, horizon) == near(sum(loop[:horizon]), rel=1e-12)


@pytest.mark.parametrize("a", [1e-3, 1e-9, 1e-15, 1e-20])
def test_a_geometric_time_survives_as_it_should(a):
    P = sp.csr_array(np.array([[1.0, a], [0.5, 0.5]]))
    times = np.array([0, 1, 1000, 10**6, 10**9])
    expected = np.exp(times * np.log1p(-a))
    got = survival(P, 0, 1, times)
    assert got[expected > 1e-12] == near(expected[expected > 1e-12], rel=1e-12 * max(1, 1e9 * a))
    # (1 - (1 - a)^T) / a
    for horizon in (1, 10**3, 10**6):
        exact = -np.expm1(horizon * np.log1p(-a)) / a
        assert restricted_mean(P, 0, 1, horizon) == near(exact, rel=1e-12)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-8, 1e-14])
def test_survival_to_twelve_digits_over_many_hitting_times(epsilon):
    graph = clustered_graph((6, 5, 4), epsilon, seed=6)
    target, exact = graph.members(1), Exact(graph.kernel())
    times = np.array([int(c / epsilon) for c in (1e-3, 1.0, 30.0, 200.0)])
    true = [exact.survival(0, target, t) for t in times]
    assert worst(survival(graph.to_scipy(), 0, target, times), true) < 1e-12


@pytest.mark.parametrize("epsilon", [1e-2, 1e-5])
def test_a_long_horizon_gives_the_hitting_time(epsilon):
    graph = clustered_graph((6, 5, 4), epsilon)
    P, mean = graph.to_scipy(), hitting_time(graph.to_scipy(), 0, 6)
    assert restricted_mean(P, 0, 6, int(60 * mean)) == near(mean, rel=1e-11)


def test_large_sparse_chains_are_stepped_with_the_same_answer():
    n = 300  # a directed ring with a chance to stay: S(t) is a binomial tail
    ring = sp.csr_array((np.full(n, 0.5), (np.arange(n), (np.arange(n) + 1) % n)), shape=(n, n))
    from scipy.stats import binom

    times = np.array([400, 0, 90, 200])
    expected = binom.cdf(49, times, 0.5)
    assert survival(ring, n - 50, 0, times) == near(expected, rel=1e-12)
    far = binom.cdf(49, np.arange(0, 150), 0.5).sum()
    assert restricted_mean(ring, n - 50, 0, 150) == near(far, rel=1e-12)


def test_survival_starts_at_the_mass_outside_and_may_be_certain_death():
    P = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert survival(P, np.array([0.25, 0.75]), 1, [0, 1, 5]).tolist() == [0.25, 0.0, 0.0]
    assert survival(P, 1, 1, 0) == 0.0
    assert restricted_mean(P, 1, 1, 10) == 0.0
    assert restricted_mean(P, 0, 1, 10) == 1.0


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [None, np.repeat([0, 1, 2], 4)])
def test_an_unreachable_target_is_named(clusters):
    P = np.kron(np.eye(3), np.full((4, 4), 0.25))
    P[0, 4] = 0.1  # cluster 0 leads to 1, nothing to 2
    with pytest.raises(InputError, match=r"8 of 12 states cannot reach the target \(states 0, 1, 2, 3, 4, \.\.\.\)"):
        hitting_times(P, 11, clusters)
    with pytest.raises(InputError, match=r"4 of 12 .*states 8, 9, 10, 11\)"):
        hitting_times(P, 4, clusters)  # states 0 to 3 lead to 4, though 4 does not lead to them
    with pytest.raises(InputError, match=r"4 of 12 .*states i, j, k, l\)"):
        hitting_times(P, [4, 3], clusters, names="abcdefghijkl")
    with pytest.raises(InputError, match="cannot reach"):
        escape_probabilities(P, 11, clusters)
    with pytest.raises(InputError, match="cannot reach"):
        committor(P, 4, 0, clusters)


@pytest.mark.parametrize(("n", "shown"), [(5, r"0, 1, 2, 3, 4\)"), (6, r"0, 1, 2, 3, 4, \.\.\.\)")])
def test_five_lost_states_are_named(n, shown):
    with pytest.raises(InputError, match=rf"{n} of {n + 1} states .*\(states {shown}"):
        hitting_times(np.eye(n + 1), n)


def test_only_states_on_the_way_need_to_reach_the_target():
    P = np.kron(np.eye(3), np.full((4, 4), 0.25))
    P[0, 4] = 0.1
    labels = np.repeat([0, 1, 2], 4)
    assert hitting_time(P, 9, 11, labels) == near(4.0, rel=1e-14)
    assert hitting_time(P, 9, 11) == near(4.0, rel=1e-14)
    with pytest.raises(InputError, match=r"8 of 9 .*states 0, 1, 2, 3, 4, "):
        hitting_time(P, 0, 11, labels)
    assert escape_probability(P, 0, 11) == 0.0
    # from 0 only the step to 4 itself gets there first; from 1: q_2 = q_3 = q_0/2, .85 q_0 = .1 + .25 (q_2 + q_3)
    assert escape_probability(P, 0, 4) == near(0.1, rel=1e-15)
    assert escape_probability(P, 1, 4) == near(0.25 * 2 * (0.1 / 0.6), rel=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda P: hitting_times(P[:2], 0), "square"),
        (lambda P: hitting_times(-P, 0), "negative"),
        (lambda P: hitting_times(P * np.nan, 0), "non-finite"),
        (lambda P: hitting_times(P, 3), "state 3 lies outside"),
        (lambda P: hitting_times(P, -1), "state -1 lies outside"),
        (lambda P: hitting_times(P, [0, 3]), "state 3 lies outside"),
        (lambda P: hitting_times(P, [-1, 0]), "state -1 lies outside"),
        (lambda P: hitting_times(P, []), "empty"),
        (lambda P: hitting_times(P, [0.5]), "integers or a mask"),
        (lambda P: hitting_times(P, np.array([True, False])), "mask has shape"),
        (lambda P: hitting_times(P, 0, np.zeros(2, dtype=int)), "labels"),
        (lambda P: hitting_time(P, np.ones(3), 0), "sums to 3"),
        (lambda P: hitting_time(P, np.array([1.0]), 0), "start law has shape"),
        (lambda P: committor(P, [0, 1], [1, 2]), "share state 1"),
        (lambda P: escape_probability(P, 1, [1, 2]), "state 1 lies in A"),
        (lambda P: metastability_ratio(P, [0]), "at least 2"),
        (lambda P: survival(P, 0, 2, [0.5]), "whole numbers"),
        (lambda P: survival(P, 0, 2, [-1]), "whole numbers"),
        (lambda P: survival(4 * P, 0, 2, [1]), "sums? to"),
        (lambda P: survival(P * [[1], [4], [1]], 0, 2, [1]), "entries of row 1 sum to 2.66"),
        (lambda P: restricted_mean(P, 0, 2, -1), "horizon is -1"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(np.full((3, 3), 1 / 3))


def test_inputs_are_not_changed():
    graph = clustered_graph((9, 8, 7), 1e-3)
    P, csr = graph.kernel(), graph.to_scipy()
    before = P.copy()
    for kernel in (P, csr):
        for clusters in (None, graph.clusters):
            hitting_times(kernel, 3, clusters)
            escape_probabilities(kernel, 3, clusters)
            stochastic_complement(kernel, [1, 5], clusters)
        survival(kernel, 0, 3, [5, 10**5])
        restricted_mean(kernel, 0, 3, 10**5)
    assert (P == before).all()
    assert (csr.toarray() == before).all()
