"""From walks of a known graph back to the graph, the plain verdicts, and the command."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from mcot_torch.chains import hitting_time
from mcot_torch.cli.estimation import main, train_command
from mcot_torch.errors import InputError
from mcot_torch.estimation.estimate import EstimationConfig, estimate
from mcot_torch.estimation.trajectories import Trajectories
from mcot_torch.graphs import (
    GraphConfig,
    MetastableGraph,
    TaskConfig,
    build_graph,
    build_task,
    resolve_epsilon_max,
)
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.puzzles import tower_of_hanoi
from mcot_torch.sampling.walks import StepTable, walk_paths
from mcot_torch.system.randomness import generator


def walks(graph, n_walks=20, n_steps=1500, seed=0):
    start = torch.arange(n_walks) % graph.n_states
    paths = walk_paths(StepTable.from_graph(graph), start, n_steps, generator(seed, "test"))
    return Trajectories(tuple(paths.numpy()), tuple(f"s{x}" for x in range(graph.n_states)))


@pytest.fixture(scope="module")
def known():
    return clustered_graph(6, 8, 0.01, seed=1)


@pytest.fixture(scope="module")
def found(known):
    return estimate(walks(known))


@pytest.mark.parametrize("method", ["spectral", "pcca"])
def test_the_graph_is_found_again(known, method):
    if method == "pcca":
        pytest.importorskip("deeptime")
    found = estimate(walks(known), EstimationConfig(method=method, draws=20))
    assert found.verdict.startswith("metastable: 6 clusters of 8 to 8 states")
    graph = found.graph
    truth = known.clusters[found.kept]
    assert np.array_equal(graph.clusters[:, None] == graph.clusters, truth[:, None] == truth)
    # every hard step that was walked, and nothing else
    walked = {tuple(edge) for edge in known.sparse_edges.tolist()} & {
        (int(x), int(y)) for path in walks(known).paths for x, y in pairwise(path)
    }
    assert {(int(s.source[1:]), int(s.target[1:])) for s in found.hard_steps} == walked
    assert len(walked) == len(known.sparse_edges)
    assert all(step.confidence == 1.0 for step in found.hard_steps)
    assert graph.epsilon == pytest.approx(0.01, rel=0.2)  # some 300 crossings


def test_the_kernel_is_that_of_the_counts(found):
    counts = found.counts.toarray()
    np.testing.assert_allclose(found.graph.kernel(), counts / counts.sum(1, keepdims=True), rtol=1e-13, atol=1e-15)
    step = found.hard_steps[0]
    x, y = found.names.index(step.source), found.names.index(step.target)
    assert (step.count, step.visits) == (counts[x, y], counts[x].sum())
    assert step.probability == pytest.approx(step.count / step.visits)
    assert step.low < step.probability < step.high
    assert step.count == max(s.count for s in found.hard_steps)


def test_hitting_time_has_an_interval(known):
    task = TaskConfig("state:s0", "state:s20")
    found = estimate(walks(known), task=task)
    exact = hitting_time(known.to_scipy(), 0, 20)
    assert found.hitting_time.low < exact < found.hitting_time.high
    goal = build_task(task, found.graph)
    assert found.hitting_time.steps == pytest.approx(hitting_time(found.graph.kernel(), goal.start, goal.target))


def test_the_same_seed_gives_the_same_numbers(known, found):
    again = estimate(walks(known), EstimationConfig(draws=200))
    assert again.hitting_time == found.hitting_time
    assert again.hard_steps == found.hard_steps
    other = estimate(walks(known), EstimationConfig(seed=1, draws=20))
    assert other.hitting_time.low != found.hitting_time.low


def dice():
    """20 states, each drawn without regard to the one before."""
    return Trajectories((np.random.default_rng(0).integers(0, 20, size=10_000),), tuple(map(str, range(20))))


@pytest.mark.parametrize("data", [walks(tower_of_hanoi(4, 1, 0.33)), dice()])
def test_no_metastability_is_said(data):
    found = estimate(data)
    assert found.graph is None
    assert found.verdict.startswith("no metastability: the widest gap between relaxation rates is a factor")
    assert found.hard_steps == []


def test_clusters_that_were_asked_for_are_given_with_a_warning():
    found = estimate(walks(tower_of_hanoi(4, 1, 0.33)), EstimationConfig(n_clusters=2, draws=5))
    assert found.graph.n_clusters == 2
    assert found.verdict.startswith("not metastable")
    assert "the data show no metastability at this number" in " ".join(found.warnings)


def test_what_is_left_out_is_said(known):
    data = walks(known)
    names = (*data.names, "end")
    # every walk ends in a state that is never left, half of them at once
    ended = [np.append(path[: 1 if i % 2 else None], len(names) - 1) for i, path in enumerate(data.paths)]
    found = estimate(Trajectories(tuple(ended), names))
    assert found.left_out == ("end",)
    assert found.steps_lost == len(ended)
    assert found.graph is not None
    short = estimate(Trajectories(tuple(path[:30] for path in ended[::2]), names), EstimationConfig(min_visits=1))
    assert short.graph is None
    nothing = estimate(Trajectories.of([["a", "b", "c"]] * 50))
    assert nothing.verdict.startswith("no metastability can be seen: of 3 states no two are connected")


def test_few_crossings_are_said(known):
    found = estimate(walks(known, n_walks=6, n_steps=900))
    assert "few crossings" in " ".join(found.warnings)


def test_more_than_a_hundred_clusters_can_be_asked_for():
    names = [f"{k}{letter}" for k in range(120) for letter in "ab"]
    # a a b b a a b b ... in one pair of states after the other, and back again
    there = [pair for k in range(120) for pair in [2 * k, 2 * k + 1] * 30]
    found = estimate(
        Trajectories((np.array(there * 3, dtype=np.int64),), tuple(names)), EstimationConfig(n_clusters=120, draws=1)
    )
    assert found.graph.n_clusters == 120


def test_the_command_to_train_can_be_run(tmp_path):
    graph = clustered_graph(4, 8, 0.02)
    assert "--graph.epsilon_max" not in train_command(graph, tmp_path)
    steep = graph.with_epsilon(0.3)  # above the default ε_max = .96/8
    steep.save(tmp_path / "graph.npz")
    words = train_command(steep, tmp_path).split()
    epsilon_max = float(words[words.index("--graph.epsilon_max") + 1])
    config = GraphConfig(family="saved", path=words[words.index("--graph.path") + 1], epsilon_max=epsilon_max)
    assert resolve_epsilon_max(config, build_graph(config)) > 0.3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EstimationConfig(n_clusters=1), "n_clusters is 1"),
        (EstimationConfig(n_clusters=40), "n_clusters is 40, but 48 states were kept"),
        (EstimationConfig(min_visits=0), "min_visits is 0"),
    ],
)
def test_errors(config, message, known):
    with pytest.raises(InputError) as error:
        estimate(walks(known), config)
    assert str(error.value).startswith(message)


def test_command(known, tmp_path, capsys):
    file = tmp_path / "walks.txt"
    data = walks(known)
    file.write_text("\n".join(" ".join(data.names[x] for x in path) for path in data.paths))
    out = tmp_path / "out"
    words = [
        "trajectories",
        str(file),
        "--out",
        str(out),
        "--draws",
        "20",
        "--start",
        "state:s0",
        "--target",
        "state:s20",
    ]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Metastable: 6 clusters of 8 to 8 states" in said
    assert "Chapman-Kolmogorov check holds at lags 2 to 256" in said
    assert "Expected time state s0 -> state s20" in said
    assert f"Train python train.py --graph.family saved --graph.path {out / 'graph.npz'} --name out" in said
    assert MetastableGraph.load(out / "graph.npz").n_clusters == 6
    report = json.loads((out / "report.json").read_text())
    assert report["metastable"] is True
    assert [len(cluster) for cluster in report["clusters"]] == [8] * 6
    assert len(report["hard_steps"]) == (out / "report.md").read_text().count("| 100% |") == 18
    assert (out / "graph.png").stat().st_size > 10_000

    # the same folder after data without metastability holds no graph
    flat = walks(tower_of_hanoi(3, 1, 0.33))
    file.write_text("\n".join(" ".join(flat.names[x] for x in path) for path in flat.paths))
    assert main(["trajectories", str(file), "--out", str(out)]) == 0
    assert "No metastability" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md"]
    assert main(["trajectories", str(tmp_path / "none.txt")]) == 2
    assert "no such file" in capsys.readouterr().err
