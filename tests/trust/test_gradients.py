"""Gradients of every loss that is descended, against central differences in float64."""

from __future__ import annotations

import pytest
import torch

from mcot_torch.algorithms.config import DistillConfig, PPOConfig
from mcot_torch.algorithms.distill import DistillStage, _fresh_student
from mcot_torch.algorithms.ppo import PPOStage, clipped_surrogate, entropy, kl_divergence
from mcot_torch.algorithms.pretrain import PretrainConfig, PretrainStage, negative_log_likelihood
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.rollouts import gae
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner, Student, TransformerReasoner
from mcot_torch.sampling.datasets import PairCounts, count_batch, path_batch
from mcot_torch.training.loop import Context

N = 6


def draw(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def random_model(kind: str, window: int, n: int = N, **kwargs):
    """A float64 model whose every weight is random, none at its initial zero; every third step is cut."""
    model = LinearReasoner(n) if kind == "linear" else TransformerReasoner(n, window, 8, 2, 2, **kwargs).double()
    generator = draw(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.7 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    states = torch.arange(n)
    model.support.set((states[:, None] + states) % 3 != 1)
    return model


def compare(model, loss_of) -> None:
    """The gradient along random directions and along every axis of the first weight, by differences of fourth order."""
    weights = list(model.parameters())
    gradient = torch.autograd.grad(loss_of(), weights, allow_unused=True)
    gradient = [torch.zeros_like(w) if g is None else g for g, w in zip(gradient, weights, strict=True)]
    assert max(float(g.abs().max()) for g in gradient) > 1e-3
    generator, before = draw(2), [w.detach().clone() for w in weights]
    for _ in range(12):
        direction = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]

        def moved(step, direction=direction):
            with torch.no_grad():
                for w, b, d in zip(weights, before, direction, strict=True):
                    w.copy_(b + step * d)
                return float(loss_of())

        h = 1e-6  # small, lest a ratio cross the clip between two points
        slope = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
        moved(0.0)
        exact = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        assert slope == pytest.approx(exact, rel=1e-6, abs=1e-8)


MODELS = [("linear", 1), ("transformer", 1), ("transformer", 4)]


class Loss:
    """Stands in for `Stage.update`: keeps the loss that a stage would descend."""

    def __init__(self, stage) -> None:
        self.value = None
        stage.update = self

    def __call__(self, losses, *_, **__) -> None:
        self.value = sum(losses)


@pytest.mark.parametrize(("kind", "window"), MODELS)
def test_pretraining(kind, window):
    """L(W) of Algorithm 1 as the stage descends it, with observations of steps that are cut."""
    model = random_model(kind, window)
    if window == 1:
        batch = count_batch(torch.randint(0, 50, (N, N), generator=draw()).double(), dtype=torch.float64)
    else:
        paths = torch.randint(N, (5, window + 1), generator=draw())
        batch = tuple(x.double() if x.is_floating_point() else x for x in path_batch(paths))
    stage = PretrainStage(model, None, PretrainConfig(), 0.01, Context())
    stage.total = 5
    stage.finish_step = lambda *_: None
    kept = Loss(stage)

    def loss():
        stage.training_step(batch)
        return kept.value

    compare(model, loss)


def test_a_tied_transformer():
    model = random_model("transformer", 3, tied=True)
    states, after, counts = path_batch(torch.randint(N, (5, 4), generator=draw()))
    compare(model, lambda: negative_log_likelihood(model.log_probs_of(states, after), counts.double()))


OPTIONS = [
    {},
    {"clip": 0.02},
    {"entropy_coefficient": 0.3},
    {"kl_coefficient": 0.7},
    {"gamma": 0.9, "gae_lambda": 0.5},
    {"reward": "outcome"},
    {"reward": "outcome", "entropy_coefficient": 0.1, "clip": 0.3},
    {"target_kl": 1e6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("kind", "window"), MODELS)
def test_ppo_with_every_option(kind, window, options):
    """The loss of a minibatch, away from the policy that sampled, so that part of the ratios is clipped; once noisy."""
    model = random_model(kind, window)
    config = PPOConfig(transitions=400, path_length=10, minibatches=2, **options)
    edges = torch.tensor([[0, 2], [3, 0], [4, 5]])
    assert bool(model.support.mask[edges[:, 0], edges[:, 1]].all())
    prm = PRM(N, edges, noise=0.1 if not options else 0.0)
    start, target = torch.full((N,), 1 / N, dtype=torch.float64), torch.arange(N) == 5
    scales = Scales(2, 3, 0.02, 0.1)
    stage = PPOStage(model, prm, scales, config, Context(), start, target)
    rollout = stage.rollout(draw(3))
    with torch.no_grad():
        old = model.log_probs(rollout.states)
        for weight in model.parameters():
            weight.add_(0.25 * torch.randn(weight.shape, generator=draw(4), dtype=torch.float64))
        log_ratio = torch.where(rollout.counts > 0, model.log_probs(rollout.states) - old, 0.0)
        clipped = (log_ratio.exp() - 1).abs() > config.clip
        assert bool(clipped.any())
        assert not bool(clipped.all())
    kept, rows = Loss(stage), torch.arange(0, len(rollout.states), 2)

    def loss():
        assert not stage._improve(rollout, old, rows, 0.1)
        return kept.value

    compare(model, loss)


def test_the_values_are_the_minimum_of_the_value_loss():
    """The table of values is fitted in closed form: at the mean return of each state the squared error has no slope."""
    generator = draw(5)
    states, returns = torch.randint(4, (200,), generator=generator), torch.randn(200, generator=generator).double()
    fitted = torch.stack([returns[states == x].mean() for x in range(4)]).requires_grad_()

    def value_loss(values):
        return ((values[states] - returns) ** 2).mean()

    (slope,) = torch.autograd.grad(value_loss(fitted), fitted)
    assert float(slope.abs().max()) < 1e-12
    assert torch.autograd.gradcheck(value_loss, torch.randn(4, generator=generator).double().requires_grad_())


@pytest.mark.parametrize("student", ["linear", "transformer"])
def test_distillation(student):
    """The student's loss as its stage descends it, with β of zero as in training and with another."""
    counts = torch.randint(1, 90, (N, N), generator=draw(6)).double()
    data = PairCounts(torch.arange(N).expand(N, N), counts, torch.tensor([0, 0, 1, 1, 2, 2]), 5)
    config = DistillConfig(student=student)
    labels = type("Found", (), {"labels": torch.tensor([0, 0, 1, 1, 2, 2]), "representatives": torch.tensor([0, 2, 4])})
    model = _fresh_student(LinearReasoner(N), data, labels, config, 0).double()
    assert isinstance(model, Student)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=draw(7), dtype=torch.float64))
    stage = DistillStage(model, config, Context())
    stage.total = 5
    stage.finish_step = lambda *_: None
    kept = Loss(stage)

    def loss():
        stage.training_step(data[0])
        return kept.value

    for beta in (0.0, 1.5):
        model.beta.fill_(beta)
        compare(model, loss)


def test_pure_functions():
    """Surrogate, entropy and KL by torch's own check, with forbidden steps; the advantages are linear in the rewards."""
    generator = draw(8)
    log_ratio = torch.randn(30, generator=generator).double().requires_grad_()
    advantage = torch.randn(30, generator=generator).double()
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, advantage, 0.2), log_ratio)
    logits = torch.randn(4, 5, generator=generator).double().requires_grad_()
    cut = torch.zeros(4, 5, dtype=torch.bool)
    cut[0, 1] = cut[2, 3] = True
    other = torch.randn(4, 5, generator=generator).double().masked_fill(cut, -torch.inf).log_softmax(-1)

    def log_p(x):
        return x.masked_fill(cut, -torch.inf).log_softmax(-1)

    assert torch.autograd.gradcheck(lambda x: entropy(log_p(x)), logits)
    assert torch.autograd.gradcheck(lambda x: kl_divergence(log_p(x), other), logits)
    done = torch.rand(3, 6, generator=generator) < 0.2
    values = torch.randn(3, 7, generator=generator).double()
    rewards = torch.randn(3, 6, generator=generator).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: gae(r, done, values, 0.9, 0.7), rewards)
