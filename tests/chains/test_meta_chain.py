import mpmath
import numpy as np
import pytest
from chain_support import Exact, clustered_graph, near, worst

from mcot_torch.chains import escape_probability, meta_chain, pair_kernel, rescale, stationary_law
from mcot_torch.chains.meta_chain import cluster_laws
from mcot_torch.errors import InputError
from mcot_torch.graphs.graph import MetastableGraph


@pytest.mark.parametrize("epsilon", [1e-1, 1e-6, 1e-14])
@pytest.mark.parametrize("sizes", [(6, 5, 1, 4), (5, 6)])
def test_meta_chain_to_twelve_digits(epsilon, sizes):
    graph = clustered_graph(sizes, epsilon, seed=1, jumps=(1,) if len(sizes) == 2 else (1, 2))
    exact, q = Exact(graph.kernel()), meta_chain(graph)
    law = np.zeros(graph.n_states, dtype=object)
    for k in range(graph.n_clusters):
        block = graph.with_epsilon(1e-300).kernel()[np.ix_(graph.members(k), graph.members(k))]
        law[graph.members(k)] = Exact(block).stationary() if len(block) > 1 else [mpmath.mpf(1)]
    assert worst(cluster_laws(graph), law) < 1e-13
    for target in range(graph.n_clusters):
        escape = exact.escape(graph.members(target))
        for k in range(graph.n_clusters):
            if k != target:
                expected = sum(law[x] ** 2 * escape[int(x)] for x in graph.members(k))
                assert worst([q[k, target]], [expected]) < 1e-12
    assert q.sum(1) == near(np.ones(len(sizes)), rel=1e-14)


def test_meta_chain_of_unequal_clusters_takes_the_plain_way_to_the_same_numbers():
    graph = clustered_graph((40, 2, 3, 2), 1e-5)
    q, law, P = meta_chain(graph), cluster_laws(graph), graph.kernel()
    expected = sum(law[x] ** 2 * escape_probability(P, int(x), graph.members(2)) for x in graph.members(0))
    assert q[0, 2] == near(expected, rel=1e-12)


def test_meta_chain_of_complete_clusters_as_epsilon_vanishes():
    # Ring of two-state clusters with symmetric dense edges: Σ μ² P_x(τ_l < τ_x) = Σ_x μ_x² ε w π(source)/μ_x = ε w/M
    graph = clustered_graph((2, 2, 2), 1e-12, jumps=(1,))
    w = graph.weights[graph.hard]
    q = meta_chain(graph)
    for k in range(3):
        assert q[k, (k + 1) % 3] == near(1e-12 * w[k] / 2, rel=1e-9)
    assert (q > 0).all()  # also between clusters that share no edge


@pytest.mark.parametrize(("n_clusters", "constant"), [(4, 2.0), (8, 1.5), (16, 17 / 12)])
def test_uniform_escape_of_the_default_family(n_clusters, constant):
    # A4 on circulant jumps +1, +2, -1 between complete clusters: min q* M/ε as ε -> 0. In that limit
    # q*(l|k) = ε/M · 3 P_k(τ_l < τ̄_k) of the cluster-level walk; K = 4 is the complete graph: 3 · 2/3
    M, epsilon = 5, 1e-10
    inside, heads = np.nonzero(np.kron(np.eye(n_clusters), np.ones((M, M))))
    k = np.repeat(np.arange(n_clusters), 3)
    hard = (k * M + np.tile([1, 2, 3], n_clusters), (k + np.tile([1, 2, -1], n_clusters)) % n_clusters * M)
    graph = MetastableGraph.from_edges(
        (inside, heads, np.full(len(inside), 1 / M)),
        (*hard, np.ones(len(k))),
        np.repeat(np.arange(n_clusters), M),
        epsilon,
    )
    q = meta_chain(graph)
    assert q[~np.eye(n_clusters, dtype=bool)].min() * M / epsilon == near(constant, rel=1e-7)


def test_pair_kernel_of_single_states_is_the_chain():
    P = np.random.default_rng(0).dirichlet(np.ones(6), size=6)
    assert pair_kernel(P, np.arange(6), 6) == near(P, rel=1e-14)


