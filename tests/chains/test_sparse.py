"""Elimination in layers, its rounds and its fallback, against one dense elimination and closed forms."""

import numpy as np
import pytest
from chain_support import Exact, clustered_graph, near, worst
from scipy import sparse as sp

from mcot_torch.chains import committor, hitting_time, hitting_times, pair_kernel, sparse, stationary_law
from mcot_torch.chains.elimination import gth_solve, off_diagonal
from mcot_torch.chains.layers import Chain, ClusterLayer, Round, few_neighbours
from mcot_torch.chains.refined import refined_solve
from mcot_torch.errors import InputError
from mcot_torch.graphs.families import clustered as families

EPSILONS = [1e-1, 1e-2, 1e-6, 1e-10, 1e-14, 1e-30]
UNEQUAL = (7, 1, 23, 2, 1, 40, 13, 3, 9, 31)


@pytest.fixture
def tiny_core(monkeypatch):
    """Rounds down to a handful of states, so that small chains take the way of large ones."""
    monkeypatch.setattr(sparse.eliminate, "__defaults__", (0.0, 3))
    monkeypatch.setattr(sparse, "_FULL", 1.1)
    monkeypatch.setattr(sparse, "_WORTHWHILE", 0.0)


def system(graph, target):
    """Off-diagonal rates, exits and labels of the chain stopped in `target`."""
    rest = np.setdiff1d(np.arange(graph.n_states), target)
    P = graph.to_scipy()[rest]
    return off_diagonal(P[:, rest]), np.asarray(P[:, target].sum(1)), graph.clusters[rest]


def ring_of_states(n, up=0.5, down=0.5):
    i = np.arange(n)
    return sp.csr_array((np.repeat([up, down], n), (np.r_[i, i], np.r_[(i + 1) % n, (i - 1) % n])), shape=(n, n))


# ---- against one dense elimination --------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("shape", families.SHAPES)
@pytest.mark.parametrize("cluster", families.CLUSTERS)
def test_every_family_agrees_with_the_dense_elimination(tiny_core, shape, cluster, epsilon):
    graph = families.clustered_graph(
        9, 8 if cluster == "random_regular" else 7, min(epsilon, 0.05), shape=shape, cluster=cluster, degree=3,
        d_out=4, entries="free",
    )  # fmt: skip
    P, dense = graph.to_scipy(), graph.kernel()
    for target in ([20], [3, 4, 30], graph.members(5), [0, 20, 60]):
        expected = hitting_times(dense, target)
        assert hitting_times(P, target, graph.clusters) == near(expected, rel=1e-13)
        assert hitting_times(P, target) == near(expected, rel=1e-13)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_unequal_clusters_agree_with_the_dense_elimination(tiny_core, epsilon):
    graph = clustered_graph(UNEQUAL, epsilon, seed=3, jumps=(1, 2, -1))
    P, dense = graph.to_scipy(), graph.kernel()
    for target in ([7], [0, 50, 120], graph.members(5)):
        assert hitting_times(P, target, graph.clusters) == near(hitting_times(dense, target), rel=1e-13)
        assert hitting_times(P, target) == near(hitting_times(dense, target), rel=1e-13)
    q = committor(dense, [7], [0, 50])
    assert committor(P, [7], [0, 50], graph.clusters) == near(q, rel=1e-13)
    law = stationary_law(dense)
    assert stationary_law(P, graph.clusters) == near(law, rel=1e-12)
    assert stationary_law(P) == near(law, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 500, 10**6])
@pytest.mark.parametrize("largest", [5, 30, 2000])
def test_batches_and_clusters_too_large_for_a_block_change_nothing(monkeypatch, tiny_core, batch, largest):
    from mcot_torch.chains import layers

    monkeypatch.setattr(layers, "_BATCH", batch)
    monkeypatch.setattr(layers, "_LARGEST_BLOCK", largest)
    graph = clustered_graph(UNEQUAL, 1e-9, seed=4)
    expected = hitting_times(graph.kernel(), [9, 100])
    assert hitting_times(graph.to_scipy(), [9, 100], graph.clusters) == near(expected, rel=1e-13)


