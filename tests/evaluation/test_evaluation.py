"""evaluation.py: measures by hand, Monte Carlo against closed forms, and models that have lost their way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mcot_torch.algorithms.prm import PRM
from mcot_torch.chains import hitting_time
from mcot_torch.evaluation import subjects as evaluation
from mcot_torch.evaluation.measures import hard_step_probabilities, make_probe, precision_recall, row_tv
from mcot_torch.evaluation.models import EvaluationInputs, subjects
from mcot_torch.evaluation.problem import Models, Problem, shortest_path
from mcot_torch.evaluation.subjects import (
    base_subject,
    cluster_truth,
    measure,
    reasoner_subject,
)
from mcot_torch.graphs import GraphConfig, TaskConfig, build_graph, build_task
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner


@pytest.fixture(scope="module")
def graph():
    return build_graph(GraphConfig(n_clusters=4, cluster_size=6, epsilon=0.02, degree=3))


@pytest.fixture(scope="module")
def task(graph):
    return build_task(TaskConfig(), graph)


def exact_reasoner(graph):
    reasoner = LinearReasoner(graph.n_states)
    kernel = torch.from_numpy(graph.kernel())
    reasoner.logits.data = kernel.log().clamp_min(-60)
    reasoner.support.set(kernel > 0)
    return reasoner


def test_measures_by_hand():
    p = np.array([[0.5, 0.5], [0.2, 0.8]])
    q = np.array([[0.25, 0.75], [0.2, 0.8]])
    assert row_tv(p, q).tolist() == [0.25, 0.0]
    assert hard_step_probabilities(p, np.array([[0, 1], [1, 0]])) == {"min": 0.2, "mean": 0.35, "max": 0.5}
    found, truth = np.array([True, True, False, False]), np.array([True, False, True, True])
    assert precision_recall(found, truth) == (1 / 2, 1 / 3)


def test_base_row_is_the_exact_chain_and_its_walks_agree(graph, task):
    row, times = measure(base_subject(graph, task), walks=4000, horizon_factor=12.0, seed=0)
    expected = hitting_time(graph.kernel(), task.start, task.target)
    assert row["hitting_time_exact"] == pytest.approx(expected, rel=1e-12)
    assert row["row_tv_max"] == 0.0
    sampled = row["hitting_time_sampled"]
    error = (sampled["high"] - sampled["low"]) / (2 * 1.96)
    assert abs(sampled["mean"] - sampled["restricted_mean_exact"]) < 5 * error  # false alarm below 1e-6
    assert times.max() <= sampled["horizon"]
    assert sampled["censored"] == int((times == sampled["horizon"]).sum())


def test_exact_reasoner_has_no_error(graph, task):
    values = make_probe(graph)(exact_reasoner(graph))
    assert values["sup_error"] < 1e-12
    assert values["support_recall"] == values["support_precision"] == 1.0
    assert values["hard_step_min"] == pytest.approx(0.02, rel=1e-12)


def test_sparse_kernels_give_the_rows_of_dense_ones(graph, task, monkeypatch):
    """Above a limit kernels are CSR: same numbers, but for what takes N³ operations, which is left out."""
    scales = Scales.of(graph, 0.1)
    prm = PRM(graph.n_states, torch.from_numpy(graph.sparse_edges))

    def rows():
        models = Models(exact_reasoner(graph), prm, exact_reasoner(graph))
        found = subjects(EvaluationInputs(Problem(graph, task, scales), models, contexts=64))
        return {subject.name: measure(subject, 50, 12.0, 0)[0] for subject in found}

    dense = rows()
    monkeypatch.setattr(evaluation, "_MOST_DENSE", graph.n_states - 1)
    monkeypatch.setattr(evaluation, "_MOST_RAW", graph.n_states - 1)
    for name, row in rows().items():
        expected = dense[name]
        assert row["hitting_time_exact"] == pytest.approx(expected["hitting_time_exact"], rel=1e-12)
        assert row["hitting_time_reference"] == pytest.approx(expected["hitting_time_reference"], rel=1e-12)
        assert (row["hitting_time_exact_raw"] is None) == (name != "base")
        assert expected["hitting_time_exact_raw"] is not None
        assert row["hard_step_probability"] == pytest.approx(expected["hard_step_probability"], rel=1e-12)
        assert row["row_tv_max"] == pytest.approx(expected["row_tv_max"], rel=1e-9, abs=1e-14)
        assert row["hitting_time_sampled"].pop("restricted_mean_exact") is None
        assert expected["hitting_time_sampled"].pop("restricted_mean_exact") > 0
        assert row["hitting_time_sampled"] == pytest.approx(expected["hitting_time_sampled"], rel=1e-9)


def test_guided_exact_reasoner_is_the_chain_at_epsilon_max(graph, task):
    scales = Scales.of(graph, 0.1)
    prm = PRM(graph.n_states, torch.from_numpy(graph.sparse_edges))
    models = Models(exact_reasoner(graph), prm)
    rows = subjects(EvaluationInputs(Problem(graph, task, scales), models, contexts=64))
    guided, _ = measure(rows[2], 200, 12.0, 0)
    ideal = hitting_time(graph.with_epsilon(0.1).kernel(), task.start, task.target)
    assert guided["hitting_time_exact"] == pytest.approx(ideal, rel=1e-9)
    assert guided["hard_step_recall"] == guided["hard_step_precision"] == 1.0


def test_a_model_that_lost_its_way_is_a_row_without_a_time(graph, task):
    lost = exact_reasoner(graph)
    edges = torch.from_numpy(graph.sparse_edges)
    mask = lost.support.mask.clone()
    mask[edges[:, 0], edges[:, 1]] = False
    lost.support.set(mask)
    subject = reasoner_subject("pretrained", lost, graph, "p^ε", task, 64, 0)
    row, times = measure(subject, 50, 0.01, 0)
    assert row["hitting_time_exact"] is None
    assert row["hitting_time_sampled"]["censored"] == 50
    assert (times == row["hitting_time_sampled"]["horizon"]).all()


def test_cluster_truth_has_hops_of_one_over_one_plus_n(graph):
    kernel = cluster_truth(graph.with_epsilon(1e-6))  # jumps +1, +2, -1: n = 3 (Theorem 4.3)
    hops = kernel[(kernel > 0) & ~np.eye(4, dtype=bool)]
    assert len(hops) == 12
    assert hops == pytest.approx(0.25, rel=1e-4)


def test_shortest_path_of_hanoi_is_two_to_the_n_minus_one():
    hanoi = build_graph(GraphConfig(family="hanoi", n_discs=4, n_hard_discs=1))
    task = build_task(TaskConfig("state:AAAA", "state:CCCC"), hanoi)
    assert shortest_path(hanoi, task.start, task.target) == 15
