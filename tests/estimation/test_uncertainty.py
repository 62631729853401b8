"""Intervals that cover, a check that can fail, and confidence that is low where it should be."""

import numpy as np
import pytest
import torch
from scipy import sparse as sp
from scipy.stats import beta

from mcot_torch.chains import hitting_time
from mcot_torch.estimation.trajectories import Trajectories
from mcot_torch.estimation.uncertainty import (
    chapman_kolmogorov,
    hitting_time_interval,
    separation_confidence,
    step_intervals,
)
from mcot_torch.graphs import TaskConfig, build_task
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.sampling.walks import StepTable, walk_paths
from mcot_torch.system.randomness import generator


def walks(graph, n_walks, n_steps, seed):
    start = torch.arange(n_walks) % graph.n_states
    paths = walk_paths(StepTable.from_graph(graph), start, n_steps, generator(seed, "test"))
    return Trajectories(tuple(paths.numpy()), tuple(map(str, range(graph.n_states))))


def test_interval_of_a_step_is_that_of_a_dirichlet_law():
    counts = sp.csr_array(np.array([[90.0, 3.0, 7.0], [0.0, 5.0, 5.0], [1.0, 0.0, 0.0]]))
    low, high = step_intervals(counts, np.array([[0, 1]]))[0]
    rows = np.random.default_rng(0).dirichlet([90 + 1 / 3, 3 + 1 / 3, 7 + 1 / 3], size=200_000)
    np.testing.assert_allclose([low, high], np.quantile(rows[:, 1], [0.025, 0.975]), rtol=0.02)
    only = step_intervals(counts, np.array([[2, 0]]))[0]
    np.testing.assert_allclose(only, [1.0, 1.0])  # a single way out: the law of its row is certain
    two = step_intervals(counts, np.array([[1, 2]]))[0]
    np.testing.assert_allclose(two, beta(5.5, 5.5).ppf([0.025, 0.975]))


def test_intervals_cover_the_truth():
    graph = clustered_graph(4, 4, 0.05, degree=3, seed=1)
    task = build_task(TaskConfig(), graph)
    truth = hitting_time(graph.to_scipy(), task.start, task.target)
    exact = graph.kernel()[tuple(graph.sparse_edges.T)]
    hits, steps = 0, []
    for seed in range(20):
        counts = walks(graph, 16, 60, seed).counts
        low, high = hitting_time_interval(counts, graph.clusters, task, 40, np.random.default_rng(seed))
        hits += low <= truth <= high
        interval = step_intervals(counts, graph.sparse_edges)
        steps.append((interval[:, 0] <= exact) & (exact <= interval[:, 1]))
    assert hits >= 16  # of 20 at 95 %: fewer has probability .003
    assert 0.9 <= np.mean(steps) <= 0.99


def test_chains_pass_the_check():
    for seed in range(3):
        graph = clustered_graph(4, 8, 0.02, seed=seed)
        rows = chapman_kolmogorov(walks(graph, 20, 1000, seed), graph.clusters)
        assert sorted({row.lag for row in rows}) == [2, 4, 8, 16, 32, 64, 128, 256]
        assert {row.cluster for row in rows} == {0, 1, 2, 3}
        assert all(row.consistent for row in rows)


def test_prediction_is_the_power_of_the_kernel():
    graph = clustered_graph(4, 8, 0.02, seed=0)
    data = walks(graph, 1, 5000, 0)
    kernel = data.counts.toarray() / data.counts.sum(axis=1)[:, None]
    power, path, inside = np.linalg.matrix_power(kernel, 8), data.paths[0], graph.clusters == 2
    starts = path[:-8][inside[path[:-8]]]
    row = next(r for r in chapman_kolmogorov(data, graph.clusters) if (r.lag, r.cluster) == (8, 2))
    assert row.predicted == pytest.approx(np.mean([power[x][inside].sum() for x in starts]))
    assert row.observed == pytest.approx(np.mean(inside[path[8:]][inside[path[:-8]]]))


def test_memory_fails_the_check():
    # two clusters of two states; the chain stays exactly 10 steps in each: a clock that the states do not show
    rng = np.random.default_rng(0)
    cluster = np.arange(20_000) // 10 % 2
    path = 2 * cluster + rng.integers(0, 2, size=20_000)
    rows = chapman_kolmogorov(Trajectories((path,), tuple("abcd")), np.array([0, 0, 1, 1]))
    assert not all(row.consistent for row in rows)


def test_confidence():
    graph = clustered_graph(4, 8, 0.01, seed=0)
    counts = sp.csr_array(500 * graph.to_scipy())
    easy = np.stack([graph.sources[~graph.hard], graph.indices[~graph.hard]], axis=1)[:30]
    steps = np.concatenate([graph.sparse_edges, easy])
    confidence = separation_confidence(counts, steps, 4, 20, np.random.default_rng(0))
    n_hard = len(graph.sparse_edges)
    np.testing.assert_array_equal(confidence[:n_hard], 1.0)
    np.testing.assert_array_equal(confidence[n_hard:], 0.0)
    # with one cluster too many somewhere in a cluster, which one is cut is left to chance
    unsure = separation_confidence(counts, easy, 6, 20, np.random.default_rng(0))
    assert ((unsure > 0) & (unsure < 1)).any()
