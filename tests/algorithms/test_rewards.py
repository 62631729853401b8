"""Advantages by hand and by loops; truncation and termination; rollouts; soft optima against value iteration."""

import math

import numpy as np
import pytest
import torch

from mcot_torch import Context
from mcot_torch.algorithms.config import PPOConfig
from mcot_torch.algorithms.ppo import ppo
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.rollouts import (
    Rollout,
    RolloutSampler,
    gae,
    gae_rollout,
    one_step_rollout,
    penalised,
    soft_values,
    transition_counts,
)
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner, TransformerReasoner, generate
from mcot_torch.sampling.attempts import Attempts
from mcot_torch.training.config import TrainerConfig


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def table_of(kernel):
    return LinearReasoner.from_kernel(torch.as_tensor(kernel, dtype=torch.float64))


# ---- generalised advantage estimation -------------------------------------------------------------------------------


def test_gae_by_hand():
    """γ = .5, λ = .5. The second walk arrives at its second step; the first is cut off and bootstraps from V = 8."""
    reward = tensor([[1, 2, 3], [1, 2, 3]])
    values = tensor([[2, 4, 6, 8], [2, 4, 6, 8]])
    done = torch.tensor([[False, False, False], [False, True, False]])
    # δ = 1 + 2 − 2, 2 + 3 − 4, 3 + 4 − 6 = 1, 1, 1 and A = 1 + ¼(1 + ¼·1)
    # with done: δ_1 = 2 − 4 = −2, nothing after it counts
    expected = [[1.3125, 1.25, 1], [1 - 0.5, -2, 1]]
    np.testing.assert_allclose(gae(reward, done, values, 0.5, 0.5), expected, rtol=1e-15)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_gae_against_a_double_loop(gamma, gae_lambda):
    draw = seeded(1)
    reward = torch.randn(6, 9, dtype=torch.float64, generator=draw)
    values = torch.randn(6, 10, dtype=torch.float64, generator=draw)
    done = torch.rand(6, 9, generator=draw) < 0.2
    assert done.any()
    found = gae(reward, done, values, gamma, gae_lambda)
    for b in range(6):
        for t in range(9):
            total = 0.0
            for s in range(t, 9):
                after = 0.0 if done[b, s] else values[b, s + 1].item()
                total += (gamma * gae_lambda) ** (s - t) * (reward[b, s].item() + gamma * after - values[b, s].item())
                if done[b, s]:
                    break
            assert found[b, t].item() == pytest.approx(total, rel=1e-12, abs=1e-13)


def test_gae_at_lambda_one_is_return_less_value():
    reward, values = tensor([[1, 2, 4]]), tensor([[10, 20, 30, 40]])
    ends, goes_on = torch.tensor([[False, False, True]]), torch.tensor([[False, False, False]])
    np.testing.assert_allclose(gae(reward, ends, values, 1.0, 1.0), [[7 - 10, 6 - 20, 4 - 30]])
    np.testing.assert_allclose(gae(reward, goes_on, values, 1.0, 1.0), [[47 - 10, 46 - 20, 44 - 30]])


# ---- rollouts -------------------------------------------------------------------------------------------------------