@pytest.mark.parametrize("leave", [1e-1, 1e-12])
def test_pair_kernel_of_a_lumpable_chain_is_its_quotient(leave):
    K, M = 4, 5
    hop = np.roll(np.eye(K), 1, axis=1)
    P = np.kron(np.eye(K), np.full((M, M), 1 / M)) * (1 - leave) + np.kron(hop, np.full((M, M), leave / M))
    q = pair_kernel(P, np.repeat(np.arange(K), M), K)
    assert q[hop > 0] == near(np.full(K, leave), rel=1e-13)
    assert np.diagonal(q) == near(np.full(K, 1 - leave), rel=1e-15)
    assert np.count_nonzero(q) == 2 * K


def test_pair_kernel_against_its_formula_and_law():
    graph = clustered_graph((8, 5, 7), 1e-2)
    P, law, labels = graph.kernel(), stationary_law(graph.kernel()), graph.clusters
    flow = [[sum(law[x] * P[x, labels == b].sum() for x in graph.members(a)) for b in range(3)] for a in range(3)]
    expected = np.array(flow) / np.bincount(labels, law)[:, None]
    q = pair_kernel(graph.to_scipy(), labels, 3)
    assert q == near(expected, rel=1e-12)
    assert stationary_law(q) == near(np.bincount(labels, law), rel=1e-12)


def test_q_star_and_pair_kernel_meet_as_epsilon_vanishes():
    # Proposition 4.1: the distilled kernel has the escape rates of q*. With one hard edge out of each cluster the
    # next cluster is certain: q*(k+1|k) = Σ_x μ_x² ε w μ_s / μ_x = ε w μ_s = q°(k+1|k)
    graph = clustered_graph((8, 5, 7), 1e-11, jumps=(1,))
    q, pairs = meta_chain(graph), pair_kernel(graph.to_scipy(), graph.clusters, 3)
    for k in range(3):
        assert q[k, (k + 1) % 3] == near(pairs[k, (k + 1) % 3], rel=1e-8)


def test_labels_without_states_and_wrong_labels():
    q = pair_kernel(np.full((2, 2), 0.5), np.array([0, 2]), 3)
    assert q.tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    for labels in ([0, 2], [-1, 0], [0, 1, 0]):
        with pytest.raises(InputError, match="labels of shape"):
            pair_kernel(np.full((2, 2), 0.5), np.array(labels), 2)


@pytest.mark.parametrize("beta", [0.0, 3.0, -2.0, 500.0, 1000.0, -1000.0])
def test_rescale_multiplies_the_odds(beta):
    q = np.array([[1 - 3e-6, 1e-6, 2e-6], [0.0, 0.75, 0.25], [0.0, 0.0, 1.0]])
    out = rescale(q, beta)
    assert out.sum(1) == near(np.ones(3), rel=1e-15)
    assert ((out == 0) == (q == 0)).all() or abs(beta) > 700
    assert (out[q == 0] == 0).all()
    assert out[0, 2] == near(2 * out[0, 1], rel=1e-14)
    with np.errstate(over="ignore"):
        odds = np.exp(beta) * q[1, 2] / q[1, 1]
    assert out[1, 2] == near(1.0 if np.isinf(odds) else odds / (1 + odds), rel=1e-14)


def test_rescale_by_log_m_over_epsilon_makes_hops_likely():
    # ring with escape ε/M: odds ε/M · M/ε = 1 up to the stay 1 - ε/M
    M, epsilon, K = 32, 1e-9, 4
    q = (1 - epsilon / M) * np.eye(K) + epsilon / M * np.roll(np.eye(K), 1, axis=1)
    out = rescale(q, np.log(M / epsilon))
    assert np.diagonal(np.roll(out, -1, axis=1)) == near(np.full(K, 0.5), rel=1e-9)


@pytest.mark.parametrize("beta", [1000.0, 2.0, -2.0, -1000.0])
def test_rescale_leaves_what_is_certain(beta):
    q = np.array([[0.0, 0.25, 0.75], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
    assert rescale(q, beta)[:2].tolist() == q[:2].tolist()


@pytest.mark.parametrize(
    "q", [np.ones((2, 2)), np.full((2, 3), 1 / 3), np.full(2, 0.5), np.array([[1.5, -0.5], [0.5, 0.5]])]
)
def test_rescale_needs_laws(q):
    with pytest.raises(InputError, match="laws"):
        rescale(q, 1.0)
