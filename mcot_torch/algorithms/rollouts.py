"""What PPO samples and how it weighs it: rollouts, advantages, and the optimum they lead to.

Two rewards, each less λ log(p_old/p_ref): the process reward r(x, y) of the PRM, and the outcome reward 1 for entering
X_out. Two horizons: gamma = 0 weighs a step by itself, against the exact mean of its row; gamma > 0 adds what follows, by
generalised advantage estimation with a table of values, one for each state (the chain is Markov, so the state is enough).

Conventions of the second: `reward[t]` and `done[t]` belong to the step from states[t] to states[t + 1]; `done[t]` means
that states[t + 1] is in X_out, whose value is 0. The end of a rollout is truncation: it bootstraps from V(states[T]).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from mcot_torch.algorithms.config import PPOConfig
from mcot_torch.algorithms.prm import tilt_strength
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.walks import generate, step_table
from mcot_torch.sampling.datasets import count_batch, uniform_starts
from mcot_torch.sampling.walks import walk_counts
from mcot_torch.system.blocks import rows_at_once
from mcot_torch.system.ranks import share, total

KLWeight = Callable[[Tensor, Tensor], Tensor]
"""λ of each context: (states (B, T), log p_ref (B, T, S) of the steps that the policy lists) -> (B, T)."""

__all__ = ["Rollout", "discount", "gae", "gae_rollout", "kl_weight", "n_walkers", "one_step_rollout", "soft_values"]


@dataclass(frozen=True)
class Rollout:
    """B × T contexts and what was sampled after each; of several ranks each holds its part, the last three are of all.

    The S steps of a context are those that the policy lists (`Support.successors`), or all N.

    Attributes:
        states: (B, T) int64, contexts.
        counts: (B, T, S) how often each step was sampled.
        gain: (B, T, S) sum of the positive advantages of those samples.
        loss: (B, T, S) sum of the absolute values of the negative ones.
        n_samples: steps sampled, Σ counts.
        mean_reward: of the samples, without the KL term.
        explained_variance: share of the variance of the returns that the baseline explains.
    """

    states: Tensor
    counts: Tensor
    gain: Tensor
    loss: Tensor
    n_samples: int
    mean_reward: float
    explained_variance: float

    @cached_property
    def cells(self) -> Tensor:
        """(n,) int64, the steps that were sampled, as places in the flattened tables."""
        return self.counts.flatten().nonzero()[:, 0]

    def rows(self, rows: Tensor) -> Rollout:
        """The contexts of some rows, for a minibatch."""
        parts = {
            f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name in ("states", "counts", "gain", "loss")
        }
        return replace(self, **parts)


def kl_weight(log_ref: Tensor, known: Tensor, scales: Scales, config: PPOConfig) -> Tensor:
    """λ of each context: (..., S) -> (...,). By default that whose one-step optimum is ε_max, see `prm.tilt_strength`."""
    if config.kl_coefficient is not None:
        return torch.full(log_ref.shape[:-1], config.kl_coefficient, dtype=log_ref.dtype, device=log_ref.device)
    if config.reward == "outcome":
        return torch.full(log_ref.shape[:-1], 0.05, dtype=log_ref.dtype, device=log_ref.device)
    return 1.0 / tilt_strength(torch.where(known, log_ref.exp(), 0.0).sum(-1), scales)


def penalised(reward: Tensor, log_old: Tensor, log_ref: Tensor, weight: Tensor) -> Tensor:
    """r − λ log(p_old/p_ref), (..., S); 0 on steps that are cut."""
    supported = log_old > -torch.inf
    return torch.where(supported, reward - weight[..., None] * torch.where(supported, log_old - log_ref, 0.0), 0.0)


def _explained(returns: Tensor, baseline: Tensor, weight: Tensor) -> float:
    def means(*values: Tensor) -> Tensor:
        return total(torch.stack([(x * weight).sum() for x in values])) / total(weight.sum())

    residual = returns - baseline
    mean, offset = means(returns, residual)
    variance, left = means((returns - mean) ** 2, (residual - offset) ** 2).tolist()
    return 1 - left / variance if variance > 0 else 0.0


def one_step_rollout(
    reasoner: Reasoner,
    reference: Reasoner,
    reward: Tensor,
    weight_of: KLWeight,
    config: PPOConfig,
    draw: torch.Generator,
) -> Rollout:
    """gamma = 0: sample on-policy from uniform starts; the advantage of a step is its reward less the row's exact mean."""
    dtype = next(reasoner.parameters()).dtype
    if reasoner.window == 1:
        starts = uniform_starts(share(n_walkers(config, reasoner)), reasoner.n_states, draw)
        table = step_table(reasoner)
        taken = total(walk_counts(table, starts, config.path_length, draw))
        # the table lists what the reasoner lists, where that lists anything
        states, _, counts = count_batch(
            table.to_edges(taken) if reasoner.support.successors is None else taken, dtype=dtype
        )
    else:
        paths = _sample_paths(reasoner, config, draw)
        states = paths[:, :-1]
        counts = F.one_hot(reasoner.support.places(states, paths[:, 1:]), reasoner.support.width).to(dtype)
    gain, loss, sampled = torch.zeros_like(counts, dtype=dtype), torch.zeros_like(counts, dtype=dtype), []
    rows = torch.arange(len(states), device=states.device)
    for block in rows.split(rows_at_once(states.shape[1] * reasoner.numbers_per_context, states.device)):
        log_old = reasoner.successor_log_probs(states[block]).double()
        log_ref = reference.log_probs_of(states[block], reasoner.support.successors_of(states[block])).double()
        paid, seen = reasoner.support.pick(reward, states[block]), counts[block]
        value = penalised(paid, log_old, log_ref, weight_of(states[block], log_ref))
        baseline = (log_old.exp() * value).sum(-1, keepdim=True)
        advantage = (seen * (value - baseline)).to(dtype)
        gain[block], loss[block] = advantage.clamp_min(0), (-advantage).clamp_min(0)
        columns = (seen.double(), paid, value, baseline.expand_as(value))
        sampled.append(torch.stack([x[seen > 0] for x in columns]))
    weight, paid, value, baseline = torch.cat(sampled, dim=1)
    n_samples, earned = total(torch.stack([weight.sum(), (weight * paid).sum()])).tolist()
    explained = _explained(value, baseline, weight)
    return Rollout(states, counts, gain, loss, int(n_samples), earned / n_samples, explained)


