"""Algorithm 1: the loss against a loop; the kernel, the support, and the two regimes of Theorem 3.1."""

import math

import numpy as np
import pytest
import torch

from mcot_torch import Context
from mcot_torch.algorithms.pretrain import PretrainConfig, negative_log_likelihood, pretrain
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.reasoners import LinearReasoner, TransformerReasoner
from mcot_torch.sampling.datasets import CountData, PathData, count_batch
from mcot_torch.sampling.walks import StepTable, walk_paths
from mcot_torch.training.config import TrainerConfig


def context(seed=0, probe=None):
    return Context(seed, None, TrainerConfig(accelerator="cpu", progress=False), probe)


# ---- the loss -------------------------------------------------------------------------------------------------------


def test_loss_against_a_loop():
    rng = np.random.default_rng(0)
    log_p = torch.from_numpy(np.log(rng.dirichlet(np.ones(5), size=(3, 2))))
    counts = torch.from_numpy(rng.integers(0, 4, (3, 2, 5)).astype(float))
    total = n = 0.0
    for b in range(3):
        for t in range(2):
            for y in range(5):
                for _ in range(int(counts[b, t, y])):
                    total, n = total - float(log_p[b, t, y]), n + 1
    assert float(negative_log_likelihood(log_p, counts)) == pytest.approx(total / n, rel=1e-14)


def test_cut_steps_are_left_out_of_the_loss_and_its_gradient():
    logits = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    forbidden = torch.tensor([[[False, False, True]]])
    counts = torch.tensor([[[1.0, 3.0, 7.0]]], dtype=torch.float64)
    loss = negative_log_likelihood(logits.masked_fill(forbidden, -torch.inf).log_softmax(-1), counts)
    assert float(loss) == pytest.approx(math.log(2), rel=1e-14)
    loss.backward()
    np.testing.assert_allclose(logits.grad, [[[0.25, -0.25, 0]]], atol=1e-15)


