"""What the report samples: median chains of thought, loop-erased routes against closed forms, frames of long paths."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mcot_torch.evaluation.subjects import base_subject, reasoner_subject
from mcot_torch.experiments.support import exact_reasoner as table
from mcot_torch.graphs import MetastableGraph, TaskConfig, build_task
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.report.page.sampling import Routes, chain_of_thought, erase_loops, frames, sample_routes


def test_loops_are_erased_as_they_close():
    assert erase_loops([0, 1, 2, 1, 3]) == (0, 1, 3)
    assert erase_loops([0, 1, 0, 2, 3, 2, 0, 4]) == (0, 4)
    assert erase_loops([5]) == (5,)


def test_effective_routes_by_hand():
    even = Routes(Counter({(0, 1): 50, (0, 2, 1): 50}), 0)
    assert even.effective == pytest.approx(2.0)
    assert Routes(Counter({(0, 1): 7}), 3).effective == pytest.approx(1.0)
    assert even.tv(Routes(Counter({(0, 1): 30, (0, 3, 1): 10}), 0)) == pytest.approx(0.5)


def test_chains_of_thought_are_paths_to_the_target():
    graph = clustered_graph(4, 6, 0.05, seed=1, degree=3)
    task = build_task(TaskConfig(), graph)
    kernel = graph.kernel()
    for subject in (base_subject(graph, task), reasoner_subject("tuned", table(graph), graph, "p", task, 64, 0)):
        thought = chain_of_thought(subject, 3, 10_000)
        assert thought.arrived
        assert task.start[thought.states[0]] > 0
        assert (kernel[thought.states[:-1], thought.states[1:]] > 0).all()
        assert np.isin(thought.states, task.target).nonzero()[0].tolist() == [thought.length]
    given_up = chain_of_thought(base_subject(graph, task), 3, 2)
    assert (given_up.arrived, given_up.length) == (False, 2)


def test_the_median_of_nine_is_shown():
    """P(median of 9 geometric times ≤ t) is a binomial tail: a Kolmogorov-Smirnov bound over 400 seeds."""
    p = 0.05
    graph = MetastableGraph.from_edges(
        (np.array([0, 1]), np.array([0, 1]), np.ones(2)),
        (np.array([0, 1]), np.array([1, 0]), np.ones(2)),
        np.array([0, 1]),
        p,
    )
    subject = base_subject(graph, build_task(TaskConfig("state:0", "state:1"), graph))
    lengths = np.array([chain_of_thought(subject, seed, 10_000).length for seed in range(400)])
    t = np.arange(1, 200)
    arrived = 1 - (1 - p) ** t
    from scipy.stats import binom

    exact = binom.sf(4, 9, arrived)
    assert np.abs(np.mean(lengths[:, None] <= t, axis=0) - exact).max() < np.sqrt(np.log(2 / 1e-6) / 800)


def test_route_shares_are_exact_in_law():
    """From 0 to 3 over 1 or over 2, and back from either: the loop-erased route is 0-1-3 with probability a/(a + b).

    a = p01 p13/(p13 + p10) and b likewise are the chances that an attempt over 1 or over 2 succeeds.
    """
    p = np.array([[0.5, 0.3, 0.2, 0], [0.25, 0.5, 0, 0.25], [0.1, 0, 0.5, 0.4], [0.2, 0, 0, 0.8]])
    eps = 0.5
    source, head = np.nonzero(p * (1 - np.eye(4)))
    states = np.arange(4)
    graph = MetastableGraph.from_edges((states, states, np.ones(4)), (source, head, p[source, head] / eps), states, eps)
    subject = base_subject(graph, build_task(TaskConfig("state:0", "state:3"), graph))
    routes = sample_routes(subject, states, 0, 20_000, 100_000)
    a, b = 0.3 * 0.25 / 0.5, 0.2 * 0.4 / 0.5
    assert set(routes.counts) == {(0, 1, 3), (0, 2, 3)}
    assert routes.share((0, 1, 3)) == pytest.approx(a / (a + b), abs=5 * 0.5 / np.sqrt(20_000))
    assert routes.given_up == 0


def test_walks_that_are_given_up_are_left_out():
    graph = clustered_graph(4, 6, 0.001, seed=1, degree=3)
    routes = sample_routes(base_subject(graph, build_task(TaskConfig(), graph)), graph.clusters, 0, 50, 256)
    assert routes.given_up + routes.n == 50
    assert routes.given_up > 0


def test_frames_hold_every_change_of_cluster():
    clusters = np.arange(4)
    states = np.repeat([0, 1, 0, 2, 3], [3000, 10, 2000, 4000, 1])
    shown = frames(states, clusters, most=100)
    assert len(shown) < 250
    assert (np.diff(shown) > 0).all()
    assert (shown[0], shown[-1]) == (0, len(states) - 1)
    for change in (3000, 3010, 5010, 9010):
        assert {change - 1, change} <= set(shown.tolist())
    np.testing.assert_array_equal(frames(states[:150], clusters, most=100), np.arange(150))
