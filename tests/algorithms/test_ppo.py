"""Algorithm 3: the pure functions by hand and by loops, the paper's form, the practical form, the details of PPO."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mcot_torch import Context
from mcot_torch.algorithms.ppo import (
    PPOConfig,
    clipped_surrogate,
    entropy,
    kl_divergence,
    kl_weights,
    ppo,
    sign_ascent,
    surrogate_of_rollout,
)
from mcot_torch.algorithms.pretrain import negative_log_likelihood
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.rollouts import Rollout, gae_rollout
from mcot_torch.errors import InputError
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner, TransformerReasoner, generate
from mcot_torch.sampling.attempts import Attempts
from mcot_torch.sampling.datasets import count_batch
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.state import load_state, save_state


def context(seed=0, probe=None):
    return Context(seed, None, TrainerConfig(accelerator="cpu", progress=False), probe)


def around(folder, report=None):
    """A context that saves after every step."""
    trainer = TrainerConfig(accelerator="cpu", progress=False, save_every=0.0)
    return Context(0, folder, trainer, report=report)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def true_prm(graph):
    return PRM(graph.n_states, torch.from_numpy(graph.sparse_edges))


def hard_steps(matrix, graph):
    return np.asarray(matrix)[graph.sparse_edges[:, 0], graph.sparse_edges[:, 1]]


def row_tv(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).sum(1) / 2


# ---- pure functions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.2, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # past the upper clip there is nothing more to gain
        (0.5, 2.0, 1.0, 2.0),  # below the lower one a good step is still pulled back
        (1.0, -2.0, -2.0, -2.0),
        (0.5, -2.0, -1.6, 0.0),
        (1.5, -2.0, -3.0, -2.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, value, slope):
    r = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    objective = clipped_surrogate(r.log(), torch.tensor(advantage, dtype=torch.float64), 0.2)
    assert float(objective) == pytest.approx(value, rel=1e-12)
    objective.backward()
    assert float(r.grad) == pytest.approx(slope, rel=1e-12)


def test_surrogate_of_counts_is_the_sum_over_samples():
    """Samples of one step with advantages of both signs; ratios inside and outside of the clip."""
    draw = torch.Generator().manual_seed(0)
    n = 5
    old = torch.randn(n, n, dtype=torch.float64, generator=draw).log_softmax(-1)
    logits = (old + 0.6 * torch.randn(n, n, dtype=torch.float64, generator=draw)).requires_grad_()
    samples = [(int(x), int(y), float(a)) for x, y, a in zip(
        torch.randint(n, (300,), generator=draw), torch.randint(n, (300,), generator=draw),
        torch.randn(300, dtype=torch.float64, generator=draw), strict=True)]  # fmt: skip
    counts, gain, loss = torch.zeros(3, n, n, dtype=torch.float64)
    for x, y, a in samples:
        counts[x, y] += 1
        gain[x, y] += max(a, 0)
        loss[x, y] += max(-a, 0)
    assert ((gain > 0) & (loss > 0)).sum() > 15
    log_p = logits.log_softmax(-1)
    ratios = (log_p - old).exp()
    assert (ratios > 1.2).any()
    assert (ratios < 0.8).any()
    expected = 0.0
    for x, y, a in samples:
        r = ratios[x, y]
        expected = expected + torch.minimum(r * a, r.clamp(0.8, 1.2) * a)
    (by_samples,) = torch.autograd.grad(expected, logits, retain_graph=True)
    parts = (part[:, None] for part in (counts, gain, loss))
    rollout = Rollout(torch.arange(n)[:, None], *parts, 300, 0.0, 0.0)
    objective = surrogate_of_rollout(log_p[:, None], old[:, None], rollout, 0.2)
    assert objective.item() == pytest.approx(expected.item(), rel=1e-12)
    (by_counts,) = torch.autograd.grad(objective, logits)
    np.testing.assert_allclose(by_counts, by_samples, atol=1e-12)


def test_surrogate_with_forbidden_steps_has_a_finite_gradient():
    logits = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    log_p = logits.masked_fill(torch.tensor([False, False, True]), -torch.inf).log_softmax(-1)
    counts = tensor([[[3, 1, 0]]])
    rollout = Rollout(torch.zeros(1, 1, dtype=torch.int64), counts, counts * 0.5, counts * 0.2, 4, 0.0, 0.0)
    objective = surrogate_of_rollout(log_p, log_p.detach(), rollout, 0.2)
    assert objective.item() == pytest.approx(4 * 0.3, rel=1e-12)
    objective.backward()  # d/dz of Σ a_y log p_y at p = 1/2: a_y − ½ Σ a
    np.testing.assert_allclose(logits.grad, [[[0.9 - 0.6, 0.3 - 0.6, 0]]], atol=1e-12)


def test_entropy_and_kl_with_forbidden_steps():
    p, q = tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]), tensor([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]])
    np.testing.assert_allclose(entropy(p.log()), [math.log(2), 0], atol=1e-15)
    np.testing.assert_allclose(kl_divergence(p.log(), q.log()), [0.5 * math.log(2), math.log(2)], atol=1e-15)
    np.testing.assert_allclose(kl_divergence(p.log(), p.log()), 0, atol=1e-15)
    assert float(kl_divergence(q.log(), p.log())[0]) == math.inf


def test_gradients_of_entropy_and_kl_with_forbidden_steps():
    """With z = (0, log 3): dH/dz_y = −p_y (log p_y + H), and KL(p ‖ uniform) = log 2 − H."""
    forbidden = torch.tensor([False, False, True])
    p = np.array([0.25, 0.75])
    h = -(p * np.log(p)).sum()
    expected = [*(-p * (np.log(p) + h)), 0.0]
    logits = tensor([0.0, math.log(3), 5.0]).requires_grad_()
    log_p = logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)
    (gradient,) = torch.autograd.grad(entropy(log_p), logits, retain_graph=True)
    np.testing.assert_allclose(gradient, expected, atol=1e-14)
    uniform = tensor([0.5, 0.5, 0.0]).log()
    (gradient,) = torch.autograd.grad(kl_divergence(log_p, uniform), logits)
    np.testing.assert_allclose(gradient, [-v for v in expected], atol=1e-14)


# ---- the paper's form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "options"),
    [
        (0.002, {}),
        (1e-6, {"d_out": 3, "n_out": 1}),
        (0.002, {"d_out": 2, "weights": (1.0, 0.5, 2.0)}),
    ],
)
def test_sign_ascent_ends_on_epsilon_max(epsilon, options, exact_reasoner):
    graph = clustered_graph(5, 8, epsilon, **options)
    epsilon_max = 0.05
    model = exact_reasoner(graph)
    before = model.kernel()
    updates = sign_ascent(model, true_prm(graph), Scales.of(graph, epsilon_max))
    after, ideal = model.kernel(), graph.with_epsilon(epsilon_max).kernel()
    np.testing.assert_allclose(after, ideal, rtol=1e-10, atol=1e-12)
    mass = graph.hard_weight
    others = mass == 0
    assert np.abs(after - before)[torch.from_numpy(others)].max() <= 1e-12
    np.testing.assert_allclose(row_tv(after, before), mass * (epsilon_max - epsilon), rtol=1e-9, atol=1e-12)
    w = mass[~others]
    gap = np.log(epsilon_max * (1 - w * epsilon) / (epsilon * (1 - w * epsilon_max))).max()
    assert updates == math.ceil(gap / 0.2)


def test_number_of_updates_is_logarithmic(exact_reasoner):
    """Each factor e² in 1/ε takes ten more updates of η = .1; a smaller step takes more."""
    numbers = []
    for i in range(5):
        graph = clustered_graph(4, 8, 0.03 * math.exp(-2 * i - 1))
        model = exact_reasoner(graph)
        numbers.append(sign_ascent(model, true_prm(graph), Scales.of(graph, 0.03)))
    assert set(np.diff(numbers)) <= {10, 11}
    graph = clustered_graph(4, 8, 0.002)
    updates = [sign_ascent(exact_reasoner(graph), true_prm(graph), Scales.of(graph, 0.03), s) for s in (0.2, 0.05)]
    gap = math.log(0.03 * 0.998 / (0.002 * 0.97))
    assert updates == [math.ceil(gap / 0.4), math.ceil(gap / 0.1)]


def test_sign_ascent_without_known_steps_does_nothing(small_graph, exact_reasoner):
    model = exact_reasoner(small_graph)
    before = model.logits.detach().clone()
    assert sign_ascent(model, PRM(32, torch.empty(0, 2)), Scales.of(small_graph, 0.06)) == 0
    assert torch.equal(model.logits, before)


def test_sign_form_through_ppo(small_graph, exact_reasoner):
    lines = []
    around = context(probe=lambda reasoner: {"rows": float(reasoner.kernel().sum())})
    around.report = lines.append
    model, scales = exact_reasoner(small_graph), Scales.of(small_graph, 0.06)
    history = ppo(model, true_prm(small_graph), scales, PPOConfig(form="sign"), around).history
    gap = math.log(0.06 * 0.98 / (0.02 * 0.94))
    assert history == lines
    assert history[0]["updates"] == math.ceil(gap / 0.2)
    assert history[0]["rows"] == pytest.approx(32)
    np.testing.assert_allclose(model.kernel(), small_graph.with_epsilon(0.06).kernel(), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"form: sign .* linear reasoner"):
        ppo(TransformerReasoner(32, 1, 16, 1, 2), true_prm(small_graph), scales, PPOConfig(form="sign"), context())


# ---- the practical form ---------------------------------------------------------------------------------------------

EPSILON, EPSILON_MAX = 0.01, 0.06


@pytest.fixture
def graph():
    return clustered_graph(4, 8, EPSILON, seed=3)


def fitted_transformer(graph, window=1):
    """A transformer trained on the exact kernel and cut to its support."""
    model = TransformerReasoner(graph.n_states, window, 32, 1, 2)
    model.reset_parameters(torch.Generator().manual_seed(0))
    states, _, counts = count_batch(torch.from_numpy(graph.kernel()))
    model.support.set(torch.from_numpy(graph.kernel() > 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.95))
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.005 * (1 + math.cos(math.pi * step / 400))
        optimizer.zero_grad()
        negative_log_likelihood(model.log_probs(states), counts).backward()
        optimizer.step()
    return model


def assert_raised(model, reference, graph):
    """Hard steps within 10 % of ε_max; source rows moved by W (ε_max − ε) within 10 %, all others by at most .02."""
    after = model.kernel()
    np.testing.assert_allclose(hard_steps(after, graph), EPSILON_MAX, rtol=0.1)
    moved = row_tv(after, reference)
    source = graph.hard_weight > 0
    assert moved[~source].max() <= 0.02
    np.testing.assert_allclose(moved[source], EPSILON_MAX - EPSILON, rtol=0.25)
    assert row_tv(after, graph.with_epsilon(EPSILON_MAX).kernel()).max() <= 0.02


def test_clip_form_on_the_table(graph, exact_reasoner):
    model = exact_reasoner(graph)
    config = PPOConfig(rounds=40, transitions=200_000, learning_rate=0.01, log_every=10)
    history = ppo(model, true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context()).history
    assert_raised(model, graph.kernel(), graph)
    assert [line["step"] for line in history] == [10, 20, 30, 40]
    assert [line["env_steps"] for line in history] == [10 * i * 781 * 256 for i in (1, 2, 3, 4)]
    optimum = graph.with_epsilon(EPSILON_MAX).kernel()
    assert history[-1]["tv_to_optimum_max"] == pytest.approx(row_tv(model.kernel(), optimum).max(), rel=1e-6)
    assert history[-1]["tv_to_pretrained_max"] == pytest.approx(row_tv(model.kernel(), graph.kernel()).max(), rel=1e-6)


def test_clip_form_on_the_transformer(graph):
    model = fitted_transformer(graph)
    reference = model.kernel()
    np.testing.assert_allclose(hard_steps(reference, graph), EPSILON, rtol=0.02)
    config = PPOConfig(rounds=60, transitions=200_000, learning_rate=1e-3)
    ppo(model, true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context())
    assert_raised(model, reference, graph)


def test_a_missed_edge_stays_where_it_was(graph, exact_reasoner):
    model = exact_reasoner(graph)
    known = PRM(32, torch.from_numpy(graph.sparse_edges[1:]))
    config = PPOConfig(rounds=40, transitions=200_000, learning_rate=0.01)
    ppo(model, known, Scales.of(graph, EPSILON_MAX), config, context())
    raised = hard_steps(model.kernel(), graph)
    assert raised[0] == pytest.approx(EPSILON, rel=0.2)
    np.testing.assert_allclose(raised[1:], EPSILON_MAX, rtol=0.1)


# ---- the details that others got wrong ------------------------------------------------------------------------------


STILL = 1e-30  # a learning rate that moves no weight


def spread_out(model, seed=0, scale=0.3):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, dtype=p.dtype, generator=draw))
    return model


@pytest.mark.parametrize("minibatches", [1, 3])
@pytest.mark.parametrize("kind", ["linear", "transformer", "window 4"])
def test_ratio_is_one_on_the_first_minibatch(kind, minibatches, graph, exact_reasoner, surrogates):
    if kind == "linear":
        model = exact_reasoner(graph)
    else:
        model = spread_out(TransformerReasoner(32, 4 if kind == "window 4" else 1, 16, 1, 2))
        model.support.set(torch.from_numpy(graph.kernel() > 0))  # with the cut
    config = PPOConfig(rounds=3, epochs=2, minibatches=minibatches, transitions=4000, learning_rate=0.01)
    ppo(model, true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context())
    ratios = [(log_p - old)[rollout.counts > 0].exp() for log_p, old, rollout in surrogates]
    assert len(ratios) == 3 * 2 * minibatches
    for first in ratios[:: 2 * minibatches]:
        # batches of other sizes may round float32 differently: some units in the last place
        assert float((first - 1).abs().max()) <= (0 if kind == "linear" else 1e-5)
    assert max(float((r - 1).abs().max()) for r in ratios[minibatches : 2 * minibatches]) > 1e-3


def test_minibatches_are_reshuffled_and_cover_the_rollout(graph, exact_reasoner, surrogates):
    config = PPOConfig(rounds=1, epochs=3, minibatches=4, transitions=4000)
    ppo(exact_reasoner(graph), true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context())
    seen = [rollout.states[:, 0].tolist() for _, _, rollout in surrogates]
    assert len(seen) == 12
    passes = [[x for part in seen[i : i + 4] for x in part] for i in (0, 4, 8)]
    assert all(sorted(p) == list(range(32)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3


def test_minibatch_losses_are_normalised_by_the_whole_rollout(graph, exact_reasoner, descents):
    """At ratio 1 the mean gradient over the minibatches is the gradient over the rollout."""
    gradients = {}
    for minibatches in (1, 4):
        descents.clear()
        model = spread_out(exact_reasoner(graph))
        config = PPOConfig(
            rounds=1, epochs=1, minibatches=minibatches, transitions=4000, entropy_coefficient=0.1, learning_rate=STILL
        )
        ppo(model, true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context())
        assert len(descents) == minibatches
        gradients[minibatches] = [step.gradients[0] for step in descents]
    mean = torch.stack(gradients[4]).mean(0)
    assert float(mean.abs().max()) > 1e-4
    np.testing.assert_allclose(mean, gradients[1][0], atol=1e-12)


def test_the_loss_is_a_mean_over_samples(graph, exact_reasoner, descents, rollouts):
    """At ratio 1 the gradient of −(1/n) Σ a_xy p_xy/p_old,xy in the logits of row x is −(a_x − p_x Σ_y a_xy) / n."""
    model = spread_out(exact_reasoner(graph))
    config = PPOConfig(rounds=1, epochs=1, transitions=4000, learning_rate=STILL)
    ppo(model, true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context())
    ((rollout,), (step,)) = rollouts, descents
    a, p = (rollout.gain - rollout.loss)[:, 0].numpy(), model.kernel().numpy()
    expected = -(a - p * a.sum(1, keepdims=True)) / rollout.n_samples
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(step.gradients[0], expected, atol=1e-12)


@pytest.mark.parametrize(("limit", "updates"), [(1e-9, 1), (None, 6), (1e9, 6)])
def test_target_kl_stops_before_the_step(limit, updates, graph, exact_reasoner, descents):
    config = PPOConfig(rounds=2, epochs=6, transitions=4000, learning_rate=0.01, target_kl=limit)
    ppo(exact_reasoner(graph), true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context())
    assert len(descents) == 2 * updates


def test_a_round_ends_where_the_kl_limit_says_so(graph, exact_reasoner, descents, rollouts, surrogates):
    """A row of the third minibatch is moved too far: the round ends there, later passes included, and the next one runs."""

    def train(rounds):
        descents.clear()
        rollouts.clear()
        config = PPOConfig(rounds=rounds, epochs=3, minibatches=5, transitions=4000, learning_rate=1e-6, target_kl=0.01)
        ppo(exact_reasoner(graph), true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context())

    train(1)
    rows = [set(rollout.states[:, 0].tolist()) for _, _, rollout in surrogates]  # which minibatches the first round has
    assert len(rows) == 15
    row, taken = min(rows[2] - rows[5] - rows[6]), []  # the first two of the next pass lie below the limit

    def too_far(number, weights):
        taken.append(len(rollouts) - 1)
        if number == 1:
            weights[0][row] += torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    descents.then = too_far
    train(2)
    assert taken == [0] * 2 + [1] * 15


@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_entropy_bonus_with_forbidden_steps(kind, graph, exact_reasoner):
    """It trains, and a large bonus ends near the uniform law over each row's support."""
    model = exact_reasoner(graph) if kind == "linear" else TransformerReasoner(32, 1, 32, 1, 2)
    model.support.set(torch.from_numpy(graph.kernel() > 0))
    rate = 0.05 if kind == "linear" else 0.01
    config = PPOConfig(rounds=20, transitions=4000, learning_rate=rate, entropy_coefficient=100.0)
    history = ppo(model, true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context()).history
    uniform = model.support.mask / model.support.mask.sum(1, keepdim=True)
    assert row_tv(model.kernel(), uniform).max() < 0.15
    assert all(math.isfinite(value) for line in history for value in line.values())