def marked(n, *steps):
    """(N, N) bool, True at the steps."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    for x, y in steps:
        mask[x, y] = True
    return mask


def no_penalty(states, log_ref):
    return torch.ones(states.shape, dtype=torch.float64)


def cycle(n):
    return np.roll(np.eye(n), 1, axis=1)


@torch.no_grad()
def test_outcome_rollout_by_hand():
    """0 -> 1 -> 2 = X_out, γ = .9, λ = .5, V = (.1, .2, ·): A_1 = 1 − .2 and A_0 = .18 − .1 + .45·.8."""
    model = table_of(cycle(3))
    terminal = torch.tensor([False, False, True])
    reward = terminal.double().expand(3, -1)
    values = tensor([0.1, 0.2, 7.0])  # the value of X_out is 0 whatever the table says
    attempts = Attempts.until(generate(model, torch.zeros(5, dtype=torch.int64), 4, seeded(0)), terminal)
    rollout, new_values = gae_rollout(model, model, attempts, reward, terminal, values, no_penalty, 0.9, 0.5)
    counts, gain = np.zeros((3, 3)), np.zeros((3, 3))
    counts[0, 1] = counts[1, 2] = 5
    gain[0, 1], gain[1, 2] = 5 * 0.44, 5 * 0.8
    np.testing.assert_array_equal(rollout.counts[:, 0], counts)
    np.testing.assert_allclose(rollout.gain[:, 0], gain, rtol=1e-12)
    assert (rollout.loss == 0).all()
    assert rollout.states[:, 0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(new_values, [0.54, 1.0, 7.0], rtol=1e-12)
    assert attempts.final.tolist() == [2] * 5
    assert rollout.n_samples == 10
    assert rollout.mean_reward == 0.5
    # returns .54 and 1, residuals .44 and .8
    assert rollout.explained_variance == pytest.approx(1 - 0.18**2 / 0.23**2, rel=1e-10)


@torch.no_grad()
def test_truncated_rollout_bootstraps():
    model = table_of(cycle(3))
    terminal = torch.tensor([False, False, True])
    attempts = Attempts.until(generate(model, torch.zeros(3, dtype=torch.int64), 1, seeded(0)), terminal)
    reward, values = terminal.double().expand(3, -1), tensor([0.5, 0.2, 0.0])
    rollout, new_values = gae_rollout(model, model, attempts, reward, terminal, values, no_penalty, 0.9, 0.5)
    assert attempts.final.tolist() == [1, 1, 1]
    assert float(rollout.loss[0, 0, 1]) == pytest.approx(3 * (0.5 - 0.18), rel=1e-12)
    np.testing.assert_allclose(new_values, [0.18, 0.2, 0.0], rtol=1e-12)


def rows(model, states, x):
    """(B, T, N) of what a rollout holds of the listed steps."""
    if model.support.successors is None:
        return x
    return torch.zeros(*x.shape[:-1], model.n_states, dtype=x.dtype).scatter(-1, model.support.successors_of(states), x)


@pytest.mark.parametrize("short", [math.inf, 1], ids=["whole rows", "lists"])
@pytest.mark.parametrize(("kind", "window"), [("linear", 1), ("transformer", 1), ("transformer", 5)])
def test_rollout_against_a_loop_over_samples(kind, window, short, list_when_shorter):
    """Random model and reference, KL penalty, both signs of advantage on the same step."""
    list_when_shorter(short)
    n, gamma, lam = 6, 0.8, 0.7
    draw = seeded(3)
    models = []
    for _ in range(2):
        model = LinearReasoner(n) if kind == "linear" else TransformerReasoner(n, window, 16, 1, 2).double()
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(std=0.7, generator=draw)
        model.support.set(~torch.eye(n, dtype=torch.bool) & ~marked(n, (0, 1), (2, 3)))
        models.append(model)
    assert (models[0].support.successors is None) == (short > 1)
    policy, reference = models
    reward = torch.randn(n, n, dtype=torch.float64, generator=draw)
    terminal = torch.tensor([False] * (n - 1) + [True])
    values = torch.randn(n, dtype=torch.float64, generator=draw)
    weight = torch.rand(n, dtype=torch.float64, generator=draw)
    length, walkers = (7, 40) if window == 1 else (window, 40)
    starts = torch.arange(walkers) % (n - 1)
    with torch.no_grad():
        paths = generate(policy, starts, length, seeded(4))
        attempts = Attempts.until(paths, terminal)
        rollout, new_values = gae_rollout(
            policy, reference, attempts, reward, terminal, values, lambda s, _: weight[s], gamma, lam
        )

    counts, gain, loss = {}, {}, {}
    returns = [[] for _ in range(n)]
    total = 0.0
    for b, path in enumerate(paths.tolist()):
        arrived = next((t for t in range(1, length + 1) if terminal[path[t]]), None)
        steps = length if arrived is None else arrived
        with torch.no_grad():
            before = paths[b, :-1]
            p, q = (
                m.log_probs(before[:, None])[:, 0] if window == 1 else m.log_probs(before[None])[0]
                for m in (policy, reference)
            )
        paid = [
            reward[path[t], path[t + 1]].item()
            - weight[path[t]].item() * (p[t, path[t + 1]] - q[t, path[t + 1]]).item()
            for t in range(steps)
        ]
        v = [0.0 if terminal[s] else values[s].item() for s in path]
        for t in range(steps):
            advantage = sum((gamma * lam) ** (s - t) * (paid[s] + gamma * v[s + 1] - v[s]) for s in range(t, steps))
            key = (path[t], path[t + 1]) if window == 1 else (b, t, path[t + 1])
            counts[key] = counts.get(key, 0) + 1
            gain[key] = gain.get(key, 0.0) + max(advantage, 0.0)
            loss[key] = loss.get(key, 0.0) + max(-advantage, 0.0)
            returns[path[t]].append(advantage + v[t])
            total += reward[path[t], path[t + 1]].item()
        assert attempts.final[b] == (path[-1] if arrived is None else path[arrived])
    assert rollout.n_samples == sum(counts.values())
    assert rollout.mean_reward == pytest.approx(total / rollout.n_samples, rel=1e-10)
    for found, expected in ((rollout.counts, counts), (rollout.gain, gain), (rollout.loss, loss)):
        found = rows(policy, rollout.states, found)
        dense = torch.zeros_like(found)
        for key, value in expected.items():
            dense[(key[0], 0, key[1]) if window == 1 else key] = value
        np.testing.assert_allclose(found, dense, rtol=1e-9, atol=1e-12)
    if window == 1:
        assert ((rollout.gain > 0) & (rollout.loss > 0)).any()
    for x in range(n):
        expected = np.mean(returns[x]) if returns[x] else values[x].item()
        assert new_values[x].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("short", [math.inf, 1], ids=["whole rows", "lists"])
def test_one_step_rollout_against_a_loop(short, list_when_shorter):
    list_when_shorter(short)
    n = 5
    draw = seeded(5)
    policy, reference = (table_of(torch.rand(n, n, generator=draw) + 0.1) for _ in range(2))
    for model in (policy, reference):
        model.support.set(~torch.eye(n, dtype=torch.bool) & ~marked(n, (1, 2)))
    reward = torch.rand(n, n, dtype=torch.float64, generator=draw)
    weight = tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    with torch.no_grad():
        sampled = transition_counts(policy, 300, 10, draw)
        rollout = one_step_rollout(policy, reference, sampled, reward, lambda s, _: weight[s])
    p, q = policy.kernel(), reference.kernel()
    counts, gain, loss = (rows(policy, rollout.states, x)[:, 0] for x in (rollout.counts, rollout.gain, rollout.loss))
    assert rollout.n_samples == int(counts.sum()) == 3000
    values, means, weights = [], [], []
    for x in range(n):
        value = [
            0.0 if p[x, y] == 0 else float(reward[x, y] - weight[x] * math.log(p[x, y] / q[x, y])) for y in range(n)
        ]
        mean = sum(float(p[x, y]) * value[y] for y in range(n))
        for y in range(n):
            advantage = float(counts[x, y]) * (value[y] - mean)
            assert float(gain[x, y]) == pytest.approx(max(advantage, 0), rel=1e-9, abs=1e-12)
            assert float(loss[x, y]) == pytest.approx(max(-advantage, 0), rel=1e-9, abs=1e-12)
        values += value
        means += [mean] * n
        weights += counts[x].tolist()
    values, means = np.array(values), np.array(means)
    spread = np.cov(values, aweights=weights, ddof=0)
    left = np.cov(values - means, aweights=weights, ddof=0)
    assert rollout.explained_variance == pytest.approx(1 - left / spread, rel=1e-9)


def test_equal_rewards_have_no_advantage():
    """A row whose steps all pay the same, at the reference: exactly nothing to learn."""
    model = table_of(np.full((4, 4), 0.25))
    reward = torch.zeros(4, 4, dtype=torch.float64)
    reward[2] = 1.0
    reward[3, 0] = 1.0
    with torch.no_grad():
        sampled = transition_counts(model, 100, 4, seeded(6))
        rollout = one_step_rollout(model, model, sampled, reward, no_penalty)
    assert (rollout.gain[:3] == 0).all()
    assert (rollout.loss[:3] == 0).all()
    assert float(rollout.gain[3, 0, 0]) == pytest.approx(0.75 * float(rollout.counts[3, 0, 0]), rel=1e-12)


def test_rows_of_a_rollout():
    parts = torch.arange(24.0).view(4, 1, 6)
    rollout = Rollout(torch.arange(4)[:, None], parts, parts + 1, parts + 2, 9, 0.5, 0.25)
    some = rollout.rows(torch.tensor([3, 1]))
    assert some.states[:, 0].tolist() == [3, 1]
    assert torch.equal(some.counts, parts[[3, 1]])
    assert torch.equal(some.gain, parts[[3, 1]] + 1)
    assert torch.equal(some.loss, parts[[3, 1]] + 2)
    assert some.n_samples == 9


def test_penalised_by_hand():
    old, ref = tensor([[0.5, 0.5, 0.0]]).log(), tensor([[0.25, 0.75, 0.0]]).log()
    paid = penalised(tensor([[1, 0, 5]]), old, ref, tensor([0.1]))
    np.testing.assert_allclose(paid, [[1 - 0.1 * math.log(2), -0.1 * math.log(2 / 3), 0]], rtol=1e-14)


@pytest.fixture
def sampler_of(monkeypatch):
    """(config, model) -> what PPO samples with, over three states with the known step 0 -> 1."""
    made = []

    class Watched(RolloutSampler):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("mcot_torch.algorithms.ppo.RolloutSampler", Watched)

    def call(config, model):
        config.rounds, config.transitions = 1, 100
        start, target = torch.ones(3, dtype=torch.float64), torch.tensor([False, False, True])
        context = Context(trainer=TrainerConfig(accelerator="cpu", progress=False))
        ppo(model, PRM(3, torch.tensor([[0, 1]])), Scales(2, 3, 0.01, 0.1), config, context, start, target)
        return made[-1]

    return call


def test_discount(sampler_of):
    """By default that of the length of a rollout's walks, which for a longer window is the window."""

    def discount(config, model):
        return sampler_of(config, model).gamma

    table, longer = LinearReasoner(3), TransformerReasoner(3, 8, 8, 1, 2)
    assert discount(PPOConfig(), table) == 0
    assert discount(PPOConfig(reward="outcome", path_length=100), table) == pytest.approx(0.99)
    assert discount(PPOConfig(reward="outcome", path_length=100), longer) == pytest.approx(1 - 1 / 8)
    assert discount(PPOConfig(reward="outcome", gamma=0.0), table) == 0