def path_length(config: PPOConfig, reasoner: Reasoner) -> int:
    """Steps of each sampled walk."""
    return config.path_length if reasoner.window == 1 else reasoner.window


def n_walkers(config: PPOConfig, reasoner: Reasoner) -> int:
    """Walks of a rollout, those of all ranks together."""
    return max(1, config.transitions // path_length(config, reasoner))


def _sample_paths(reasoner: Reasoner, config: PPOConfig, draw: torch.Generator, starts: Tensor | None = None) -> Tensor:
    if starts is None:
        n = share(n_walkers(config, reasoner))
        starts = torch.randint(reasoner.n_states, (n,), generator=draw, device=reasoner.device)
    return generate(reasoner, starts, path_length(config, reasoner), draw)


def gae(reward: Tensor, done: Tensor, values: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    Args:
        reward: (B, T), of the step from time t to t + 1.
        done: (B, T) bool, that step entered X_out; nothing after it counts.
        values: (B, T + 1), V of the states; the last one is bootstrapped from.
        gamma: discount.
        gae_lambda: λ.

    Returns:
        (B, T) advantages; the return that a value is fitted to is advantage + value.
    """
    advantage = torch.zeros_like(reward)
    last = torch.zeros_like(reward[:, 0])
    for t in reversed(range(reward.shape[1])):
        goes_on = (~done[:, t]).to(reward.dtype)
        delta = reward[:, t] + gamma * values[:, t + 1] * goes_on - values[:, t]
        last = delta + gamma * gae_lambda * goes_on * last
        advantage[:, t] = last
    return advantage


def gae_rollout(
    reasoner: Reasoner,
    reference: Reasoner,
    reward: Tensor,
    terminal: Tensor,
    values: Tensor,
    walkers: Tensor,
    weight_of: KLWeight,
    config: PPOConfig,
    draw: torch.Generator,
) -> tuple[Rollout, Tensor, Tensor]:
    """gamma > 0: walk on from `walkers`, weigh each step by what follows it, refit the table of values.

    Args:
        reasoner: samples.
        reference: p_ref.
        reward: (N, N) of each step.
        terminal: (N,) bool, X_out; a walker that enters it waits there for the next rollout.
        values: (N,) float64.
        walkers: (W,) int64.
        weight_of: λ of each context.
        config: gives gamma, λ of GAE.
        draw: generator on the reasoner's device.

    Returns:
        The rollout, the new values, where the walkers ended.
    """
    gamma = discount(config, reasoner)
    paths = _sample_paths(reasoner, config, draw, walkers)
    states, after = paths[:, :-1], paths[:, 1:]
    done = terminal[after]
    valid = torch.cat([torch.ones_like(done[:, :1]), done[:, :-1].int().cumsum(1) == 0], dim=1)  # until it arrives
    n, table = reasoner.n_states, reasoner.window == 1  # with window 1 the N states are all the contexts there are
    contexts = torch.arange(n, device=states.device)[:, None] if table else states
    log_old = reasoner.successor_log_probs(contexts).double()
    log_ref = reference.log_probs_of(contexts, reasoner.support.successors_of(contexts)).double()
    paid = penalised(reasoner.support.pick(reward, contexts), log_old, log_ref, weight_of(contexts, log_ref))
    place, width = reasoner.support.places(states, after), reasoner.support.width
    paid = paid[states, 0, place] if table else paid.gather(-1, place[..., None])[..., 0]  # (B, T)
    value = torch.where(terminal, 0.0, values)[paths]
    advantage = gae(paid, done, value, gamma, config.gae_lambda)
    returns = advantage + value[:, :-1]
    weight = valid.double()
    visits = total(torch.zeros_like(values).index_add_(0, states.reshape(-1), weight.reshape(-1)))
    returned = total(torch.zeros_like(values).index_add_(0, states.reshape(-1), (weight * returns).reshape(-1)))
    new_values = torch.where(visits > 0, returned / visits.clamp_min(1), values)
    dtype = next(reasoner.parameters()).dtype
    parts = (weight, weight * advantage.clamp_min(0), weight * (-advantage).clamp_min(0))  # each (B, T)
    if table:  # samples of the same step share its ratio: sum them
        cells = (states * width + place).reshape(-1)
        empty = torch.zeros(n * width, dtype=torch.float64, device=states.device)
        summed = (total(empty.index_add(0, cells, x.reshape(-1))).view(n, width) for x in parts)
        batches = [count_batch(x, dtype=dtype) for x in summed]  # a rank's rows of all walks
        contexts, (counts, up, down) = batches[0][0], (x for _, _, x in batches)
    else:
        taken = F.one_hot(place, width)
        counts, up, down = ((taken * x[..., None]).to(dtype) for x in parts)
    n_samples, earned = total(torch.stack([weight.sum(), (reward[states, after] * weight).sum()])).tolist()
    explained = _explained(returns, value[:, :-1], weight)
    rollout = Rollout(contexts, counts, up, down, int(n_samples), earned / n_samples, explained)
    ended = torch.where(done.any(1), after.gather(1, done.int().argmax(1, keepdim=True))[:, 0], paths[:, -1])
    return rollout, new_values, ended


def discount(config: PPOConfig, reasoner: Reasoner) -> float:
    """gamma; by default 0 for the process reward and 1 − 1/(length of a rollout's walks) for the outcome reward."""
    if config.gamma is not None:
        return config.gamma
    return 1.0 - 1.0 / path_length(config, reasoner) if config.reward == "outcome" else 0.0


def soft_values(
    log_ref: Tensor, reward: Tensor, terminal: Tensor, gamma: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The optimum of E[Σ γ^t (r − λ KL(p ‖ p_ref))] up to X_out, by soft policy iteration.

    V(x) = λ_x log Σ_y p_ref(y|x) exp(Q(x, y)/λ_x) with Q = r + γ V(y), V = 0 on X_out. With gamma = 1 and an outcome
    reward R it is V = λ log z for the z = P_ref z of THEORY (Algorithm 3, outcome reward).

    Args:
        log_ref: (N, N) float64.
        reward: (N, N) float64.
        terminal: (N,) bool, X_out.
        gamma: discount; 1 needs an X_out that is always reached.
        weight: (N,) λ_x.

    Returns:
        V (N,) and log p* (N, N).
    """
    values = torch.zeros_like(weight)
    going = (~terminal).double()
    identity = torch.eye(len(weight), dtype=torch.float64, device=weight.device)
    for _ in range(200):
        log_p = (log_ref + (reward + gamma * values * going) / weight[:, None]).log_softmax(-1)
        p = log_p.exp()
        cost = torch.where(p > 0, p * (reward - weight[:, None] * torch.where(p > 0, log_p - log_ref, 0.0)), 0.0).sum(
            -1
        )
        system = identity - gamma * going[:, None] * p * going
        new = torch.linalg.solve(system, cost * going)
        change, values = float((new - values).abs().max()), new
        if change <= 1e-12 * (1 + float(values.abs().max())):
            break
    return values, log_p
