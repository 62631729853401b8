"""Round trips through every format, what each loses, and the one command."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import io as scipy_io
from scipy import sparse as sp

from mcot_torch.cli.graphs import main, puzzle_table
from mcot_torch.errors import InputError
from mcot_torch.graphs import GraphConfig, build_graph
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.formats import interchange as f
from mcot_torch.graphs.puzzles import tower_of_hanoi


@pytest.fixture(params=["named", "numbered"])
def graph(request):
    if request.param == "named":
        return tower_of_hanoi(4, 2, 0.01)
    return clustered_graph(4, 8, 0.02, weights=[1.0, 0.5, 0.25], seed=3)


def assert_kernel(again, graph):
    np.testing.assert_allclose(again.kernel(), graph.kernel(), rtol=2e-15, atol=0)


def assert_same(again, graph):
    """Kernel, ε, hard steps, weights, clusters and names."""
    assert_kernel(again, graph)
    assert again.epsilon == graph.epsilon
    assert again.names == graph.names
    for array in ("indptr", "indices", "hard", "clusters", "entries"):
        assert np.array_equal(getattr(again, array), getattr(graph, array)), array
    np.testing.assert_allclose(again.weights, graph.weights, rtol=1e-12)


def test_networkx(graph):
    pytest.importorskip("networkx")
    network = f.to_networkx(graph)
    x, y = graph.sparse_edges[0]
    edge = network.edges[graph.name(x), graph.name(y)]
    assert edge == {"weight": graph.kernel()[x, y], "hard": True}
    assert_same(f.from_networkx(network), graph)


def test_pandas(graph):
    pytest.importorskip("pandas")
    steps, states = f.to_pandas(graph)
    assert list(steps.columns) == ["source", "target", "probability", "hard"]
    assert_same(f.from_pandas(steps, states), graph)
    # without the states, clusters come from the probabilities; a third column of counts is divided by its rows
    counted = steps.assign(count=steps["probability"] * 7).drop(columns=["probability", "hard"])
    again = f.from_pandas(counted)
    order = [again.state(graph.name(x)) for x in range(graph.n_states)]
    np.testing.assert_allclose(again.kernel()[np.ix_(order, order)], graph.kernel(), rtol=1e-14)


def test_deeptime(graph):
    pytest.importorskip("deeptime")
    model = f.to_deeptime(graph)
    assert_kernel(f.from_deeptime(model, names=graph.names), graph)
    by_pcca = f.from_deeptime(model, graph.n_clusters, graph.names)
    same = graph.clusters[:, None] == graph.clusters
    assert np.array_equal(by_pcca.clusters[:, None] == by_pcca.clusters, same)


@pytest.mark.parametrize("suffix", [".npz", ".graphml"])
def test_files_that_hold_everything(graph, suffix, tmp_path):
    path = tmp_path / f"graph{suffix}"
    assert f.save_graph(graph, path) == [path]
    assert_same(f.load_graph(path), graph)
    assert list(tmp_path.iterdir()) == [path]
    assert_same(build_graph(GraphConfig(family="saved", path=str(path))), graph)


@pytest.mark.parametrize("suffix", [".scipy.npz", ".mtx"])
def test_files_that_hold_the_kernel(graph, suffix, tmp_path):
    path = tmp_path / f"graph{suffix}"
    f.save_graph(graph, path)
    again = f.load_graph(path)
    assert_kernel(again, graph)
    assert np.array_equal(again.hard, graph.hard)  # found again by the gap in log-probability
    assert again.names is None
    assert again.epsilon == pytest.approx(graph.epsilon * graph.weights[graph.hard].max(), rel=1e-15)
    content = scipy_io.mmread(path).tocsr() if suffix == ".mtx" else sp.load_npz(path)
    np.testing.assert_allclose(content.toarray(), graph.kernel(), rtol=1e-15)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_edge_lists_and_their_clusters(graph, suffix, tmp_path):
    path = tmp_path / f"graph{suffix}"
    _, clusters = f.save_graph(graph, path)
    again = f.load_graph(path, clusters)
    assert_kernel(again, graph)
    assert (again.names, again.epsilon) == (graph.names, pytest.approx(graph.epsilon, rel=1e-15))
    assert np.array_equal(again.clusters, graph.clusters)


def test_kernel_with_another_epsilon():
    kernel = np.array([[0.5, 0.49, 0.01, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0.02, 0.48, 0.5]])
    graph = f.from_kernel(kernel, [0, 0, 1, 1], ["a", "b", "c", "d"], epsilon=0.005)
    assert graph.epsilon == 0.005
    assert graph.weights[graph.hard] == pytest.approx([2.0, 4.0])
    np.testing.assert_allclose(graph.kernel(), kernel, rtol=1e-15)
    assert f.from_kernel(sp.csr_matrix(kernel)).epsilon == 0.02
    np.testing.assert_array_equal(f.from_kernel(kernel, threshold=0.03).clusters, [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (np.ones((2, 3)), {}, "a kernel is a square matrix"),
        (np.array([[0.5, 0.4], [0.5, 0.5]]), {}, "row 0 of the kernel sums to 0.9"),
        (np.array([[1.5, -0.5], [0.5, 0.5]]), {}, "the kernel has an entry that is negative"),
        (np.full((2, 2), 0.5), {}, "no clear gap between easy and hard steps"),
        (np.full((2, 2), 0.5), {"clusters": [0, 0]}, "no step joins two clusters"),
        (np.full((2, 2), 0.5), {"clusters": [0]}, "clusters has the shape (1,)"),
        (np.full((2, 2), 0.5), {"clusters": [0, 1], "threshold": 0.1}, "threshold and clusters are both given"),
        (np.full((2, 2), 0.5), {"threshold": 0.1}, "cutting the steps below 0.1 does not part the states"),
        (np.array([[0.0, 1.0], [0.5, 0.5]]), {"clusters": [0, 1]}, "state 0 has no dense edge"),
    ],
)
def test_kernels_that_are_none(kernel, options, message):
    with pytest.raises(InputError) as error:
        f.from_kernel(kernel, **options)
    assert str(error.value).startswith(message)


def test_networks_that_are_none():
    nx = pytest.importorskip("networkx")
    with pytest.raises(InputError, match="must be a networkx DiGraph"):
        f.from_networkx(nx.path_graph(3))
    with pytest.raises(InputError, match="edge a -> b has weight None"):
        f.from_networkx(nx.DiGraph([("a", "b")]))
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match="it needs source, target and probability or count"):
        f.from_pandas(pandas.DataFrame({"source": ["a"]}))
    steps = pandas.DataFrame({"source": ["a"], "target": ["b"], "probability": [1.0]})
    with pytest.raises(InputError, match="state 'b' of the steps does not stand in the table of states"):
        f.from_pandas(steps, pandas.DataFrame({"state": ["a"], "cluster": [0]}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("g.xyz", b"", "unknown format; the file's name ends in one of .npz, .graphml"),
        ("g.graphml", None, "no such file"),
        ("g.mtx", None, "no such file"),
        ("g.npz", None, "no such"),
        ("g.mtx", b"hello", "not a readable .mtx file"),
        ("g.graphml", b"<hello", "not a readable .graphml file"),
        ("g.scipy.npz", b"hello", "not a readable"),
    ],
)
def test_files_that_cannot_be_read(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        f.load_graph(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: {message}")
    assert "\n" not in str(error.value)


def test_convert(tmp_path, capsys):
    graph = tower_of_hanoi(3, 1, 0.01)
    source, edges, back = tmp_path / "a.npz", tmp_path / "b.csv", tmp_path / "c.graphml"
    graph.save(source)
    assert main(["convert", str(source), str(edges)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{edges} and {tmp_path / 'b.clusters.csv'}: 27 states, 3 clusters, ε = 0.01\n")
    assert "not in the file: ε (read back as the largest hard probability)" in said
    assert main(["convert", str(edges), str(back), "--clusters", str(tmp_path / "b.clusters.csv")]) == 0
    assert "not in the file" not in capsys.readouterr().out
    assert_same(f.load_graph(back), graph)
    assert main(["convert", str(source), str(tmp_path / "d.xyz")]) == 2
    assert "unknown format" in capsys.readouterr().err
    assert main(["convert", str(source), str(back), "--clusters", "x.csv"]) == 2
    assert "only an edge list" in capsys.readouterr().err


def test_table_of_the_puzzles_is_that_of_the_docs():
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    assert puzzle_table(root / "configs") in (root / "docs" / "graphs.md").read_text(encoding="utf-8")