def test_kl_weight(sampler_of):
    log_ref = tensor([[0.99, 0.01, 0.0], [0.5, 0.25, 0.25]]).log()

    def weights(**options):
        return sampler_of(PPOConfig(**options), LinearReasoner(3)).weight_of(torch.tensor([0, 1]), log_ref)

    np.testing.assert_allclose(weights()[0], 1 / math.log(0.1 * 0.99 / (0.01 * 0.9)))
    np.testing.assert_allclose(weights(kl_coefficient=0.3), [0.3, 0.3])
    np.testing.assert_allclose(weights(reward="outcome"), [0.05, 0.05])


# ---- the optimum ----------------------------------------------------------------------------------------------------


def random_chain(n, seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(n, 0.5), size=n)
    p[0, 2] = 0  # a forbidden step
    return p / p.sum(1, keepdims=True), rng


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
def test_soft_values_against_value_iteration(gamma, seed):
    n = 7
    p, rng = random_chain(n, seed)
    reward, weight = rng.normal(size=(n, n)), rng.uniform(0.05, 1.0, n)
    end = np.arange(n) >= n - 2
    value = np.zeros(n)
    for _ in range(3000):
        q = reward + gamma * np.where(end, 0.0, value)
        top = q.max(1)
        value = top + weight * np.log((p * np.exp((q - top[:, None]) / weight[:, None])).sum(1))
    optimum = p * np.exp((q - top[:, None]) / weight[:, None])
    optimum /= optimum.sum(1, keepdims=True)
    values, log_p = soft_values(
        torch.from_numpy(np.log(p, where=p > 0, out=np.full((n, n), -np.inf))), torch.from_numpy(reward),
        torch.from_numpy(end), gamma, torch.from_numpy(weight),
    )  # fmt: skip
    np.testing.assert_allclose(values[~end], value[~end], atol=1e-10)
    assert (values[end] == 0).all()
    np.testing.assert_allclose(log_p.exp()[~end], optimum[~end], atol=1e-10)


