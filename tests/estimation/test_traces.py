"""Traces that solvers of the project's puzzles write: planted clusters and hard steps recovered from the text alone."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.metrics import adjusted_rand_score

from mcot_torch.cli.estimation import main, read_embedding
from mcot_torch.errors import InputError
from mcot_torch.estimation.estimate import EstimationConfig
from mcot_torch.estimation.texts import kinds_of_steps, kinetic_map, normalise
from mcot_torch.estimation.traces import Trace, analyse_traces, read_traces

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("puzzle_traces", ROOT / "examples" / "puzzle_traces.py")
puzzle_traces = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(puzzle_traces)


def written(puzzle, n_traces=600, seed=0):
    """(traces as the estimation reads them, the true graph, (n,) true states of every trace)."""
    lines = puzzle_traces.solve(puzzle, n_traces, seed)
    graph = puzzle_traces.PUZZLES[puzzle][0]()
    traces = [Trace(line["id"], tuple(line["steps"]), line["correct"]) for line in lines]
    return traces, graph, [np.array([graph.state(name) for name in line["states"]]) for line in lines]


def recovery(report, graph, states):
    """(adjusted Rand index over all steps, recall and precision over the different hard steps that were walked)."""
    label = np.full(len(report.kind_list), -1)
    label[report.estimate.kept] = report.estimate.graph.clusters
    found = [label[path] for path in report.kinds]
    index = adjusted_rand_score(graph.clusters[np.concatenate(states)], np.concatenate(found))
    proposed = {(step.source, step.target) for step in report.estimate.hard_steps}
    hard = {tuple(edge) for edge in graph.sparse_edges.tolist()}
    names = [kind.name for kind in report.kind_list]
    calls: dict[tuple[int, int], list[bool]] = {}
    for path, kinds in zip(states, report.kinds, strict=True):
        for t in range(len(path) - 1):
            step = (names[kinds[t]], names[kinds[t + 1]])
            calls.setdefault((int(path[t]), int(path[t + 1])), []).append(step in proposed)
    called = {edge for edge, marks in calls.items() if np.mean(marks) > 0.5}  # most of its occurrences are proposed
    walked = hard & set(calls)
    return index, len(called & walked) / len(walked), len(called & walked) / len(called)


@pytest.mark.parametrize("puzzle", ["rooms", "hanoi"])
def test_planted_clusters_and_hard_steps_are_recovered(puzzle):
    traces, graph, states = written(puzzle)
    report = analyse_traces(traces, config=EstimationConfig(draws=1))
    index, recall, precision = recovery(report, graph, states)
    assert index >= 0.95
    assert recall >= 0.95
    assert precision >= 0.95
    assert report.estimate.graph.n_clusters == graph.n_clusters
    # a state told in several ways is several kinds, between which its hard step is divided: their sum is what ε was
    estimated, hard_sources = report.estimate.graph, np.unique(graph.sparse_edges[:, 0])
    visits = np.bincount(np.concatenate([path[:-1] for path in report.kinds]), minlength=len(report.kind_list))
    crossings = (visits[report.estimate.kept] * estimated.hard_weight).sum() * estimated.epsilon
    at_sources = sum(int(np.isin(path[:-1], hard_sources).sum()) for path in states)
    assert crossings / at_sources == pytest.approx(puzzle_traces.EPSILON, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("puzzle", ["rooms", "hanoi"])
def test_recovery_on_other_seeds(puzzle, seed):
    traces, graph, states = written(puzzle, seed=seed)
    report = analyse_traces(traces, config=EstimationConfig(draws=4, seed=seed))
    assert min(recovery(report, graph, states)) >= 0.95


def test_without_the_order_of_the_steps_nothing_is_recovered():
    # the control: the same texts, shuffled over all traces, hold the same words but no chain
    traces, _, _ = written("rooms", 300)
    texts = np.random.default_rng(0).permutation([step for trace in traces for step in trace.steps])
    ends = np.cumsum([len(trace.steps) for trace in traces])[:-1]
    shuffled = [Trace(str(i), tuple(part), None) for i, part in enumerate(np.split(texts, ends))]
    report = analyse_traces(shuffled, 60, config=EstimationConfig(draws=4))
    assert report.estimate.graph is None
    assert report.estimate.verdict.startswith("no metastability")


@pytest.fixture(scope="module")
def rooms():
    traces, graph, states = written("rooms")
    return analyse_traces(traces, 54, config=EstimationConfig(draws=4)), graph, states


def test_report_against_the_truth(rooms):
    report, graph, states = rooms
    label = np.full(len(report.kind_list), -1)
    label[report.estimate.kept] = report.estimate.graph.clusters
    true_of = {}  # our cluster -> planted cluster
    for path, kinds in zip(states, report.kinds, strict=True):
        for x, k in zip(path, kinds, strict=True):
            true_of.setdefault(int(label[k]), int(graph.clusters[x]))
    right = np.array([trace.correct for trace in report.traces])
    last = np.array([graph.clusters[path[-1]] for path in states])
    for basin in report.basins:
        k = true_of[basin.cluster]
        assert basin.ends_correct == pytest.approx((last[right] == k).mean(), abs=0.01)
        assert basin.ends_incorrect == pytest.approx((last[~right] == k).mean(), abs=0.01)
        visits = sum(int((graph.clusters[path[:-1]] == k).sum()) for path in states)
        moves = [graph.clusters[path] for path in states]
        exits = sum(int(((m[:-1] == k) & (m[1:] != k)).sum()) for m in moves)
        assert basin.stay == pytest.approx(visits / exits, rel=0.05)
        room = puzzle_traces.ROOMS[graph.name(int(graph.members(k)[0])).split()[0]]
        assert all(room in text for text in basin.examples)
    for passage in report.passages:
        k, m = true_of[passage.source], true_of[passage.target]
        crossings = sum(
            int(((graph.clusters[path[:-1]] == k) & (graph.clusters[path[1:]] == m)).sum()) for path in states
        )
        assert passage.count == pytest.approx(crossings, abs=1)
        for before, after in passage.examples:
            assert puzzle_traces.ROOMS[graph.name(int(graph.members(k)[0])).split()[0]] in before
            assert puzzle_traces.ROOMS[graph.name(int(graph.members(m)[0])).split()[0]] in after
    assert report.stuck.startswith("Incorrect traces get stuck in C_")


def test_an_embedding_of_ones_own(rooms):
    report, graph, _ = rooms
    spots, names = list(puzzle_traces.SPOTS.values()), list(puzzle_traces.ROOMS.values())

    def embedding(texts):
        words = np.array([[word in text for word in (*spots, *names)] for text in texts], dtype=float)
        return words

    own = analyse_traces(report.traces, 54, embedding, config=EstimationConfig(draws=1))
    assert own.estimate.graph.n_clusters == graph.n_clusters
    few = [[normalise(step) for step in trace.steps] for trace in report.traces[:50]]
    rows = embedding([step for steps in few for step in steps])
    assert np.array_equal(kinds_of_steps(few, 54, rows), kinds_of_steps(few, 54, embedding))
    with pytest.raises(InputError, match=r"the embedding is an array of shape \(3, 2\) for"):
        analyse_traces(report.traces, 54, np.zeros((3, 2)))


def test_kinetic_map_keeps_what_the_next_step_depends_on():
    rng = np.random.default_rng(0)
    slow = np.repeat(rng.integers(0, 2, size=400), 25) * 1.0  # constant for 25 steps
    fast = 100 * rng.standard_normal(10_000)
    mixed = np.stack([slow + fast, fast], axis=1)
    mapped = kinetic_map(mixed, [5_000, 5_000])
    assert mapped.shape == (10_000, 1)
    assert abs(np.corrcoef(mapped[:, 0], slow)[0, 1]) > 0.999
    # its scale is its autocorrelation: fair coins that are thrown anew every 25 steps
    assert mapped.std() == pytest.approx(24 / 25, abs=0.02)
    # nothing persists: as it came
    assert np.array_equal(kinetic_map(fast[:, None], [10_000]), fast[:, None])
    # a step from one trace to the next is none
    alternating = np.tile([[0.0], [1.0]], (500, 1))
    assert np.array_equal(kinetic_map(alternating, [1] * 1000), alternating)


@pytest.mark.parametrize(
    ("text", "keep", "expected"),
    [
        ("So  16 - 3 = <<16-3=13>>13\neggs", False, "so number - number = number eggs"),
        ("It costs $1,234.50 at 3%", False, "it costs $ number at number %"),
        ("Cell 3", True, "cell 3"),
        ("ﬁne １２", True, "fine 12"),
    ],
)
def test_normalise(text, keep, expected):
    assert normalise(text, keep) == expected


def test_kinds_are_numbered_by_frequency():
    traces = [["go left", "go left", "stop"], ["go left", "stop", "wait here"]]
    np.testing.assert_array_equal(kinds_of_steps(traces, 9), [0, 0, 1, 0, 1, 2])


def test_traces_are_read(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text('{"id": 7, "steps": ["a", " ", "b"], "correct": true}\n\n{"steps": ["c"]}\n')
    assert read_traces(file) == [Trace("7", ("a", "b"), True), Trace("3", ("c",), None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, ": no such file"),
        ("{", " line 1: not JSON"),
        ('{"steps": ["a", "b"]}\n[1]\n', ' line 2: no list of texts under "steps"'),
        ('{"steps": ["a", 2]}', ' line 1: no list of texts under "steps"'),
        ('{"steps": ["a", "b"], "correct": 1}', ' line 1: "correct" is 1; it is true, false or missing'),
        ('{"steps": ["a"]}', ": no trace has two steps"),
    ],
)
def test_traces_that_cannot_be_read(text, message, tmp_path):
    file = tmp_path / "t.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError) as error:
        read_traces(file)
    assert str(error.value).startswith(f"{file}{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vectors", "embedding is 'vectors'; give FILE.npy or MODULE:FUNCTION"),
        ("none.npy", "none.npy: no such file"),
        ("no_such_module:f", "embedding is 'no_such_module:f': No module named"),
        ("math:no_such_function", "embedding is 'math:no_such_function': module 'math' has no attribute"),
    ],
)
def test_embeddings_that_are_none(text, message):
    with pytest.raises(InputError) as error:
        read_embedding(text)
    assert str(error.value).startswith(message)


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = puzzle_traces.solve("rooms", 300, 0)
    Path("t.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert main(["traces", "t.jsonl", "--kinds", "60", "--draws", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "300 traces" in said
    assert "Metastable: 6 clusters" in said
    assert "Passages between clusters: the hard steps" in said
    report = json.loads(Path("estimates/t/report.json").read_text())
    assert report["metastable"] is True
    assert len(report["basins"]) == 6
    assert report["passages"][0]["examples"][0][0] in Path("estimates/t/report.md").read_text()
    assert main(["traces", "t.jsonl", "--kinds", "1"]) == 2
    assert "kinds is 1" in capsys.readouterr().err


@pytest.mark.skipif("MCOT_TRACES" not in os.environ, reason="MCOT_TRACES names no file of GSM8K model traces")
def test_short_traces_of_language_models_are_not_metastable():
    report = analyse_traces(read_traces(os.environ["MCOT_TRACES"]))
    assert report.estimate.graph is None
    assert report.estimate.verdict.startswith("no metastability")
    assert sum(kind.last for kind in report.kind_list if kind.name.partition(": ")[2].startswith("A:")) > 0.9