def test_metrics_against_loops(graph, exact_reasoner, descents, rollouts):
    """Of a round whose one step is taken by the test."""
    model = exact_reasoner(graph)
    p = model.kernel().numpy()
    elsewhere = spread_out(exact_reasoner(graph), 2)
    descents.then = lambda number, weights: weights[0].copy_(elsewhere.logits)
    config = PPOConfig(rounds=1, epochs=1, transitions=2000, learning_rate=0.5)
    (metrics,) = ppo(model, true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context()).history
    q, n = model.kernel().numpy(), rollouts[0].counts[:, 0].numpy()
    kl = clip = h = 0.0
    for x in range(32):
        for y in range(32):
            if p[x, y] > 0:
                kl += n[x].sum() * p[x, y] * math.log(p[x, y] / q[x, y])
                h -= n[x].sum() * q[x, y] * math.log(q[x, y])
                clip += n[x, y] * (abs(q[x, y] / p[x, y] - 1) > 0.2)
    assert metrics["approx_kl"] == pytest.approx(kl / n.sum(), rel=1e-10)
    assert metrics["entropy"] == pytest.approx(h / n.sum(), rel=1e-10)
    assert metrics["clip_fraction"] == pytest.approx(clip / n.sum(), rel=1e-10)
    assert 0 < metrics["clip_fraction"] < 1
    assert metrics["tv_to_pretrained_max"] == pytest.approx(row_tv(q, graph.kernel()).max(), rel=1e-10)
    assert metrics["learning_rate"] == 0.5
    hard = n[graph.sparse_edges[:, 0], graph.sparse_edges[:, 1]].sum()
    assert metrics["mean_reward"] == pytest.approx(hard / n.sum(), rel=1e-10)