@pytest.mark.parametrize("weight", [0.05, 0.5, 3.0])
def test_undiscounted_outcome_is_one_linear_solve(weight):
    """With a second absorbing state, failure: z = exp(R/λ) on the target, 1 on failure, z = P_ref z elsewhere."""
    n = 8
    p, _ = random_chain(n, 4)
    target, failure = n - 1, n - 2
    z = np.zeros(n)
    z[target], z[failure] = math.exp(1 / weight), 1.0
    inside = np.arange(n - 2)
    right = p[inside][:, [target, failure]] @ z[[target, failure]]
    z[inside] = np.linalg.solve(np.eye(n - 2) - p[np.ix_(inside, inside)], right)
    reward = np.zeros((n, n))
    reward[:, target] = 1.0
    end = np.zeros(n, dtype=bool)
    end[[target, failure]] = True
    values, log_p = soft_values(
        torch.from_numpy(np.log(p, where=p > 0, out=np.full((n, n), -np.inf))), torch.from_numpy(reward),
        torch.from_numpy(end), 1.0, torch.full((n,), weight, dtype=torch.float64),
    )  # fmt: skip
    np.testing.assert_allclose(values[inside], weight * np.log(z[inside]), rtol=1e-9)
    np.testing.assert_allclose(log_p.exp()[inside], p[inside] * z / z[inside, None], rtol=1e-8, atol=1e-12)
    assert (log_p.exp()[0, 2]) == 0
