"""A1-A5: the graphs that satisfy them, the ones that break each of them, and constants computed by hand."""

import math

import numpy as np
import pytest

from mcot_torch.chains.assumptions import LARGEST_GRAPH, check_assumptions, summary_lines
from mcot_torch.cli.assumptions import main
from mcot_torch.graphs import GraphConfig, MetastableGraph, TaskConfig, build_graph, build_task
from mcot_torch.graphs.families.clustered import clustered_graph


def check(graph, target="auto"):
    reports = check_assumptions(graph, build_task(TaskConfig(target=target), graph))
    assert [r.name for r in reports] == ["A1", "A2", "A3", "A4", "A5"]
    return {r.name: r for r in reports}


@pytest.fixture(scope="module")
def two_pairs():
    """Two clusters of two states that always swap or stay with probability 1/2; one hard step each way."""
    half = [0.5] * 8
    dense = ([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 2, 3, 2, 3], half)
    return MetastableGraph.from_edges(dense, ([1, 3], [2, 0], [1.0, 1.0]), [0, 0, 1, 1], 0.1)


def test_default_graph_satisfies_all():
    report = check(clustered_graph())
    assert [report[name].passed for name in ("A1", "A2", "A3", "A4", "A5")] == [True, True, True, None, True]
    assert not any(r.offenders for r in report.values())
    assert report["A2"].constants == {"n_out": 3, "d_out": 1, "edges_per_pair": 1}
    assert report["A3"].constants["hard_steps"] == 3  # +2 +2 +1 from C_0 to C_5
    assert report["A4"].constants["escape"] == pytest.approx(1.43, abs=0.01)


def test_constants_by_hand(two_pairs):
    """S_11: from 0 stay 1/2, to 1 1/2; from 1 the hard step comes back to 0 (the entry), so P(1→0) = .45 + .1."""
    report = check(two_pairs)
    a, b = 0.5, 0.45 + 0.1
    # a two-state chain is reversible with eigenvalue λ = 1 - a - b, so that γ((P*)^j P^j)/j = (1 - λ^2j)/j is largest at j = 1
    assert report["A1"].constants["gap"] == pytest.approx(1 - (1 - a - b) ** 2, rel=1e-12)
    assert report["A1"].constants["law_min"] == pytest.approx(2 * a / (a + b))
    assert report["A1"].constants["law_max"] == pytest.approx(2 * b / (a + b))
    assert report["A2"].constants == {"n_out": 1, "d_out": 1, "edges_per_pair": 1}
    assert report["A3"].constants == {"hard_steps": 1, "share": 0.5}
    # μ = 1/2: q* = (P_0(τ_C2 < τ_0) + P_1(τ_C2 < τ_1))/4; from 0: 1/2·.1/(.1 + .45); from 1: .1
    escape = (0.5 * 0.1 / 0.55 + 0.1) / 4
    assert report["A4"].constants["escape"] == pytest.approx(escape * 2 / 0.1, rel=1e-12)
    assert report["A5"].constants == {"entries": 1}


def test_cycle_clusters_fail_a1_and_their_gap_falls():
    gaps = []
    for size in (17, 33):  # odd, so that they have no period
        report = check(clustered_graph(6, size, 0.001, cluster="cycle"))["A1"]
        assert report.passed is False
        assert len(report.offenders) == 6
        gaps.append(report.constants["gap"])
    assert gaps[1] / gaps[0] == pytest.approx((17 / 33) ** 2, rel=0.1)
    # the eigenvalue of largest modulus is cos(16π/17), near -1: 1 - λ² = sin²(π/17)
    assert gaps[0] == pytest.approx(math.sin(math.pi / 17) ** 2, rel=0.02)


def test_clusters_with_a_period_fail_a1():
    assert check(clustered_graph(6, 16, 0.001, cluster="cycle"))["A1"].constants["gap"] < 0.001


def test_bidirectional_ring_escape_falls_as_one_over_k():
    for k in (8, 16, 32):
        report = check(clustered_graph(k, 8, 1e-4, shape="bidirectional_ring"))["A4"]
        assert report.passed is None
        assert report.constants["escape"] == pytest.approx(4 / k, rel=0.01)
        assert report.constants["escape_times_k"] == pytest.approx(4, rel=0.01)


def test_a_target_next_door_fails_a3():
    report = check(clustered_graph(), "cluster:9")["A3"]
    assert report.passed is False
    assert report.constants["share"] == pytest.approx(0.1)
    assert "C_9" in report.offenders[0]


def test_a3_follows_the_direction_of_the_steps():
    graph = clustered_graph(8, 8, 0.01, shape="ring")
    assert check(graph, "cluster:1")["A3"].constants["hard_steps"] == 1
    assert check(graph, "cluster:7")["A3"].constants["hard_steps"] == 7


def test_hanoi_fails_a5_and_free_entries_too():
    report = check(build_graph(GraphConfig(family="hanoi", n_discs=4)))["A5"]
    assert report.passed is False
    assert "cluster 0: 2 entry states" in report.offenders
    assert check(clustered_graph(entries="free"))["A5"].passed is False


def test_two_edges_between_clusters_fail_a2(two_pairs):
    dense = ([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 2, 3, 2, 3], [0.5] * 8)
    graph = MetastableGraph.from_edges(dense, ([0, 1, 3], [2, 2, 0], [1.0] * 3), [0, 0, 1, 1], 0.1)
    report = check(graph)["A2"]
    assert report.passed is False
    assert report.offenders == ["clusters 0 → 1: 2 edges"]
    assert report.constants["n_out"] == 2


def test_without_a_task_a3_is_not_measured(small_graph):
    report = check_assumptions(small_graph)[2]
    assert (report.name, report.passed, report.constants) == ("A3", None, {})


def test_permuting_clusters_changes_nothing(small_graph):
    order = np.random.default_rng(0).permutation(small_graph.n_states)
    place = np.argsort(order)
    easy = ~small_graph.hard
    triple = (place[small_graph.sources], place[small_graph.indices], small_graph.weights)
    moved = MetastableGraph.from_edges(
        tuple(x[easy] for x in triple),
        tuple(x[~easy] for x in triple),
        small_graph.clusters[order],
        small_graph.epsilon,
    )
    for before, after in zip(check_assumptions(small_graph), check_assumptions(moved), strict=True):
        assert after.passed == before.passed
        assert after.constants == pytest.approx(before.constants, rel=1e-9)


def test_large_graphs_are_not_measured():
    graph = clustered_graph(LARGEST_GRAPH // 8 + 1, 8, 0.01)
    report = check(graph)
    assert report["A1"].passed is report["A4"].passed is None
    assert "not measured" in report["A1"].text
    assert report["A5"].passed is True


def test_summary_is_short(small_graph):
    lines = summary_lines(check_assumptions(build_graph(GraphConfig(family="hanoi"))))
    assert len(lines) == 5
    assert lines[4].startswith("A5 FAILS")
    assert "and 7 more" in lines[4]


def test_command(tmp_path, small_graph, capsys):
    small_graph.save(tmp_path / "graph.npz")
    (tmp_path / "run.yaml").write_text("graph:\n  family: hanoi\n  n_discs: 3\n")
    for file in ("graph.npz", "run.yaml"):
        assert main([str(tmp_path / file)]) == 0
        assert "A5" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["missing.npz"], ["graph.txt"], ["missing.yaml"], ["a", "b"]])
def test_command_refuses_in_one_line(words, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "error:" in error
