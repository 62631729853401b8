"""Rows in blocks: what is too large to hold at once gives the numbers of what is not."""

import numpy as np
import pytest
import torch

from mcot_torch import Context
from mcot_torch.algorithms.ppo import PPOConfig, ppo
from mcot_torch.algorithms.pretrain import PretrainConfig, pretrain
from mcot_torch.algorithms.prm import PRM, guidance
from mcot_torch.evaluation.measures import make_probe
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner, TransformerReasoner, sparse_kernel, step_table
from mcot_torch.training.config import TrainerConfig

GRAPH = clustered_graph(4, 8, 0.02, seed=3)
SCALES = Scales.of(GRAPH, 0.08)
PRM_ = PRM.simulated(GRAPH)


def reasoner(kind):
    if kind == "linear":
        return LinearReasoner(32)
    model = TransformerReasoner(32, 4 if kind == "window 4" else 1, 16, 1, 2).double()
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def trained(kind, stage, **options):
    model = reasoner(kind)
    context = Context(trainer=TrainerConfig(accelerator="cpu", progress=False))
    if stage == "pretrain":
        config = PretrainConfig(
            steps=6, steps_after_cut=6, threshold=0.01, transitions=20_000, path_length=20, log_every=4, **options
        )
        return model, pretrain(model, GRAPH, config, context).history
    model.support.set(torch.from_numpy(GRAPH.kernel() > 0))
    config = PPOConfig(rounds=2, epochs=3, transitions=4000, learning_rate=0.01, log_every=1, **options)
    return model, ppo(model, PRM_, SCALES, config, context).history


CASES = [
    ("pretrain", {}),
    ("pretrain", {"optimizer": "gd"}),
    ("ppo", {}),
    ("ppo", {"minibatches": 2, "entropy_coefficient": 0.1}),
    ("ppo", {"target_kl": 1e-3}),
    ("ppo", {"gamma": 0.5}),
]


@pytest.mark.parametrize("kind", ["linear", "transformer", pytest.param("window 4", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("stage", "options"), CASES, ids=str)
def test_a_stage_in_blocks(kind, stage, options, monkeypatch, hold_at_once):
    whole, history = trained(kind, stage, **options)
    forward, sizes = type(whole).forward, []
    hold_at_once(5 * 32 * whole.window)
    monkeypatch.setattr(type(whole), "forward", lambda self, x, *a: (sizes.append(len(x)), forward(self, x, *a))[1])
    model, again = trained(kind, stage, **options)
    if kind != "window 4" and "gamma" not in options:  # walks with history, and values, take all contexts at once
        assert max(sizes) == 5
    assert torch.equal(model.support.mask, whole.support.mask)
    for part, expected in zip(model.parameters(), whole.parameters(), strict=True):
        np.testing.assert_allclose(part.detach(), expected.detach(), rtol=1e-6, atol=1e-9)
    assert len(again) == len(history)
    for line, expected in zip(again, history, strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("policy", [None, guidance(PRM_, SCALES)])
def test_a_kernel_in_blocks(policy, hold_at_once):
    model = reasoner("transformer")
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    model.support.set(torch.from_numpy(GRAPH.kernel() > 0))
    whole, probed = model.kernel(policy=policy), make_probe(GRAPH)(model)
    hold_at_once(5 * 32)
    blocks = list(model.kernel_rows(policy=policy))
    assert [len(states) for states, _ in blocks] == [5, 5, 5, 5, 5, 5, 2]
    np.testing.assert_allclose(model.kernel(policy=policy), whole, rtol=1e-12)
    sparse = sparse_kernel(model, policy)
    assert sparse.nnz == GRAPH.n_edges
    np.testing.assert_allclose(sparse.toarray(), whole, rtol=1e-12)
    table = step_table(model, policy)
    np.testing.assert_allclose(table.to_edges(table.probabilities), whole, rtol=1e-12)
    assert make_probe(GRAPH)(model) == pytest.approx(probed, rel=1e-10)
