"""GraphConfig to graph: defaults, ε_max, files, the configs that ship, and every error by its dotted name."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml

from mcot_torch.errors import InputError
from mcot_torch.graphs import GraphConfig, TaskConfig, build_graph, build_task, resolve_epsilon_max
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.formats.edge_list import write_edge_list

ROOT = Path(__file__).parents[2]


def test_default():
    graph = build_graph(GraphConfig())
    assert (graph.n_states, graph.n_clusters, graph.cluster_size, graph.epsilon) == (320, 10, 32, 0.002)
    assert resolve_epsilon_max(GraphConfig(), graph) == 0.03
    assert np.array_equal(graph.kernel(), clustered_graph().kernel())


def test_every_argument_reaches_the_family():
    config = GraphConfig("random_regular", 6, 9, 0.001, cluster="cycle", n_out=2, d_out=2, out_degree=4, seed=5)
    config.weights = [1.0, 0.5, 0.5, 0.25]
    config.entries = "free"
    expected = clustered_graph(
        6,
        9,
        0.001,
        shape="random_regular",
        cluster="cycle",
        n_out=2,
        d_out=2,
        out_degree=4,
        weights=config.weights,
        entries="free",
        seed=5,
    )
    assert np.array_equal(build_graph(config).kernel(), expected.kernel())
    other = GraphConfig(jumps=[1, 3], degree=6)
    assert np.array_equal(build_graph(other).kernel(), clustered_graph(jumps=[1, 3], degree=6).kernel())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GraphConfig(cluster_size=64), 0.015),
        (GraphConfig(cluster_size=8, degree=3, epsilon_max=0.2), 0.2),
        (GraphConfig(family="hanoi"), 0.96 / 27),
        (GraphConfig(cluster_size=4, degree=3, d_out=3), 1 / 6),  # .96/4 would be .24; half of the limit 1/3 is less
    ],
)
def test_epsilon_max(config, expected):
    assert resolve_epsilon_max(config, build_graph(config)) == pytest.approx(expected, rel=1e-15)


def test_files(tmp_path):
    graph = clustered_graph(4, 8, 0.003)
    graph.save(tmp_path / "graph.npz")
    saved = build_graph(GraphConfig(family="saved", path=str(tmp_path / "graph.npz")))
    assert saved.epsilon == 0.003
    assert np.array_equal(saved.kernel(), graph.kernel())
    write_edge_list(graph, tmp_path / "g.csv", tmp_path / "k.csv")
    config = GraphConfig(family="edge_list", path=str(tmp_path / "g.csv"), clusters_path=str(tmp_path / "k.csv"))
    assert build_graph(config).epsilon == 0.003
    config.epsilon = 0.01
    np.testing.assert_allclose(build_graph(config).kernel(), graph.with_epsilon(0.01).kernel(), rtol=1e-14)
    threshold = GraphConfig(family="edge_list", path=str(tmp_path / "g.csv"), threshold=0.01)
    assert np.array_equal(build_graph(threshold).clusters, graph.clusters)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 1.5}, "graph.epsilon is 1.5; it is a probability a step and must lie in (0, 1)"),
        ({"epsilon": 0.0}, "graph.epsilon is 0.0; it is"),
        ({"epsilon": float("nan")}, "graph.epsilon is nan; it is"),
        (
            {"epsilon": 0.05},
            "graph.epsilon is 0.05, not below epsilon_max 0.03 = 0.96 / 32 states, capped at half the limit; lower "
            "graph.epsilon or raise graph.epsilon_max (below 1)",
        ),
        ({"epsilon_max": 0.001}, "graph.epsilon is 0.002, not below epsilon_max 0.001; lower graph.epsilon or raise"),
        ({"epsilon_max": 1.0}, "graph.epsilon_max is 1.0; it is a probability a step and must lie in (0, 1)"),
        (
            {"epsilon_max": 0.4, "d_out": 3},
            "graph.epsilon_max is 0.4, and times the largest hard-step weight W = 3 of a state that is 1.2; it must be below "
            "1: use epsilon_max < 0.333333",
        ),
        ({"epsilon": 0.5, "d_out": 3}, "graph.epsilon 0.5 times the hard-step weight W = 3 of state"),
        ({"n_clusters": 1}, "graph.n_clusters is 1; metastability needs at least 2"),
        ({"n_clusters": 3}, "graph.jumps 2 and -1 are equal mod n_clusters 3"),
        ({"degree": 32}, "graph.degree is 32; with cluster_size 32"),
        ({"degree": 3, "cluster_size": 31}, "graph.degree is 3 and cluster_size 31: no regular graph"),
        ({"family": "no_family"}, "graph.family is 'no_family'; it is one of circulant, ring,"),
        ({"family": "hanoi", "n_discs": 1}, "graph.n_discs is 1; it must lie in 2 .. 10"),
        ({"family": "edge_list"}, "graph.path is missing; the family edge_list reads a file: set graph.path to it"),
        ({"family": "saved"}, "graph.path is missing; the family saved reads a file"),
        (
            {"path": "x.csv"},
            "graph.path is 'x.csv', but the family circulant reads no file; set graph.family to edge_list",
        ),
        ({"threshold": 0.1}, "graph.threshold is 0.1, but only the family edge_list uses it; drop it"),
        ({"clusters_path": "k.csv"}, "graph.clusters_path is 'k.csv', but only the family edge_list uses it"),
        ({"family": "edge_list", "path": "none.csv"}, "none.csv: no such file"),
        ({"family": "edge_list", "path": "x", "threshold": 2.0}, "graph.threshold is 2.0; it is a probability a step"),
        (
            {"family": "edge_list", "path": "x", "threshold": 0.1, "clusters_path": "k"},
            "graph.threshold and clusters_path are both given",
        ),
        ({"family": "saved", "path": "none.npz"}, "none.npz: no such graph file"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(InputError) as error:
        build_graph(GraphConfig(**changes))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_epsilon_of_a_file_above_its_limit(tmp_path):
    clustered_graph(4, 8, d_out=3).save(tmp_path / "graph.npz")
    with pytest.raises(InputError, match=r"^graph.epsilon 0.5 times the hard-step weight W = 3"):
        build_graph(GraphConfig(family="saved", path=str(tmp_path / "graph.npz"), epsilon=0.5))


# ---- what ships -----------------------------------------------------------------------------------------------------


def shipped(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    graph_config = GraphConfig(**config["graph"])
    graph = build_graph(graph_config)
    return config, graph, resolve_epsilon_max(graph_config, graph), build_task(TaskConfig(**config["task"]), graph)


def test_hanoi_config(monkeypatch):
    config, graph, _, task = shipped("hanoi", monkeypatch)
    assert config["name"] == "hanoi"
    assert (graph.n_clusters, graph.cluster_size) == (9, 27)
    assert task.description == "state AAAAA -> state CCCCC"


def test_edge_list_config(monkeypatch):
    config, graph, epsilon_max, task = shipped("edge_list", monkeypatch)
    assert config["name"] == "edge_list"
    assert graph.n_clusters == 5
    assert (graph.cluster_sizes == 8).all()
    assert (graph.entries >= 0).all()
    assert len(graph.sparse_edges) == 12
    assert graph.epsilon < epsilon_max / 5
    assert graph.names is not None
    assert task.description == "state read the problem -> state write the answer"


def test_every_field_is_documented():
    source = Path(build_graph.__code__.co_filename).read_text(encoding="utf-8")
    for field in fields(GraphConfig):
        after = source.split(f"\n    {field.name}: ", 1)[1].split("\n", 1)[1]
        assert after.startswith('    """'), field.name