@pytest.mark.parametrize(("largest", "whole"), [(2000, []), (5, [0]), (4, [0, 1])])
def test_what_is_left_of_the_clusters_are_their_portals(monkeypatch, largest, whole):
    """The states at the ends of hard steps; clusters of more states than fit into a block stay whole."""
    from mcot_torch.chains import layers

    monkeypatch.setattr(layers, "_LARGEST_BLOCK", largest)
    graph = clustered_graph((6, 5, 4), 1e-3)
    chain = Chain(off_diagonal(graph.to_scipy()), np.zeros(15), np.zeros((15, 0)))
    layer, rest = ClusterLayer.of(chain, graph.clusters)
    left = set(graph.sparse_edges.ravel().tolist()).union(*(graph.members(k).tolist() for k in whole))
    assert layer.kept.tolist() == sorted(left)
    assert rest.rates.shape == (len(left), len(left))


@pytest.mark.parametrize("epsilon", [1e-2, 1e-14])
def test_rounds_keep_twelve_digits(tiny_core, epsilon):
    graph = clustered_graph((5, 1, 6, 3, 7), epsilon, seed=5)
    assert worst(hitting_times(graph.to_scipy(), 8), Exact(graph.kernel()).hitting_times([8])) < 1e-13


def test_a_round_eliminates_states_that_are_not_joined():
    rng = np.random.default_rng(0)
    A = off_diagonal(sp.random_array((60, 60), density=0.05, rng=rng))
    gone = few_neighbours(A, rng.random(60))
    assert gone.any()
    assert A[gone][:, gone].nnz == 0
    exits, right = rng.random(60), rng.random((60, 2))
    layer, rest = Round.of(Chain(A, exits, right), gone)
    assert rest.rates.diagonal().tolist() == [0.0] * len(layer.kept)
    X = layer.back(gth_solve(rest.rates.toarray(), rest.exits, rest.right))
    assert X == near(gth_solve(A.toarray(), exits, right), rel=1e-13)


# ---- closed forms at size -----------------------------------------------------------------------------------------


def test_a_symmetric_walk_on_a_large_ring():
    n = 20_001
    i = np.arange(n)
    assert hitting_times(ring_of_states(n), 0) == near(i * (n - i), rel=1e-12)


