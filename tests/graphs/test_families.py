"""The synthetic families: structure by definition, hitting times against closed forms of the cluster-level walk."""

import numpy as np
import pytest
from scipy import sparse as sp
from scipy.sparse.csgraph import connected_components

from mcot_torch.errors import InputError
from mcot_torch.graphs.families import regular
from mcot_torch.graphs.families.clustered import CLUSTERS, SHAPES, clustered_graph, random_regular_edges


def hitting_time(graph, start, target):
    """E[τ] from the uniform law on `start` to the set `target`, by a dense solve of (I - P) h = 1."""
    keep = np.setdiff1d(np.arange(graph.n_states), target)
    kernel = graph.kernel()[np.ix_(keep, keep)]
    h = np.zeros(graph.n_states)
    h[keep] = np.linalg.solve(np.eye(len(keep)) - kernel, np.ones(len(keep)))
    return h[start].mean()


def to_middle(graph):
    """E[τ]·ε/(KM) of the default task: uniform in C_0 to the entry of C_{K/2}."""
    time = hitting_time(graph, graph.members(0), graph.entries[[graph.n_clusters // 2]])
    return time * graph.epsilon / graph.n_states


# ---- regular graphs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "degree"), [(n, d) for n in range(3, 11) for d in range(2, n) if n * d % 2 == 0])
def test_random_regular_is_simple_regular_connected(n, degree):
    for seed in range(3):
        pairs = random_regular_edges(n, degree, np.random.default_rng(seed))
        assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs) == n * degree // 2
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert (np.bincount(pairs.ravel(), minlength=n) == degree).all()
        adjacency = sp.csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
        assert connected_components(adjacency, directed=False)[0] == 1


def test_random_regular_clusters_are_aperiodic():
    # K_{3,3} is one of the two connected cubic graphs on 6 vertices; it must never come out
    for seed in range(20):
        pairs = random_regular_edges(6, 3, np.random.default_rng(seed))
        adjacency = np.zeros((6, 6))
        adjacency[pairs[:, 0], pairs[:, 1]] = adjacency[pairs[:, 1], pairs[:, 0]] = 1
        assert np.linalg.eigvalsh(adjacency)[0] > -3 + 1e-9


@pytest.mark.parametrize(("n", "degree"), [(6, 3), (8, 3), (9, 4), (20, 5)])
def test_graphs_switched_in_step_are_those_made_one_by_one(monkeypatch, n, degree):
    # on 6 states the switched graph is often K_{3,3} and has to be switched again
    together, one_by_one = np.random.default_rng(1), np.random.default_rng(1)
    monkeypatch.setattr(regular, "_TOGETHER", 7 * n * n)
    edges, drawn = [], []
    while len(edges) < 40:
        some, more = regular.regular_together(40 - len(edges), n, degree, together, lambda: together.random())
        assert len(some) == len(more) <= 7
        edges, drawn = edges + some, drawn + more
    for pairs, number in zip(edges, drawn, strict=True):
        np.testing.assert_array_equal(pairs, random_regular_edges(n, degree, one_by_one))
        assert number == one_by_one.random()


def test_random_regular_reaches_both_cubic_shapes():
    # on 8 vertices there are 5 connected cubic graphs; triangles tell several apart
    triangles = set()
    for seed in range(40):
        pairs = random_regular_edges(8, 3, np.random.default_rng(seed))
        adjacency = np.zeros((8, 8))
        adjacency[pairs[:, 0], pairs[:, 1]] = adjacency[pairs[:, 1], pairs[:, 0]] = 1
        triangles.add(round(np.trace(np.linalg.matrix_power(adjacency, 3)) / 6))
    assert len(triangles) >= 3


# ---- structure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_uniform_law_and_numbering(cluster):
    graph = clustered_graph(5, 9, cluster=cluster)
    assert graph.clusters.tolist() == [k for k in range(5) for _ in range(9)]
    easy = np.zeros((45, 45))
    dense = ~graph.hard
    easy[graph.sources[dense], graph.indices[dense]] = graph.weights[dense]
    np.testing.assert_allclose(easy, easy.T, atol=1e-15)  # reversible with respect to the uniform law
    np.testing.assert_allclose(easy.sum(axis=0), 1, rtol=1e-14)
    assert (np.diag(easy) == 0).all()
    neighbours = {"random_regular": 4, "complete": 8, "cycle": 2}[cluster]
    assert ((easy > 0).sum(axis=1) == neighbours).all()


def cluster_edges(graph):
    return [tuple(edge) for edge in graph.clusters[graph.sparse_edges].tolist()]


@pytest.mark.parametrize(
    ("shape", "jumps"),
    [
        ("ring", [1]),
        ("bidirectional_ring", [1, -1]),
        ("circulant", [1, 2, -1]),
        ("complete", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_jumps(shape, jumps):
    graph = clustered_graph(7, 10, shape=shape)
    expected = {(k, (k + jump) % 7) for k in range(7) for jump in jumps}
    assert sorted(cluster_edges(graph)) == sorted(expected)


def test_path():
    graph = clustered_graph(4, 10, shape="path")
    assert sorted(cluster_edges(graph)) == [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_random_regular_level(degree):
    graph = clustered_graph(6, 10, shape="random_regular", out_degree=degree)
    edges = np.array(cluster_edges(graph))
    assert len({tuple(edge) for edge in edges.tolist()}) == len(edges) == 6 * degree
    assert (np.bincount(edges[:, 0]) == degree).all()
    assert (np.bincount(edges[:, 1]) == degree).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_single_entries_are_heads_and_no_sources(shape):
    graph = clustered_graph(6, 10, shape=shape)
    tails, heads = graph.sparse_edges.T
    assert (heads == graph.entries[graph.clusters[heads]]).all()
    assert (graph.entries >= 0).all()
    assert not np.isin(tails, graph.entries).any()
    assert (np.bincount(tails, minlength=60) <= 1).all()  # d_out = 1


def test_free_entries_are_distinct_where_possible():
    graph = clustered_graph(6, 10, entries="free")
    tails, heads = graph.sparse_edges.T
    assert len(set(heads.tolist())) == len(heads) == 18
    assert not np.isin(tails, heads).any()
    assert (graph.entries == -1).all()
    crowded = clustered_graph(12, 4, degree=3, shape="complete", n_out=2, d_out=6, entries="free")
    heads = crowded.sparse_edges[:, 1]
    assert (np.bincount(crowded.clusters[heads]) == 11).all()
    assert len(set(heads.tolist())) == 12 * 2  # every state that is no source


@pytest.mark.parametrize(
    ("d_out", "n_out", "sources"), [(1, None, 3), (2, None, 2), (3, None, 1), (3, 2, 2), (2, 3, 3)]
)
def test_sources_and_out_edges(d_out, n_out, sources):
    graph = clustered_graph(d_out=d_out, n_out=n_out)
    tails = graph.sparse_edges[:, 0]
    assert len(tails) == 30
    assert len(set(tails.tolist())) == 10 * sources
    assert np.bincount(tails).max() <= d_out


def test_weights_follow_the_jumps():
    graph = clustered_graph(weights=[1.0, 0.5, 0.25])
    weight = graph.weights[graph.hard]
    tail, head = graph.clusters[graph.sparse_edges].T
    for jump, expected in ((1, 1.0), (2, 0.5), (-1, 0.25)):
        assert (weight[(head - tail) % 10 == jump % 10] == expected).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("entries", ["single", "free"])
def test_same_seed_same_graph(shape, entries):
    a, b, c = (clustered_graph(shape=shape, entries=entries, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(a.kernel(), b.kernel())
    assert not np.array_equal(a.kernel(), c.kernel())


# ---- hitting times --------------------------------------------------------------------------------------------------

SHAPE_ARGUMENTS = {
    "ring": {"shape": "ring"},
    "default": {"jumps": [1, 2, -1]},
    "forward": {"jumps": [1, 2]},
    "bidirectional": {"shape": "bidirectional_ring"},
}
TABLE = {  # docs/specification.md#graph-families
    "ring": {4: 0.50, 8: 0.50, 16: 0.50},
    "default": {4: 0.25, 8: 0.33, 16: 0.35},
    "forward": {4: 0.30, 8: 0.32, 16: 0.33},
    "bidirectional": {4: 0.50, 8: 1.0, 16: 2.0},
}


def cluster_level(jumps, k):
    """E[τ]·ε/(KM) as ε -> 0: each jump is taken at rate ε/M, so hops of the walk on Z_K, over (number of jumps)·K."""
    walk = np.zeros((k, k))
    for i in range(k):
        for jump in jumps:
            walk[i, (i + jump) % k] += 1 / len(jumps)
    keep = [i for i in range(k) if i != k // 2]
    hops = np.linalg.solve(np.eye(k - 1) - walk[np.ix_(keep, keep)], np.ones(k - 1))
    return hops[0] / (len(jumps) * k)


@pytest.mark.parametrize("k", [4, 8, 16])
@pytest.mark.parametrize("shape", TABLE)
def test_hitting_times_of_the_table(shape, k):
    graph = clustered_graph(k, 24, 0.002, **SHAPE_ARGUMENTS[shape])
    jumps = {"ring": [1], "default": [1, 2, -1], "forward": [1, 2], "bidirectional": [1, -1]}[shape]
    limit = cluster_level(jumps, k)
    assert to_middle(graph) == pytest.approx(limit, rel=0.01)
    assert to_middle(graph) == pytest.approx(TABLE[shape][k], rel=0.03)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("epsilon", "expected"), [(0.002, 55_555), (0.03, 3_653)])
def test_hitting_time_of_the_default_task(seed, epsilon, expected):
    graph = clustered_graph(epsilon=epsilon, seed=seed)
    time = hitting_time(graph, graph.members(0), graph.entries[[5]])
    assert time == pytest.approx(expected, rel=0.015)


def test_next_cluster_of_a_ring():
    # one exit of probability ε at one of M equally likely states: M/ε steps
    graph = clustered_graph(6, 20, 1e-3, shape="ring")
    assert hitting_time(graph, graph.members(0), graph.entries[[1]]) == pytest.approx(20 / 1e-3, rel=0.01)
    heavy = clustered_graph(6, 20, 1e-3, shape="ring", weights=[4.0])
    assert hitting_time(heavy, heavy.members(0), heavy.entries[[1]]) == pytest.approx(5 / 1e-3, rel=0.02)


def test_every_cluster_of_a_complete_graph_is_one_exit_away():
    # from wherever the walk is, the target is entered at rate ε/M
    graph = clustered_graph(6, 20, 1e-3, shape="complete")
    assert hitting_time(graph, graph.members(0), graph.members(3)) == pytest.approx(20 / 1e-3, rel=0.02)


def test_path_is_a_reflected_walk():
    # t_i = M/ε + t_{i-1} from cluster i to i + 1, so m(m + 1)/2·M/ε to cluster m
    graph = clustered_graph(5, 20, 1e-3, shape="path")
    assert hitting_time(graph, graph.members(0), graph.members(4)) == pytest.approx(10 * 20 / 1e-3, rel=0.02)


# ---- domains --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_clusters": 1}, "n_clusters is 1; metastability needs at least 2 clusters"),
        ({"cluster_size": 1}, "cluster_size is 1; a cluster needs an entry and another state"),
        ({"epsilon": 1.5}, "epsilon is 1.5; it is a probability a step and must lie in (0, 1)"),
        ({"epsilon": 0.3, "weights": [4.0, 1.0, 1.0]}, "epsilon 0.3 times the hard-step weight W = 4"),
        ({"cluster": "star"}, "cluster is 'star'; the shapes of a cluster are random_regular, complete, cycle"),
        ({"cluster": "cycle", "cluster_size": 2, "d_out": 3}, "cluster_size is 2; a cycle needs at least 3"),
        ({"entries": "two"}, "entries is 'two'; it is one of single, free"),
        ({"shape": "star"}, "family is 'star'; the synthetic families are circulant, ring"),
        ({"seed": -1}, "seed is -1; it must be a non-negative integer"),
        ({"d_out": 0}, "d_out is 0"),
        ({"n_out": 0}, "n_out is 0; every cluster needs at least 1 source"),
        ({"n_out": 4}, "n_out is 4, but a cluster has only 3 hard steps; use n_out <= 3"),
        ({"n_out": 2}, "n_out is 2 and d_out 1: 2 hard edges a cluster, but it has 3; raise n_out to 3 or d_out to 2"),
        (
            {"cluster_size": 3, "degree": 2},
            "n_out is 3, and with the entry state a cluster needs 4 states; cluster_size is 3",
        ),
        ({"degree": 32}, "degree is 32; with cluster_size 32 it must lie in 1 .. 31"),
        ({"degree": 0}, "degree is 0; with"),
        ({"degree": 3, "cluster_size": 9}, "degree is 3 and cluster_size 9: no regular graph has an odd number"),
        ({"degree": 1}, "degree is 1; a cluster of 32 states with it is not connected"),
        ({"jumps": []}, "jumps is empty"),
        ({"jumps": [1, 20]}, "jumps holds 20, which is 0 mod n_clusters 10"),
        ({"n_clusters": 3}, "jumps 2 and -1 are equal mod n_clusters 3"),
        ({"jumps": [2, 4]}, "jumps [2, 4] and n_clusters 10 share the divisor 2"),
        (
            {"shape": "bidirectional_ring", "n_clusters": 2},
            "n_clusters is 2; in a bidirectional_ring +1 and -1 collide",
        ),
        ({"shape": "random_regular", "out_degree": 10}, "out_degree is 10; with n_clusters 10 it must lie in 1 .. 9"),
        ({"weights": [1.0]}, "weights has 1 entries, but a cluster has 3 hard steps; give one each"),
        ({"weights": [1.0, -1.0, 1.0]}, "weights holds -1.0; the weight of a hard step is positive and finite"),
        ({"weights": [1.0, float("nan"), 1.0]}, "weights holds nan"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(InputError) as error:
        clustered_graph(**arguments)
    assert str(error.value).startswith(message)
