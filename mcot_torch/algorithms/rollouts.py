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

from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.walks import generate, step_table
from mcot_torch.sampling.attempts import Attempts, TransitionCounts, Transitions
from mcot_torch.sampling.datasets import count_batch, sample_counts
from mcot_torch.system.blocks import rows_at_once
from mcot_torch.system.ranks import own_rows, share, total, whole

KLWeight = Callable[[Tensor, Tensor], Tensor]
"""λ of each context: (states (B, T), log p_ref (B, T, S) of the steps that the policy lists) -> (B, T)."""

__all__ = [
    "Rollout",
    "RolloutSampler",
    "gae",
    "gae_rollout",
    "one_step_rollout",
    "penalised",
    "sample_paths",
    "soft_values",
    "transition_counts",
]


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


# ---- sampling ---------------------------------------------------------------------------------------------------


def transition_counts(reasoner: Reasoner, n_walkers: int, path_length: int, draw: torch.Generator) -> TransitionCounts:
    """Transition counts of the reasoner's own chain, from uniform starts; ranks share the walkers."""
    if reasoner.window == 1:
        table = step_table(reasoner)
        return TransitionCounts(table.successors, sample_counts(table, n_walkers, path_length, draw))
    path = sample_paths(reasoner, n_walkers, path_length, draw)
    n, width = reasoner.n_states, reasoner.support.width
    states = torch.arange(n, device=reasoner.device)
    listed = reasoner.support.successors_of(states)
    cells = (path[:, :-1] * width + reasoner.support.places(path[:, :-1], path[:, 1:])).reshape(-1)
    counts = total(torch.bincount(cells, minlength=n * width).double()).view(n, width)
    return TransitionCounts(states.expand(n, -1) if listed is None else listed, counts)


def sample_paths(reasoner: Reasoner, n_walkers: int, path_length: int, draw: torch.Generator) -> Tensor:
    """(W, path_length + 1) int64 paths from uniform starts; W is this rank's share of the walkers."""
    starts = torch.randint(reasoner.n_states, (share(n_walkers),), generator=draw, device=reasoner.device)
    return generate(reasoner, starts, path_length, draw)