def test_a_long_birth_and_death_chain():
    n, up, down = 30_000, 1e-3, 9.99e-4
    P = sp.diags_array([np.full(n, up), np.full(n, down)], offsets=[1, -1], shape=(n + 1, n + 1), format="csr")
    # E_i[τ_{i+1}] = (1 - r^{i+1}) / (up - down), r = down / up
    steps = -np.expm1(np.arange(1, n + 1) * np.log(down / up)) / 1e-6
    expected = np.append(np.cumsum(steps[::-1])[::-1], 0.0)
    assert hitting_times(P, n) == near(expected, rel=2e-9)  # up - down itself has lost 1e-10
    assert hitting_times(P, n, np.arange(n + 1) // 100) == near(hitting_times(P, n), rel=1e-12)


def lumpable(K, M, epsilon, jumps=(1, 2, -1)):
    """Complete clusters whose every state leaves along each jump with probability ε/M for each of the next M states."""
    source = np.repeat(np.arange(K * M), M)
    cluster, within = source // M, np.tile(np.arange(M), K * M)
    parts = [(source, cluster * M + within, np.full(len(source), (1 - len(jumps) * epsilon) / M))]
    parts += [(source, (cluster + j) % K * M + within, np.full(len(source), epsilon / M)) for j in jumps]
    s, t, v = (np.concatenate(x) for x in zip(*parts, strict=True))
    quotient = np.zeros((K, K))
    for j in jumps:
        quotient[np.arange(K), (np.arange(K) + j) % K] = epsilon
    return sp.csr_array((v, (s, t)), shape=(K * M, K * M)), quotient


@pytest.mark.parametrize("epsilon", [1e-2, 1e-14])
def test_a_lumpable_chain_has_the_times_of_its_quotient(epsilon):
    K, M = 300, 11
    P, quotient = lumpable(K, M, epsilon)
    expected = np.repeat(hitting_times(quotient, 0), M)
    assert hitting_times(P, np.arange(M), np.arange(K * M) // M) == near(expected, rel=1e-12)
    assert hitting_times(P, np.arange(M)) == near(expected, rel=1e-12)


def test_identical_clusters_have_the_time_of_one():
    # A ring of K equal clusters: from entry to entry K independent copies of one crossing.
    K, M, epsilon = 400, 15, 1e-14
    inside = np.array([(i, j) for i in range(M) for j in range(M) if i != j])
    first = M * np.repeat(np.arange(K), len(inside))
    tails, heads = np.tile(inside, (K, 1)).T + first
    from mcot_torch.graphs.graph import MetastableGraph

    k = np.arange(K)
    ring = (k * M + 1, (k + 1) % K * M, np.ones(K))
    graph = MetastableGraph.from_edges(
        (tails, heads, np.full(len(tails), 1 / (M - 1))), ring, np.arange(K * M) // M, epsilon
    )
    one = np.zeros((M + 1, M + 1))
    one[:M, :M] = graph.to_scipy()[:M][:, :M].toarray()
    one[1, M] = epsilon
    crossing = hitting_times(one, M)[0]
    for labels in (graph.clusters, None):
        assert hitting_time(graph.to_scipy(), 0, M * (K - 1), labels) == near((K - 1) * crossing, rel=1e-12)


def residual(P, h, target):
    """Largest |1 + Σ_{y≠x} P_xy (h_y - h_x)| outside the target, relative to what is summed, in extended precision."""
    edges, h = off_diagonal(P).tocoo(), h.astype(np.longdouble)
    flow = edges.data * (h[edges.col] - h[edges.row])
    total, scale = np.ones(len(h), np.longdouble), np.ones(len(h), np.longdouble)
    np.add.at(total, edges.row, flow)
    np.add.at(scale, edges.row, edges.data * (h[edges.col] + h[edges.row]))
    off = np.delete(np.abs(total) / scale, target)
    return float(off.max())


@pytest.mark.parametrize("epsilon", [1e-2, 1e-8, 1e-14])
def test_first_step_equations_at_twenty_thousand_states(epsilon):
    graph = families.clustered_graph(200, 100, epsilon, (1, 2, -1))
    h = hitting_times(graph.to_scipy(), graph.entries[100], graph.clusters)
    assert residual(graph.to_scipy(), h, graph.entries[100]) < 1e-14
    # the same numbers by another order of elimination
    assert hitting_times(graph.to_scipy(), graph.entries[100]) == near(h, rel=1e-12)


@pytest.mark.slow
def test_a_hundred_thousand_states():
    graph = families.clustered_graph(1000, 100, 1e-12)
    P, target = graph.to_scipy(), graph.entries[[500]]
    h = hitting_times(P, target, graph.clusters)
    assert residual(P, h, target) < 1e-14
    assert hitting_times(P, target) == near(h, rel=1e-12)
    law = stationary_law(P, graph.clusters)
    assert law == near(np.full(graph.n_states, 1e-5), rel=0.5)
    q = pair_kernel(P, graph.clusters, 1000)
    off = q[np.arange(1000), (np.arange(1000) + 2) % 1000]
    assert off == near(np.full(1000, 1e-14), rel=1e-8)


# ---- LU that proves its answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-1, 1e-4, 1e-8, 1e-11, 1e-12, 1e-13, 1e-14, 1e-16, 1e-30])
def test_refined_lu_is_right_or_says_nothing(epsilon):
    graph = families.clustered_graph(10, 50, epsilon)
    rates, exits, labels = system(graph, graph.entries[[5]])
    right = np.stack([np.ones(len(exits)), exits], axis=1)  # times, and a committor that is 1 everywhere
    expected = sparse.solve(rates, exits, right, labels)
    assert expected[:, 1] == near(np.ones(len(exits)), rel=1e-12)
    answer = refined_solve(rates, exits, right)
    if epsilon >= 1e-11:
        assert answer is not None
    if epsilon <= 1e-16:
        assert answer is None
    if answer is not None:
        assert answer == near(expected, rel=2e-13)


def test_a_wrong_answer_is_not_given_though_the_factors_claim_a_small_error(monkeypatch):
    """From a ring that is left with probability .1 a step takes 10 steps; the factors say 10.00001 once, then "no error"."""
    from mcot_torch.chains import refined

    class Boastful:
        def __init__(self, *_, **__):
            self.answers = iter([np.array([[10.00001], [10], [10], [10], [10]])])

        def solve(self, right):
            return next(self.answers, np.full(right.shape, 1e-13))

    ring, exits = ring_of_states(5, 0.45, 0.45), np.full(5, 0.1)
    assert refined_solve(ring, exits, np.ones((5, 1))) == near(np.full((5, 1), 10.0), rel=1e-13)
    monkeypatch.setattr(refined, "splu", Boastful)
    assert refined_solve(ring, exits, np.ones((5, 1))) is None


def test_refined_lu_of_small_committors():
    # gambler's ruin against the drift: the committor falls to 1e-21
    P = sp.csr_array(ring_of_states(61, 0.3, 0.7)[1:60])
    rates, up, down = off_diagonal(P[:, 1:60]), P[:, [60]].toarray(), P[:, [0]].toarray()
    answer = refined_solve(rates, (up + down)[:, 0], up)
    i, r = np.arange(1, 60), 0.7 / 0.3
    assert answer is not None
    assert answer[:, 0] == near((r**i - 1) / (r**60 - 1), rel=1e-12)


def test_refined_lu_of_nothing_is_nothing_and_of_a_closed_chain_none():
    A = sp.csr_array(np.array([[0.0, 0.5], [0.25, 0.0]]))
    assert refined_solve(A, np.array([0.5, 0.0]), np.zeros((2, 1))).tolist() == [[0.0], [0.0]]
    # (D - A) x = 1 has no solution where nothing leaves: its rows sum to 0 with positive weights
    assert refined_solve(sp.csr_array(np.array([[0.0, 1.0], [1.0, 0.0]])), np.zeros(2), np.ones((2, 1))) is None


@pytest.mark.parametrize("epsilon", [1e-2, 1e-15])
def test_a_core_that_fills_up_is_solved_by_either_way(monkeypatch, epsilon):
    calls = []
    monkeypatch.setattr(sparse, "refined_solve", lambda *a: calls.append(refined_solve(*a)) or calls[-1])
    monkeypatch.setattr(sparse, "_SOON_DENSE", 10)
    monkeypatch.setattr(sparse, "_WORTHWHILE", 0.5)
    graph = families.clustered_graph(40, 12, epsilon, shape="random_regular", out_degree=5)
    h = hitting_times(graph.to_scipy(), 7, graph.clusters)
    assert h == near(hitting_times(graph.kernel(), 7), rel=1e-12)
    assert [answer is None for answer in calls] == [epsilon == 1e-15]


def test_what_is_too_large_says_so(monkeypatch):
    monkeypatch.setattr(sparse, "_SOON_DENSE", 10)
    monkeypatch.setattr(sparse, "_LARGEST_CORE", 20)
    graph = families.clustered_graph(40, 12, 1e-15, shape="random_regular", out_degree=5)
    with pytest.raises(InputError, match=r"more than 20 are too many .* give cluster labels"):
        hitting_times(graph.to_scipy(), 7, graph.clusters)
    # with LU's proof the same chain is solved
    easy = graph.with_epsilon(1e-2)
    assert hitting_times(easy.to_scipy(), 7, graph.clusters) == near(hitting_times(easy.kernel(), 7), rel=1e-12)


def test_the_largest_core_is_still_a_matrix(monkeypatch):
    monkeypatch.setattr(sparse, "_LARGEST_CORE", 20)
    assert sparse._matrix(sp.eye_array(20, format="csr")).tolist() == np.eye(20).tolist()
    with pytest.raises(InputError, match=r"21 states .* more than 20 are too many"):
        sparse._matrix(sp.eye_array(21, format="csr"))


def test_an_unreachable_target_is_named_on_the_way_of_large_chains(tiny_core):
    P = sp.block_diag([ring_of_states(30), ring_of_states(30)], format="csr")
    for labels in (None, np.arange(60) // 7):
        with pytest.raises(InputError, match="30 of 60 states cannot reach"):
            hitting_times(P, 3, labels)