def test_counts_give_the_gradient_of_every_sampled_step(small_graph):
    """With window 1 a pass over states equals a pass over transitions (docs/specification.md#counts-are-sufficient)."""
    paths = walk_paths(StepTable.from_graph(small_graph), torch.arange(32), 200, torch.Generator().manual_seed(1))
    model = TransformerReasoner(32).double()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    counts = torch.zeros(32, 32, dtype=torch.float64)
    counts.index_put_(
        (paths[:, :-1].ravel(), paths[:, 1:].ravel()), torch.ones(6400, dtype=torch.float64), accumulate=True
    )
    states, _, seen = count_batch(counts, dtype=torch.float64)
    by_counts = negative_log_likelihood(model.log_probs(states), seen)
    each = model.log_probs_of(paths[:, :-1].reshape(-1, 1), paths[:, 1:].reshape(-1, 1, 1))
    by_steps = negative_log_likelihood(each, torch.ones_like(each))
    assert float(by_counts) == pytest.approx(float(by_steps), rel=1e-13)
    for a, b in zip(*(torch.autograd.grad(x, list(model.parameters())) for x in (by_counts, by_steps)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


# ---- the algorithm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["paths", "pairs"])
@pytest.mark.parametrize("optimizer", ["adam", "gd"])
def test_reaches_the_kernel_on_its_exact_support(optimizer, data):
    """N = 32, 10^9 transitions: sampling alone leaves an error of about 1e-4, six of its deviations are allowed."""
    graph = clustered_graph(4, 8, 0.02, seed=3, weights=(1.0, 2.0, 1.0))
    model = LinearReasoner(32)
    config = PretrainConfig(400, 300, data=data, optimizer=optimizer, log_every=100)
    history = pretrain(model, graph, config, context()).history
    exact = graph.kernel()
    assert np.array_equal(model.support.mask.numpy(), exact > 0)
    error = np.abs(model.kernel().numpy() - exact)
    assert error.max() < 6 * math.sqrt(0.25 / (1e9 / 32)) + (1e-6 if optimizer == "gd" else 1e-3)
    assert [line["step"] for line in history] == list(range(100, 701, 100))
    entropy_rate = -(exact[exact > 0] * np.log(exact[exact > 0])).sum() / 32
    if data == "pairs":
        assert history[-1]["loss"] == pytest.approx(entropy_rate, abs=1e-3)
    assert history[-1]["loss"] < history[0]["loss"]
    rates = [line["learning_rate"] for line in history]
    assert rates == ([32.0] * 7 if optimizer == "gd" else sorted(rates, reverse=True))


def test_power_law_before_the_cut_and_exponential_after_it():
    """Theorem 3.1's two regimes, against the optimum of the very sample (counts over their row sums)."""
    graph = clustered_graph(4, 8, 0.05, seed=1)
    config = PretrainConfig(1600, 800, optimizer="gd", log_every=200, transitions=10**8)
    table = StepTable.from_graph(graph)
    _, _, counts = CountData(table, 10**8, config.path_length, 1, 4, torch.float64)[0]
    counts = table.to_edges(counts[:, 0])
    optimum = counts / counts.sum(1, keepdim=True)
    model = LinearReasoner(32)
    errors = []

    def probe(reasoner):
        errors.append(float((reasoner.kernel() - optimum).abs().max()))
        return {}

    pretrain(model, graph, config, context(4, probe))
    at = dict(zip(range(200, 2401, 200), errors, strict=True))
    for step in (200, 400, 800):  # T -> 2T halves it: T^-1
        assert 0.4 < at[2 * step] / at[step] < 0.62
    assert at[1600] > 1e-4
    assert at[1800] < 1e-2 * at[1600]  # 200 steps do what doubling T cannot
    assert at[2000] < 1e-2 * at[1800] or at[2000] < 1e-12
    assert at[2400] < 1e-12


@pytest.mark.parametrize(("threshold", "expected"), [(None, "all"), (0.03, "dense"), (0.0, "everything")])
def test_threshold(threshold, expected, small_graph):
    model = LinearReasoner(32)
    pretrain(model, small_graph, PretrainConfig(500, 100, threshold=threshold), context())
    kernel = small_graph.kernel()
    wanted = {"all": kernel > 0, "dense": kernel >= 0.03, "everything": kernel >= 0}[expected]
    assert np.array_equal(model.support.mask.numpy(), wanted)


def test_the_cut_comes_after_t1_steps(small_graph):
    sizes = {}

    def probe(reasoner):
        return {"support": int(reasoner.support.mask.sum())}

    model = LinearReasoner(32)
    history = pretrain(model, small_graph, PretrainConfig(300, 3, log_every=1), context(probe=probe)).history
    sizes = {line["step"]: line["support"] for line in history}
    assert set(list(sizes.values())[:300]) == {32 * 32}
    assert sizes[301] < 32 * 32
    only_after = LinearReasoner(32)
    pretrain(only_after, small_graph, PretrainConfig(300, 0), context())
    assert int(only_after.support.mask.sum()) == small_graph.n_edges


def test_transformer_with_window_1(small_graph):
    model = TransformerReasoner(32, 1, 32, 1, 2)
    pretrain(model, small_graph, PretrainConfig(500, 300), context())
    exact = small_graph.kernel()
    assert np.array_equal(model.support.mask.numpy(), exact > 0)
    assert np.abs(model.kernel().numpy() - exact).max() < 0.01
    hard = exact[small_graph.sparse_edges[:, 0], small_graph.sparse_edges[:, 1]]
    found = model.kernel().numpy()[small_graph.sparse_edges[:, 0], small_graph.sparse_edges[:, 1]]
    np.testing.assert_allclose(found, hard, rtol=0.1)


def test_longer_window_learns():
    graph = clustered_graph(2, 4, 0.1, [1], cluster="complete", seed=0)
    model = TransformerReasoner(8, 8, 16, 1, 2)
    pretrain(model, graph, PretrainConfig(300, 100, batch_size=32), context())
    exact = torch.from_numpy(graph.kernel())
    table = StepTable.from_graph(graph)
    kernel, visits, _ = model.context_kernel(PathData(table, 500, 8, 1, 99).paths(0)[:, :-1])
    assert (visits > 0).all()
    assert float((kernel - exact).abs().max()) < 0.1
    assert torch.equal(model.support.mask, exact > 0)


def test_the_cut_of_a_longer_window_keeps_what_was_not_visited():
    """640 states, and the 64 paths that decide the cut have two contexts each."""
    graph = clustered_graph(20, 32, 0.02, seed=0)
    model = TransformerReasoner(640, 2, 8, 1, 2)
    pretrain(model, graph, PretrainConfig(1, 0, batch_size=1, threshold=0.5), context())
    paths = PathData(StepTable.from_graph(graph), 1, 2, 1, 0)
    visited = torch.cat([paths.paths(1 + i)[:, :-1] for i in range(64)]).unique()
    assert 64 < len(visited) <= 128
    left = torch.full((640,), 640)  # rows without a context are left as they were
    left[visited] = 1
    assert torch.equal(model.support.mask.sum(1), left)