class RolloutSampler:
    """Samples rollouts with the policy as it is, and keeps what goes on from one rollout to the next.

    Args:
        policy: the reasoner in training.
        reference: p_ref.
        reward: (N, N) float64 reward of each step, without the KL term; called with the generator, from which a noisy PRM
            draws its errors.
        terminal: (N,) bool, where an episode ends; all False for the process reward.
        weight_of: λ of each context.
        start: (N,) float64 law of the starts of episodes; used where gamma > 0.
        n_walkers: walks of a rollout, of all ranks together.
        path_length: steps of each walk.
        gamma: discount; 0 weighs each step by itself.
        gae_lambda: λ of generalised advantage estimation.

    Attributes:
        values: (N,) float64, V of each state.
        walkers: (W,) int64, where this rank's walks ended; None before the first rollout.
        n_samples: steps sampled so far, by all ranks.
    """

    def __init__(
        self,
        policy: Reasoner,
        reference: Reasoner,
        reward: Callable[[torch.Generator | None], Tensor],
        terminal: Tensor,
        weight_of: KLWeight,
        start: Tensor,
        n_walkers: int,
        path_length: int,
        gamma: float,
        gae_lambda: float,
    ) -> None:
        self.policy, self.reference, self.reward, self.terminal = policy, reference, reward, terminal
        self.weight_of, self.start, self.n_walkers, self.path_length = weight_of, start, n_walkers, path_length
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.values = torch.zeros(policy.n_states, dtype=torch.float64, device=policy.device)
        self.walkers: Tensor | None = None
        self.n_samples = 0

    @torch.no_grad()
    def sample(self, draw: torch.Generator) -> Rollout:
        """Sample with the policy as it is, and weigh what was sampled."""
        rollout = self._one_step(draw) if self.gamma == 0 else self._discounted(draw)
        self.n_samples += rollout.n_samples
        return rollout

    def _one_step(self, draw: torch.Generator) -> Rollout:
        reward = self.reward(draw)
        sampled: Transitions
        if self.policy.window == 1:
            sampled = transition_counts(self.policy, self.n_walkers, self.path_length, draw)
        else:
            sampled = Attempts.until(sample_paths(self.policy, self.n_walkers, self.path_length, draw))
        return one_step_rollout(self.policy, self.reference, sampled, reward, self.weight_of)

    def _discounted(self, draw: torch.Generator) -> Rollout:
        if self.walkers is None:
            walkers = self._starts(share(self.n_walkers), draw)
        else:
            walkers = self.walkers.to(draw.device)
            walkers = torch.where(self.terminal[walkers], self._starts(len(walkers), draw), walkers)
        reward, values = self.reward(draw), self.values.to(draw.device)
        attempts = Attempts.until(generate(self.policy, walkers, self.path_length, draw), self.terminal)
        rollout, self.values = gae_rollout(
            self.policy,
            self.reference,
            attempts,
            reward,
            self.terminal,
            values,
            self.weight_of,
            self.gamma,
            self.gae_lambda,
        )
        self.walkers = attempts.final
        return rollout

    def _starts(self, n: int, draw: torch.Generator) -> Tensor:
        return torch.multinomial(self.start.to(draw.device), n, replacement=True, generator=draw)

    def state_dict(self) -> dict[str, Tensor]:
        """The reference, the values, the walkers of all ranks, and the number of steps sampled, for a checkpoint."""
        state = {f"reference.{key}": value for key, value in self.reference.state_dict().items()}
        walkers = {} if self.walkers is None else {"walkers": whole(self.walkers, self.n_walkers)}
        return {**state, **walkers, "values": self.values, "env_steps": torch.tensor(self.n_samples)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore `state_dict`; `ValueError` unless it is of a policy over the same states."""
        reference = {k.removeprefix("reference."): v for k, v in tensors.items() if k.startswith("reference.")}
        self.reference.load_state_dict(reference)
        values, walkers = tensors["values"], tensors.get("walkers")
        if values.shape != self.values.shape or values.dtype != self.values.dtype:
            raise ValueError(f"it holds {len(values)} values of states, and there are {len(self.values)}")
        if walkers is not None and not bool(((walkers >= 0) & (walkers < len(values))).all()):
            raise ValueError(f"it holds a walker outside the states 0 .. {len(values) - 1}")
        self.values = values.to(self.policy.device)
        self.walkers = None if walkers is None else walkers[own_rows(self.n_walkers)]
        self.n_samples = int(tensors["env_steps"])


# ---- advantages -------------------------------------------------------------------------------------------------


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
    reasoner: Reasoner, reference: Reasoner, sampled: Transitions, reward: Tensor, weight_of: KLWeight
) -> Rollout:
    """Weigh each step by itself (gamma = 0): its advantage is its reward less the row's exact mean.

    Args:
        reasoner: the policy that sampled.
        reference: p_ref.
        sampled: steps, on-policy.
        reward: (N, N) float64 of each step.
        weight_of: λ of each context.
    """
    dtype = next(reasoner.parameters()).dtype
    states, counts = sampled.tabulate(reasoner.support, dtype)
    gain, loss, columns_of = torch.zeros_like(counts, dtype=dtype), torch.zeros_like(counts, dtype=dtype), []
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
        columns_of.append(torch.stack([x[seen > 0] for x in columns]))
    weight, paid, value, baseline = torch.cat(columns_of, dim=1)
    n_samples, earned = total(torch.stack([weight.sum(), (weight * paid).sum()])).tolist()
    explained = _explained(value, baseline, weight)
    return Rollout(states, counts, gain, loss, int(n_samples), earned / n_samples, explained)


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
    attempts: Attempts,
    reward: Tensor,
    terminal: Tensor,
    values: Tensor,
    weight_of: KLWeight,
    gamma: float,
    gae_lambda: float,
) -> tuple[Rollout, Tensor]:
    """Weigh each step by what follows it (gamma > 0), and refit the table of values.

    Args:
        reasoner: the policy that sampled.
        reference: p_ref.
        attempts: walks that end in X_out or at the end of their path, which is truncation.
        reward: (N, N) float64 of each step.
        terminal: (N,) bool, X_out.
        values: (N,) float64.
        weight_of: λ of each context.
        gamma: discount.
        gae_lambda: λ of generalised advantage estimation.

    Returns:
        The rollout and the new values.
    """
    states, after, done, valid = attempts.states, attempts.after, attempts.done, attempts.valid
    n, table = reasoner.n_states, reasoner.window == 1  # with window 1 the N states are all the contexts there are
    contexts = torch.arange(n, device=states.device)[:, None] if table else states
    log_old = reasoner.successor_log_probs(contexts).double()
    log_ref = reference.log_probs_of(contexts, reasoner.support.successors_of(contexts)).double()
    paid = penalised(reasoner.support.pick(reward, contexts), log_old, log_ref, weight_of(contexts, log_ref))
    place, width = reasoner.support.places(states, after), reasoner.support.width
    paid = paid[states, 0, place] if table else paid.gather(-1, place[..., None])[..., 0]  # (B, T)
    value = torch.where(terminal, 0.0, values)[attempts.paths]
    advantage = gae(paid, done, value, gamma, gae_lambda)
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
    return rollout, new_values


def soft_values(
    log_ref: Tensor, reward: Tensor, terminal: Tensor, gamma: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The optimum of E[Σ γ^t (r − λ KL(p ‖ p_ref))] up to X_out, by soft policy iteration.

    V(x) = λ_x log Σ_y p_ref(y|x) exp(Q(x, y)/λ_x) with Q = r + γ V(y), V = 0 on X_out. With gamma = 1 and an outcome
    reward R it is V = λ log z with z = P_ref z (specification, "Outcome reward", docs/specification.md#outcome-reward).

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
