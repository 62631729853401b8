"""Gradients of every loss that is descended, against central differences in float64.

Nothing is asked but the training itself: each stage is run through its public call, and the test puts its weights where
the differences need them.
"""

from __future__ import annotations

import pytest
import torch

from mcot_torch import Context
from mcot_torch.algorithms.config import DistillConfig, PPOConfig
from mcot_torch.algorithms.distill import distill
from mcot_torch.algorithms.ppo import clipped_surrogate, entropy, kl_divergence, ppo
from mcot_torch.algorithms.pretrain import PretrainConfig, pretrain
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.rollouts import gae
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner, Student, TransformerReasoner
from mcot_torch.training.config import TrainerConfig

N = 6
TRAINER = TrainerConfig(accelerator="cpu", progress=False)
CONTEXT = Context(trainer=TRAINER)


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


@pytest.fixture
def wide():
    """Whatever is made without a dtype is float64: losses that are differenced need it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


STEP = 1e-6  # small, lest a ratio cross the clip between two points
PLACES = [0.0] + [k * STEP for _ in range(12) for k in (1, -1, 2, -2)]


def points(weights):
    """The weights themselves, and four places along each of twelve random directions through them."""
    generator, before = draw(2), [w.detach().clone() for w in weights]
    directions = [[torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in before] for _ in range(12)]
    moves = [directions[max(0, i - 1) // 4] for i in range(len(PLACES))]
    return directions, [
        [b + step * d for b, d in zip(before, move, strict=True)] for step, move in zip(PLACES, moves, strict=True)
    ]


def put(weights, point):
    with torch.no_grad():
        for weight, value in zip(weights, point, strict=True):
            weight.copy_(value)


def compare(directions, losses, gradient) -> None:
    """The gradient at the first of the `points` against the losses at all of them, by differences of fourth order."""
    assert len(losses) == len(PLACES)
    assert max(float(g.abs().max()) for g in gradient) > 1e-3
    for i, direction in enumerate(directions):
        near, back, far, far_back = losses[1 + 4 * i : 5 + 4 * i]
        slope = (8 * (near - back) - (far - far_back)) / (12 * STEP)
        exact = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        assert slope == pytest.approx(exact, rel=1e-6, abs=1e-8)


MODELS = [("linear", 1), ("transformer", 1), ("transformer", 4)]


@pytest.mark.parametrize(("kind", "window", "tied"), [*((*m, False) for m in MODELS), ("transformer", 3, True)])
def test_pretraining(kind, window, tied, wide):
    """L(W) of Algorithm 1 as the stage descends it, with observations of steps that are cut."""
    model = random_model(kind, window, **({"tied": True} if tied else {}))
    support, weights = model.support.mask.clone(), list(model.parameters())
    graph = clustered_graph(2, 3, 0.1, shape="ring", cluster="complete", seed=0)
    assert bool((graph.kernel() > 0)[~support.numpy()].any())
    settings = {"batch_size": 5} if window > 1 else {"transitions": 900, "path_length": 30}
    config = PretrainConfig(1, 0, log_every=1, **settings)
    gradients: list = [None] * len(weights)
    for i, weight in enumerate(weights):  # before they are clipped
        weight.register_post_accumulate_grad_hook(lambda w, i=i: gradients.__setitem__(i, w.grad.detach().clone()))
    directions, places = points(weights)
    losses, gradient = [], None
    for place in places:
        put(weights, place)
        model.support.set(support)
        (line,) = pretrain(model, graph, config, CONTEXT).history
        losses.append(line["loss"])
        gradient = gradient or [
            torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)
        ]
    compare(directions, losses, gradient)


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
def test_ppo_with_every_option(kind, window, options, wide, descents, surrogates):
    """The losses of minibatches, away from the policy that sampled, so that part of the ratios is clipped; once noisy."""
    model = random_model(kind, window)
    config = PPOConfig(rounds=1, epochs=1 + len(PLACES), transitions=400, path_length=10, minibatches=2, **options)
    edges = torch.tensor([[0, 2], [3, 0], [4, 5]])
    assert bool(model.support.mask[edges[:, 0], edges[:, 1]].all())
    prm = PRM(N, edges, noise=0.1 if not options else 0.0)
    start, target = torch.full((N,), 1 / N, dtype=torch.float64), torch.arange(N) == 5
    # away from the policy that sampled
    away = [w + 0.25 * torch.randn(w.shape, generator=draw(4), dtype=torch.float64) for w in model.parameters()]
    directions, places = points(away)
    descents.then = lambda number, weights: put(weights, places[min(max(0, number - 1) // 2, len(places) - 1)])
    ppo(model, prm, Scales(2, 3, 0.02, 0.1), config, CONTEXT, start, target)
    assert len(descents) == 2 * (1 + len(places))

    ratios = []
    for log_p, old, rollout in surrogates[2:4]:
        log_ratio = torch.where(rollout.counts > 0, log_p - old, 0.0)
        ratios.append(log_ratio.exp().flatten())
    clipped = (torch.cat(ratios) - 1).abs() > config.clip
    assert bool(clipped.any())
    assert not bool(clipped.all())
    # pass k + 1 was taken at place k; its two minibatches are shuffled, and their sum is not
    losses = [descents[i].loss + descents[i + 1].loss for i in range(2, len(descents), 2)]
    gradient = [a + b for a, b in zip(descents[2].gradients, descents[3].gradients, strict=True)]
    compare(directions, losses, gradient)


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


@pytest.mark.parametrize("beta", [0.0, 1.5])
@pytest.mark.parametrize("student", ["linear", "transformer"])
def test_distillation(student, beta, wide, descents):
    """The student's loss as its stage descends it, with β of zero as in training and with another; some hops are cut."""
    kernel = torch.zeros(N, N)
    for x in range(N):
        kernel[x, x ^ 1] = 0.7
    kernel[0, 2], kernel[2, 4], kernel[4, 0], kernel[2, 0] = 0.2, 0.2, 0.3, 0.1
    teacher = LinearReasoner.from_kernel(kernel / kernel.sum(1, keepdim=True))
    prm = PRM(N, torch.tensor([[0, 2], [2, 4], [4, 0], [2, 0]]))
    config = DistillConfig(student=student, steps=1 + len(PLACES), transitions=6000, path_length=60, log_every=1)
    directions, places, seen = [], [], []

    def probe(model):
        """The student, once it stands where the next step is to be taken."""
        seen.append(model)
        model.beta.fill_(beta)
        return {}

    def move(number, weights):
        if not places:
            away = [0.5 * torch.randn(w.shape, generator=draw(7), dtype=torch.float64) for w in weights]
            for found, kept in zip(points(away), (directions, places), strict=True):
                kept.extend(found)
        put(weights, places[min(number, len(places) - 1)])

    descents.then = move
    history = distill(teacher, prm, Scales(3, 2, 0.2, 0.4), config, Context(trainer=TRAINER, probe=probe)).history
    assert isinstance(seen[0], Student)
    assert seen[0].n_states == 3
    assert not bool(seen[0].support.mask.all())
    assert seen[0].support.mask.any(1).all()
    losses = [line["loss"] for line in history[1:]]  # step k + 1 was taken at place k
    compare(directions, losses, descents[1].gradients)


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