def test_the_reference_is_what_the_reasoner_was(graph, exact_reasoner, descents, tmp_path):
    """A copy, which stays behind as the reasoner moves, and which no optimiser has."""
    model = exact_reasoner(graph)
    config = PPOConfig(rounds=3, epochs=2, transitions=2000, log_every=1)
    descents.then = lambda number, weights: spread_out(model)
    history = ppo(model, true_prm(graph), Scales.of(graph, EPSILON_MAX), config, around(tmp_path)).history
    moved = row_tv(model.kernel(), graph.kernel()).max()
    assert moved > 0.1
    assert history[-1]["tv_to_pretrained_max"] == pytest.approx(moved, rel=1e-10)
    kept = exact_reasoner(graph)
    tensors, _ = load_state(tmp_path / "state.safetensors")
    kept.load_state_dict({key: tensors[f"extra.reference.{key}"] for key in kept.state_dict()})
    np.testing.assert_allclose(kept.kernel(), graph.kernel(), rtol=1e-12)
    assert all(len(step.parameters) == 1 and step.parameters[0] is model.logits for step in descents)


@pytest.mark.parametrize(("weight", "gamma"), [(0.5, 0.0), (2.0, 0.0), (0.5, 0.5)])
@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_two_armed_bandit(kind, weight, gamma):
    """Two states, and from each two arms; arm 0 -> 1 pays 1. The odds of the optimum are the old ones times e^{ΔQ/λ}."""
    model = LinearReasoner(2) if kind == "linear" else TransformerReasoner(2, 1, 16, 1, 2)
    if kind == "transformer":
        model.reset_parameters(torch.Generator().manual_seed(1))
    reference = model.kernel().double().numpy()
    value = np.zeros(2)
    reward = np.array([[0.0, 1.0], [0.0, 0.0]])
    for _ in range(100):
        q = reward + gamma * value
        value = weight * np.log((reference * np.exp(q / weight)).sum(1))
    odds = reference[:, 1] / reference[:, 0] * np.exp((q[:, 1] - q[:, 0]) / weight)
    config = PPOConfig(
        kl_coefficient=weight, gamma=gamma, gae_lambda=1.0, rounds=80, transitions=20_000, path_length=64,
        learning_rate=0.03 if kind == "linear" else 0.003,
    )  # fmt: skip
    history = ppo(model, PRM(2, tensor([[0, 1]]).long()), Scales(1, 2, 0.1, 0.2), config, context()).history
    np.testing.assert_allclose(model.kernel()[:, 1].numpy(), odds / (1 + odds), atol=0.01)
    assert abs(reference[0, 1] - odds[0] / (1 + odds[0])) > 0.08
    assert history[-1]["tv_to_optimum_max"] < 0.01


