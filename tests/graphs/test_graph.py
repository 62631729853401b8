"""MetastableGraph: the kernel by hand, every check with its message, files, exactness in ε."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest

from mcot_torch.errors import InputError
from mcot_torch.graphs import MetastableGraph

EDGES = ([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 2, 3, 2, 3], [0.5, 0.5, 0.25, 0.75, 0.5, 0.5, 0.5, 0.5])
HARD = ([1, 3], [2, 0], [1.0, 2.0])


def build(dense=EDGES, hard=HARD, clusters=(0, 0, 1, 1), epsilon=0.01, names=None):
    dense, hard = (tuple(np.array(column) for column in edges) for edges in (dense, hard))
    return MetastableGraph.from_edges(dense, hard, np.array(clusters), epsilon, names)


@pytest.fixture
def graph():
    """Two clusters of two states: 0, 1 and 2, 3; hard steps 1 -> 2 (w = 1) and 3 -> 0 (w = 2)."""
    return build()


def test_kernel_by_hand(graph):
    expected = [
        [0.5, 0.5, 0, 0],
        [0.25 * 0.99, 0.75 * 0.99, 0.01, 0],
        [0, 0, 0.5, 0.5],
        [0.02, 0, 0.5 * 0.98, 0.5 * 0.98],
    ]
    np.testing.assert_allclose(graph.kernel(), expected, rtol=1e-15)
    np.testing.assert_array_equal(graph.to_scipy().toarray(), graph.kernel())
    indptr, indices, probabilities = graph.to_torch()
    assert indptr.tolist() == [0, 2, 5, 7, 10]
    assert indices.tolist() == [0, 1, 0, 1, 2, 2, 3, 0, 2, 3]
    assert probabilities.tolist() == graph.probabilities.tolist()


def test_sizes_and_views(graph):
    assert (graph.n_states, graph.n_edges, graph.n_clusters, graph.cluster_size) == (4, 10, 2, 2)
    assert graph.sparse_edges.tolist() == [[1, 2], [3, 0]]
    assert graph.entries.tolist() == [0, 2]
    assert graph.hard_weight.tolist() == [0, 1, 0, 2]
    assert graph.epsilon_limit == 0.5
    assert graph.members(1).tolist() == [2, 3]


def test_two_heads_into_a_cluster_leave_it_without_an_entry():
    graph = build(hard=([1, 0, 3], [2, 3, 0], [1.0, 1.0, 1.0]))
    assert graph.entries.tolist() == [0, -1]


def test_with_epsilon_is_exact(graph):
    there_and_back = graph.with_epsilon(1e-300).with_epsilon(0.01)
    assert np.array_equal(there_and_back.probabilities, graph.probabilities)
    tiny = graph.with_epsilon(1e-300)
    assert tiny.kernel()[1, 2] == 1e-300
    assert tiny.kernel()[3, 0] == 2e-300
    assert tiny.kernel()[1, 1] == 0.75
    assert graph.epsilon == 0.01


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        (0.0, "epsilon is 0.0; it is a probability a step and must lie in (0, 1)"),
        (1.0, "epsilon is 1.0; it is"),
        (float("nan"), "epsilon is nan; it is"),
        (0.5, "epsilon 0.5 times the hard-step weight W = 2 of state 3 is 1; it must be below 1: use epsilon < 0.5"),
    ],
)
def test_with_epsilon_checks_its_domain(graph, epsilon, message):
    with pytest.raises(InputError) as error:
        graph.with_epsilon(epsilon)
    assert str(error.value).startswith(message)


def test_names():
    graph = build(names=("begin", "expand", "factor", "finish"))
    assert graph.state("factor") == 2
    assert graph.name(3) == "finish"
    with pytest.raises(InputError, match="unknown state 'factr': the graph has 4 states; did you mean 'factor'"):
        graph.state("factr")
    with pytest.raises(InputError, match="the first is 'begin', the last 'finish'"):
        graph.state("0")


def test_states_without_names_are_called_by_number(graph):
    assert graph.state("2") == graph.state(2) == 2
    with pytest.raises(InputError, match=r"unknown state '4': the states are numbered 0 \.\. 3"):
        graph.state(4)


def weights(graph, i, value):
    changed = graph.weights.copy()
    changed[i] = value
    return replace(graph, weights=changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: replace(g, indptr=g.indptr[:-1]), "row pointers do not fit a graph of 4 states and 10 edges"),
        (lambda g: replace(g, indptr=np.array([0, 5, 2, 7, 10])), "row pointers must not decrease"),
        (lambda g: replace(g, weights=g.weights[:-1]), "10 edges but 9 weights and 10 hard-step marks"),
        (lambda g: replace(g, hard=g.hard[:-1]), "10 edges but 10 weights and 9 hard-step marks"),
        (
            lambda g: replace(g, indices=np.where(g.indices == 3, 4, g.indices)),
            "an edge points outside the states 0 .. 3",
        ),
        (lambda g: replace(g, indices=np.where(g.indices == 3, -1, g.indices)), "an edge points outside the states"),
        (lambda g: replace(g, entries=g.entries[:1]), "the graph has 1 cluster(s); metastability needs at least 2"),
        (lambda g: replace(g, clusters=np.array([0, 0, 2, 2])), "clusters must be labelled 0 .. 1, each with"),
        (lambda g: replace(g, names=("a", "b", "c", "a")), "4 states need 4 different names; got 3 different of 4"),
        (
            lambda g: replace(g, indices=np.array([1, 0, 0, 1, 2, 2, 3, 0, 2, 3])),
            "edge 0 -> 0 stands twice or out of order",
        ),
        (lambda g: weights(g, 4, -1.0), "edge 1 -> 2 has weight -1.0; weights are positive and finite"),
        (lambda g: weights(g, 0, np.nan), "edge 0 -> 0 has weight nan"),
        (lambda g: weights(g, 4, np.inf), "edge 1 -> 2 has weight inf"),
        (lambda g: replace(g, hard=np.zeros(10, bool)), "edge 1 -> 2 is marked dense, and a dense edge stays in its"),
        (
            lambda g: replace(g, hard=np.ones(10, bool)),
            "edge 0 -> 0 is marked hard, and a hard edge joins two clusters",
        ),
        (lambda g: weights(g, 0, 0.4), "the dense edges of state 0 sum to 0.9; every row must sum to 1"),
        (lambda g: replace(g, epsilon=2.0), "epsilon is 2.0"),
        (lambda g: replace(g, epsilon=0.6), "epsilon 0.6 times the hard-step weight W = 2 of state 3 is 1.2"),
        (lambda g: replace(g, entries=np.array([2, 0])), "the entry state 2 of cluster 0 does not lie in it"),
        (lambda g: replace(g, entries=np.array([1, 2])), "the entry state of cluster 0 is given as 1, but"),
    ],
)
def test_validate_names_what_is_wrong(graph, change, message):
    with pytest.raises(InputError) as error:
        change(graph).validate()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": ()}, "an edge names a state outside 0 .. -1"),
        ({"hard": ([1, 3], [4, 0], [1.0, 1.0])}, "an edge names a state outside 0 .. 3"),
        ({"clusters": (0, 0, -1, -1)}, "state 2 lies in cluster -1; clusters are numbered from 0"),
        ({"clusters": (0, 0, 0, 0)}, "the graph has 1 cluster(s)"),
        (
            {"dense": ([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 3], [0.5] * 6)},
            "state 3 has no dense edge: every state needs an easy step",
        ),
        ({"hard": ([1, 1, 3], [2, 2, 0], [1.0, 1.0, 1.0])}, "edge 1 -> 2 stands twice or out of order"),
        (
            {"dense": ([0, 1, 2, 2, 3, 3], [0, 1, 2, 3, 2, 3], [1.0, 1.0, 0.5, 0.5, 0.5, 0.5])},
            "cluster 0 is not connected by its dense edges: state 1 and state 0 do not reach each other",
        ),
        ({"hard": ([1], [2], [1.0])}, "the graph has a part that cannot be left: 2 state(s)"),
    ],
)
def test_from_edges_names_what_is_wrong(arguments, message):
    with pytest.raises(InputError) as error:
        build(**arguments)
    assert str(error.value).startswith(message)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [None, ("α", "two words", "c", "d")])
def test_save_and_load(tmp_path, names):
    graph = build(names=names)
    graph.save(tmp_path / "graph.npz")
    back = MetastableGraph.load(tmp_path / "graph.npz")
    for key in ("indptr", "indices", "weights", "hard", "clusters", "entries"):
        a, b = getattr(graph, key), getattr(back, key)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert (back.epsilon, back.names) == (graph.epsilon, names)
    assert [p.name for p in tmp_path.iterdir()] == ["graph.npz"]


def test_load_refuses_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.npz: no such graph file"):
        MetastableGraph.load(tmp_path / "none.npz")


def saved_arrays(graph, tmp_path):
    graph.save(tmp_path / "graph.npz")
    with np.load(tmp_path / "graph.npz") as file:
        return dict(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, "not a graph file, weights missing"),
        ({"indices": np.zeros(10)}, "indices has dtype float64 and 1 axes; expected int64"),
        ({"indices": np.zeros((10, 1), np.int64)}, "indices has dtype int64 and 2 axes; expected int64"),
        ({"hard": np.zeros(10, np.int8)}, "hard has dtype int8"),
        ({"epsilon": np.array([0.1])}, "epsilon has dtype float64 and 1 axes"),
        ({"epsilon": np.array(7.0)}, "epsilon is 7.0"),
        ({"clusters": np.array([0, 0, 1, -1])}, "clusters must be labelled 0 .. 1"),
        ({"clusters": np.array([0, 0, 1, 2**60])}, "clusters must be labelled 0 .. 1"),
        ({"indices": np.full(10, 2**62)}, "an edge points outside the states"),
        ({"indptr": np.array([0, 2**62, 0, 0, 10])}, "row pointers must not decrease"),
        ({"names": np.array("abcd")}, "not a readable graph file"),
        ({"names": np.array(["a", "b", "c", "a"])}, "4 states need 4 different names"),
        ({"names": np.array([{}, 1, 2, 3], dtype=object)}, "not a readable graph file"),
    ],
)
def test_load_refuses_crafted_arrays(graph, tmp_path, change, message):
    arrays = {**saved_arrays(graph, tmp_path), **change}
    np.savez(tmp_path / "bad.npz", **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(InputError) as error:
        MetastableGraph.load(tmp_path / "bad.npz")
    assert str(error.value).startswith(f"{tmp_path / 'bad.npz'}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 not a zip", b"source,target\n", b"\x93NUMPY\x01\x00", b"\x80\x04."]
)
def test_load_refuses_other_files(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(InputError, match="not a readable graph file"):
        MetastableGraph.load(tmp_path / "bad.npz")


def test_load_refuses_a_plain_array(tmp_path):
    np.save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(InputError, match="not a readable graph file"):
        MetastableGraph.load(tmp_path / "bad.npy")


def test_load_refuses_a_truncated_and_a_damaged_archive(graph, tmp_path):
    graph.save(tmp_path / "graph.npz")
    content = (tmp_path / "graph.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable graph file"):
        MetastableGraph.load(tmp_path / "cut.npz")
    with zipfile.ZipFile(tmp_path / "graph.npz") as archive:
        info = archive.getinfo("weights.npy")
    at = info.header_offset + len(content[info.header_offset :].split(b"weights.npy")[0]) + 40
    damaged = content[:at] + bytes(b ^ 0xFF for b in content[at : at + 20]) + content[at + 20 :]
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(InputError, match="not a readable graph file"):
        MetastableGraph.load(tmp_path / "damaged.npz")