def test_saved_pieces_go_back_into_a_fresh_stage(graph, exact_reasoner, rollouts, tmp_path):
    """Eight walkers that take a step a round: the rollout of a round tells where they stood."""

    class Stop(Exception):
        pass

    def stop(line):
        if line["step"] == 3:
            raise Stop

    def run(place, reference, report=None, gamma=0.5):
        model = exact_reasoner(graph)
        config = PPOConfig(rounds=4, gamma=gamma, transitions=8, path_length=1, log_every=1)
        where = around(place, report)
        history = ppo(model, true_prm(graph), Scales.of(graph, EPSILON_MAX), config, where, reference=reference).history
        return model, history

    other = spread_out(exact_reasoner(graph), 5)  # a reference that the reasoner never was
    whole, history = run(tmp_path / "whole", other)
    with pytest.raises(Stop):
        run(tmp_path, other, stop)
    path = tmp_path / "state.safetensors"
    tensors, meta = load_state(path)
    assert meta["step"] == 2
    assert len(tensors["extra.walkers"]) == 8
    assert float(tensors["extra.values"].abs().max()) > 0
    assert int(tensors["extra.env_steps"]) == 16

    def resumed(**changed):
        save_state(path, {**tensors, **{f"extra.{key}": value for key, value in changed.items()}}, meta)
        rollouts.clear()
        return run(tmp_path, None)

    def stood():
        return rollouts[0].counts.sum((1, 2)).tolist()

    model, again = resumed()  # without that reference: the saved one counts
    assert stood() == torch.bincount(tensors["extra.walkers"], minlength=32).tolist()
    assert again == history
    assert torch.equal(model.logits, whole.logits)
    ends = [load_state(place / "state.safetensors")[0] for place in (tmp_path, tmp_path / "whole")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    np.testing.assert_array_equal(ends[0]["extra.reference.logits"], other.logits.detach())

    assert resumed(env_steps=torch.tensor(77))[1][-1]["env_steps"] == 77 + 16
    for state in (0, 31):
        resumed(walkers=torch.full((8,), state))
        assert stood() == [8 * (x == state) for x in range(32)]
    for state in (-1, 32):
        with pytest.raises(InputError, match=r"walker outside the states 0 \.\. 31"):
            resumed(walkers=torch.full((8,), state))
    for values in (torch.zeros(31, dtype=torch.float64), torch.zeros(32)):
        with pytest.raises(InputError, match="values of states, and there are 32"):
            resumed(values=values)

    lone = {key: value for key, value in tensors.items() if key != "extra.walkers"}  # as before the first round
    save_state(path, lone, meta)
    rollouts.clear()
    assert len(run(tmp_path, None)[1]) == 4
    assert sum(stood()) == 8
    run(tmp_path / "one step", None, gamma=0.0)
    assert "extra.walkers" not in load_state(tmp_path / "one step" / "state.safetensors")[0]


# ---- the exact policy gradient --------------------------------------------------------------------------------------


def assert_mean_is(samples, exact):
    """(R, D) samples have the mean `exact` (D,) by Hotelling's T², false-alarm rate 1e-6; one 20 % off is seen."""
    n, d = samples.shape
    mean, covariance = samples.mean(0), np.atleast_2d(np.cov(samples.T))
    limit = stats.f.isf(1e-6, d, n - d) * d * (n - 1) / (n - d)

    def distance(expected):
        return n * (mean - expected) @ np.linalg.solve(covariance, mean - expected)

    assert distance(exact) < limit
    assert distance(1.2 * exact) > limit
    assert distance(0.0 * exact) > limit


def sampled_gradients(model, roll, parameter, n_rollouts):
    """(R, ...) gradients at ratio 1 of the clipped surrogate of R rollouts, summed over their samples."""
    gradients = []
    for number in range(n_rollouts):
        with torch.no_grad():
            rollout = roll(torch.Generator().manual_seed(number))
            old = model.log_probs(rollout.states)
        objective = surrogate_of_rollout(model.log_probs(rollout.states), old, rollout, 0.2)
        gradients.append(torch.autograd.grad(objective, parameter)[0].double().numpy())
    return np.stack(gradients)


def test_sampled_gradient_of_one_step_is_the_exact_one(exact_reasoner, descents, rollouts):
    """gamma = 0: the gradient of Σ_t Σ_x P(X_t = x) Σ_y p(y|x) (r − λ log p/p_ref), differentiated as it stands."""
    graph = clustered_graph(3, 3, 0.1, shape="ring", cluster="complete", seed=0)
    reference, model = exact_reasoner(graph), exact_reasoner(graph)
    with torch.no_grad():  # away from the reference, so that the penalty has a gradient
        model.logits += 0.5 * torch.randn(9, 9, generator=torch.Generator().manual_seed(9), dtype=model.logits.dtype)
    weight, steps = 0.5, 8
    config = PPOConfig(
        kl_coefficient=weight, transitions=9 * 40 * steps, path_length=steps, rounds=600, epochs=1, log_every=600,
        learning_rate=STILL,
    )  # fmt: skip
    ppo(model, true_prm(graph), Scales.of(graph, 0.2), config, context(), reference=reference)
    assert len(descents) == len(rollouts) == 600
    pairs = zip(descents, rollouts, strict=True)
    sampled = np.stack([-step.gradients[0].numpy() * rollout.n_samples for step, rollout in pairs])

    kernel, allowed = model.kernel().numpy(), graph.kernel() > 0
    occupied = 40 * sum(np.ones(9) @ np.linalg.matrix_power(kernel, t) for t in range(steps))  # (N,) visits expected
    reward = torch.zeros(9, 9, dtype=torch.float64)
    reward[tuple(graph.sparse_edges.T)] = 1.0
    log_ref = torch.from_numpy(np.log(np.where(allowed, graph.kernel(), 1.0)))
    logits = model.logits.detach().double().requires_grad_()
    log_p = torch.where(torch.from_numpy(allowed), logits, -torch.inf).log_softmax(-1)
    log_p = torch.where(torch.from_numpy(allowed), log_p, 0.0)
    mass = torch.where(torch.from_numpy(allowed), log_p.exp(), 0.0)
    objective = (torch.from_numpy(occupied)[:, None] * mass * (reward - weight * (log_p - log_ref))).sum()
    (exact,) = torch.autograd.grad(objective, logits)
    free = allowed & (np.cumsum(allowed, 1) > 1)  # a softmax row's gradients sum to 0: leave the first out
    assert_mean_is(sampled[:, free], exact.numpy()[free])


def test_sampled_gradient_of_outcomes_is_the_exact_one(exact_reasoner):
    """gamma > 0 on a ring of three clusters: Σ_x d(x) p(y|x) A(x, y), d the visits before X_out or the end, A by Bellman.

    With λ = 1 of GAE and the exact values the sampled advantages have the mean A, whatever the truncation.
    """
    graph = clustered_graph(3, 3, 0.1, shape="ring", cluster="complete", seed=0)
    reference, model = exact_reasoner(graph), exact_reasoner(graph)
    with torch.no_grad():
        model.logits += 0.5 * torch.randn(9, 9, generator=torch.Generator().manual_seed(9), dtype=model.logits.dtype)
    weight, gamma, steps, walks = 0.2, 0.9, 12, 300
    start, target = torch.zeros(9, dtype=torch.float64), torch.zeros(9, dtype=torch.bool)
    start[:3], target[int(graph.entries[1])] = 1 / 3, True
    config = PPOConfig(
        reward="outcome", kl_coefficient=weight, gamma=gamma, gae_lambda=1.0, transitions=walks * steps,
        path_length=steps,
    )  # fmt: skip
    kernel, out = model.kernel().numpy(), target.numpy()
    allowed = kernel > 0
    ratio = np.log(np.where(allowed, kernel, 1.0) / np.where(allowed, graph.kernel(), 1.0))
    paid = np.where(allowed, out - weight * ratio, 0.0)  # (x, y)
    value = np.linalg.solve(np.eye(9) - gamma * kernel * ~out, (kernel * paid).sum(1)) * ~out
    advantage = paid + gamma * value - value[:, None]
    before, occupied = start.numpy(), np.zeros(9)
    for _ in range(steps):
        occupied += walks * before
        before = before @ kernel * ~out
    exact = occupied[:, None] * kernel * advantage

    weight_of = kl_weights(model, true_prm(graph), Scales.of(graph, 0.2), weight)

    def roll(draw):
        walkers = torch.multinomial(start, walks, replacement=True, generator=draw)
        paid_out, values = target.double().expand(9, -1), torch.from_numpy(value)
        attempts = Attempts.until(generate(model, walkers, config.path_length, draw), target)
        return gae_rollout(
            model, reference, attempts, paid_out, target, values, weight_of, config.gamma, config.gae_lambda
        )[0]

    sampled = sampled_gradients(model, roll, model.logits, 600)
    free = allowed & (np.cumsum(allowed, 1) > 1) & (occupied > 10)[:, None]
    assert_mean_is(sampled[:, free], exact[free])


# ---- outcome reward -------------------------------------------------------------------------------------------------


def test_outcome_reward_needs_a_task(graph, exact_reasoner):
    with pytest.raises(ValueError, match="outcome needs a task"):
        ppo(
            exact_reasoner(graph),
            true_prm(graph),
            Scales.of(graph, EPSILON_MAX),
            PPOConfig(reward="outcome"),
            context(),
        )


def test_outcome_reward_of_one_step(graph, exact_reasoner):
    """gamma = 0 pays for entering X_out at once, not for the PRM's steps: p ∝ p_ref e^{1/λ} on X_out."""
    target = torch.zeros(32, dtype=torch.bool)
    target[torch.from_numpy(graph.members(2)[:3])] = True
    model = exact_reasoner(graph)
    start = torch.ones(32, dtype=torch.float64) / 32
    config = PPOConfig(
        reward="outcome", gamma=0.0, kl_coefficient=1.0, rounds=40, transitions=100_000, learning_rate=0.02
    )
    history = ppo(model, true_prm(graph), Scales.of(graph, EPSILON_MAX), config, context(), start, target).history
    ideal = graph.kernel() * np.where(target.numpy(), math.e, 1.0)
    ideal /= ideal.sum(1, keepdims=True)
    assert row_tv(ideal, graph.kernel()).max() > 0.1
    assert row_tv(model.kernel(), ideal)[~target.numpy()].max() < 0.03
    assert history[-1]["tv_to_optimum_max"] < 0.03


def test_outcome_reward_on_a_ring_approaches_the_soft_optimum(exact_reasoner):
    """Three clusters of four states: value iteration gives the optimum of the regularised task."""
    graph = clustered_graph(3, 4, 0.05, shape="ring", cluster="complete", seed=0)
    start, target = torch.zeros(12, dtype=torch.float64), torch.zeros(12, dtype=torch.bool)
    start[:4], target[int(graph.entries[1])] = 0.25, True
    weight, gamma = 0.2, 0.9
    config = PPOConfig(
        reward="outcome", kl_coefficient=weight, gamma=gamma, gae_lambda=0.95, rounds=100, path_length=64,
        transitions=8000, learning_rate=0.03, log_every=10,
    )  # fmt: skip
    model = exact_reasoner(graph)
    history = ppo(model, true_prm(graph), Scales.of(graph, 0.2), config, context(), start, target).history

    p, value = graph.kernel(), np.zeros(12)
    for _ in range(2000):
        q = target.numpy() + gamma * np.where(target.numpy(), 0.0, value)  # (N,) of the state entered
        value = weight * np.log((p * np.exp(q / weight)).sum(1))
    ideal = p * np.exp(q / weight)
    ideal /= ideal.sum(1, keepdims=True)
    visited = np.arange(4)
    assert row_tv(ideal, p)[visited].max() > 0.3
    assert row_tv(model.kernel(), ideal)[visited].max() < 0.05
    assert history[-1]["explained_variance"] > 0.1
    assert all(line["tv_to_optimum_max"] >= 0 for line in history)


def test_outcome_rollouts_go_on_where_the_walkers_stood(exact_reasoner, rollouts, tmp_path):
    """On a cycle of five with X_in = 0 and X_out = 4: arrived walkers start anew, the others go on.

    The state of each round tells where they stand; whatever is learned, a state has one step.
    """
    model = LinearReasoner(5)
    model.support.set(torch.roll(torch.eye(5), 1, dims=1).bool())
    start, target = tensor([1, 0, 0, 0, 0]), torch.tensor([False, False, False, False, True])
    config = PPOConfig(reward="outcome", gamma=0.9, rounds=3, transitions=9, path_length=3, log_every=1)
    states = []

    def look(number=None, rollout=None):
        """The state that the round before left, as the next one has sampled."""
        if number != 0:
            states.append(load_state(tmp_path / "state.safetensors")[0])
        return rollout

    rollouts.change = look
    ppo(model, PRM(5, torch.empty(0, 2)), Scales(1, 5, 0.1, 0.2), config, around(tmp_path), start, target)
    look()
    assert [x["extra.walkers"].tolist() for x in states] == [[3, 3, 3], [4, 4, 4], [3, 3, 3]]
    assert rollouts[0].n_samples == 9
    assert rollouts[1].n_samples == 3  # 3 -> 4 only; what was walked behind X_out does not count
    assert rollouts[1].mean_reward == 1.0
    assert rollouts[2].counts[:, 0].diagonal(1).tolist() == [3, 3, 3, 0]
    assert [int(x["extra.env_steps"]) for x in states] == [9, 12, 21]
    assert float(states[2]["extra.values"][3]) == pytest.approx(1.0)
