"""Algorithm 3, PPO-Clip: raise the probability of the hard steps to ε_max and forget nothing else.

Two forms. The paper's (`sign_ascent`): sign-gradient ascent on the table, Â = 1{edge in Ê}, where counting updates is what
ends at ε_max. The practical one (`ppo`), for any reasoner: Adam on the clipped surrogate with the reward
r − λ_x log(p_old/p_ref), whose optimum with λ_x = 1/Λ_x *is* p^{ε_max} (see `prm.tilt`), so that no update need be counted.

With window 1 the surrogate depends on a rollout only through, for each step (x, y), the sum of its positive and the
sum of its negative advantages: the clip acts on a ratio that all those samples share. One forward pass over N states
replaces one over every sampled step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mcot_torch.algorithms.config import PPOConfig
from mcot_torch.algorithms.prm import PRM, tilt_strength
from mcot_torch.algorithms.rollouts import Rollout, RolloutSampler, soft_values
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners.linear import LinearReasoner
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.system.blocks import rows_at_once
from mcot_torch.training.loop import Context, TrainingLoop, cosine, with_trainer_settings
from mcot_torch.training.result import Cost, Metrics, Result

__all__ = ["PPOConfig", "clipped_surrogate", "entropy", "kl_divergence", "ppo", "sign_ascent", "surrogate_of_rollout"]

_MOST_SOLVED = 4096  # states of which the optimum of a discounted reward is solved for, a few (N, N) systems


@with_trainer_settings
def ppo(
    reasoner: Reasoner,
    prm: PRM,
    scales: Scales,
    config: PPOConfig | None = None,
    context: Context | None = None,
    start: Tensor | None = None,
    target: Tensor | None = None,
    reference: Reasoner | None = None,
) -> Result[Reasoner]:
    """Run Algorithm 3 on `reasoner`, in place.

    Args:
        reasoner: the pretrained model.
        prm: M_s; its scores are the process reward.
        scales: gives ε and ε_max.
        config: options.
        context: seed, folder of checkpoints, devices, watchers.
        start: (N,) float64 law of X_in, for the outcome reward.
        target: (N,) bool, X_out, for the outcome reward.
        reference: p_ref; the reasoner as it is at the call unless another is given.

    Returns:
        The reasoner, the logged lines and the cost.

    Raises:
        ValueError: the sign form with another model than the linear one, or the outcome reward without a task.
    """
    config, context = config or PPOConfig(), context or Context()
    if config.form == "sign":
        return ppo_by_sign(reasoner, prm, scales, config, context)
    reference = copy.deepcopy(reference or reasoner).requires_grad_(False)
    terminal = terminal_states(config.reward, reasoner.n_states, start, target).to(reasoner.device)
    reward = step_reward(config.reward, prm, terminal)
    constant = 0.05 if config.reward == "outcome" and config.kl_coefficient is None else config.kl_coefficient
    weight_of = kl_weights(reasoner, prm, scales, constant)
    path_length = config.path_length if reasoner.window == 1 else reasoner.window
    n_walkers = max(1, config.transitions // path_length)
    gamma = default_discount(config.reward, path_length) if config.gamma is None else config.gamma
    starts = torch.ones(reasoner.n_states, dtype=torch.float64) if start is None else start
    sampler = RolloutSampler(
        reasoner, reference, reward, terminal, weight_of, starts, n_walkers, path_length, gamma, config.gae_lambda
    )
    optimizer = torch.optim.Adam(reasoner.parameters(), lr=config.learning_rate, fused=True)

    with TrainingLoop(
        "ppo", config.rounds, context, config.log_every, model=reasoner, optimizer=optimizer, extra=sampler
    ) as loop:
        for round_number in loop:
            loop.check_finite()  # a policy that is not finite cannot be sampled
            draw = loop.generator(round_number)
            with loop.autocast():
                rollout = sampler.sample(draw)
                old = log_probs_in_blocks(reasoner, rollout.states)
            contexts = reasoner.n_states if reasoner.window == 1 else rollout.n_samples
            loop.count_passes(4 * contexts)  # to sample; the old policy twice; the reference
            rate = config.learning_rate * cosine(round_number, loop.total)
            loop.set_learning_rate(rate)
            # The loss of a minibatch is its share of the mean over the rollout, times the number of minibatches. Gradients are
            # averaged over the ranks, each of which holds a part of the rollout, so that the factor n_ranks makes the sum.
            scale = config.minibatches * loop.n_ranks / rollout.n_samples
            for rows in minibatches(len(old), config.epochs, config.minibatches, draw):
                if config.target_kl is not None:
                    loop.count_passes(contexts // config.minibatches)
                    if mean_kl(reasoner, rollout, old, rows, loop) > config.target_kl:
                        break
                losses = losses_in_blocks(reasoner, rollout, old, rows, scale, config.clip, config.entropy_coefficient)
                loop.backward(losses)
                optimizer.step()
                loop.count_passes(contexts // config.minibatches)
            metrics: Metrics = {}
            if loop.logs(round_number):
                metrics = {"learning_rate": rate, "env_steps": sampler.n_samples}
                with loop.autocast():
                    metrics |= round_metrics(reasoner, reference, rollout, old, config.clip, loop)
                    if not (config.entropy_coefficient or prm.noise):
                        metrics |= distance_to_optimum(reasoner, sampler, rollout.states, loop)
            loop.finish(round_number, metrics, n_samples=rollout.n_samples)
    return Result(reasoner, loop.history, Cost(sampler.n_samples, loop.forward_passes, config.rounds))


# ---- what is sampled and what it earns --------------------------------------------------------------------------


def terminal_states(reward: str, n_states: int, start: Tensor | None, target: Tensor | None) -> Tensor:
    """(N,) bool, where an episode ends: X_out with the outcome reward, nowhere with the process reward."""
    if reward == "process":
        return torch.zeros(n_states, dtype=torch.bool)
    if start is None or target is None:
        raise ValueError("ppo.reward: outcome needs a task: give start (N,) and target (N,)")
    return target


def step_reward(reward: str, prm: PRM, terminal: Tensor) -> Callable[[torch.Generator | None], Tensor]:
    """Function of a generator that gives the (N, N) float64 reward of each step, without the KL term.

    The process reward is the PRM's score, with errors drawn from the generator where the PRM is noisy. The outcome reward
    is 1 for entering X_out.
    """
    if reward == "process":
        return lambda draw: prm.scores(terminal.device, draw)
    return lambda draw: terminal.double().expand(len(terminal), -1)


def kl_weights(
    reasoner: Reasoner, prm: PRM, scales: Scales, constant: float | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Function of contexts (B, T) and log p_ref (B, T, S) of the listed steps that gives λ (B, T) of each context.

    Args:
        reasoner: lists the steps.
        prm: the known hard steps.
        scales: gives ε and ε_max.
        constant: the same λ for all contexts; None means the λ_x whose one-step optimum is ε_max, see `prm.tilt_strength`.
    """

    def weight_of(states: Tensor, log_ref: Tensor) -> Tensor:
        if constant is not None:
            return torch.full(log_ref.shape[:-1], constant, dtype=log_ref.dtype, device=log_ref.device)
        known = reasoner.support.pick(prm.mask(states.device), states)
        return 1.0 / tilt_strength(torch.where(known, log_ref.exp(), 0.0).sum(-1), scales)

    return weight_of


def default_discount(reward: str, path_length: int) -> float:
    """gamma: 0 for the process reward, 1 − 1/(length of a rollout's walks) for the outcome reward."""
    return 1.0 - 1.0 / path_length if reward == "outcome" else 0.0


# ---- the clipped surrogate --------------------------------------------------------------------------------------


def minibatches(n_contexts: int, epochs: int, n_minibatches: int, draw: torch.Generator) -> Iterator[Tensor]:
    """Yield the numbers of the contexts of each optimiser step, reshuffled in every epoch."""
    for _ in range(epochs):
        yield from torch.randperm(n_contexts, generator=draw, device=draw.device).tensor_split(n_minibatches)


def losses_in_blocks(
    reasoner: Reasoner,
    rollout: Rollout,
    old: Tensor,
    rows: Tensor,
    scale: float,
    clip: float,
    entropy_coefficient: float,
) -> Iterator[Tensor]:
    """Yield the loss of a minibatch in blocks of contexts that fit the memory; the sum of the blocks is the loss.

    Args:
        reasoner: the policy in training.
        rollout: what was sampled.
        old: (B, T, S) log-probabilities of the policy that sampled.
        rows: numbers of the minibatch's contexts.
        scale: what the sum over samples is multiplied by.
        clip: c.
        entropy_coefficient: weight of the entropy bonus.
    """
    for block in blocks(reasoner, rows):
        # A minibatch of all contexts needs no shuffling, and the cells sampled in them are cached in the rollout.
        part, before = (rollout, old) if len(block) == len(old) else (rollout.rows(block), old[block])
        log_p = reasoner.successor_log_probs(part.states)
        loss = -surrogate_of_rollout(log_p, before, part, clip) * scale
        if entropy_coefficient:
            loss = loss - entropy_coefficient * (entropy(log_p) * part.counts.sum(-1)).sum() * scale
        yield loss


def blocks(reasoner: Reasoner, rows: Tensor) -> tuple[Tensor, ...]:
    """Contexts, or their numbers, in blocks whose predictions fit the memory."""
    return rows.split(rows_at_once(reasoner.numbers_per_context * reasoner.window, rows.device))


@torch.no_grad()
def log_probs_in_blocks(reasoner: Reasoner, states: Tensor) -> Tensor:
    """(B, T, S) log-probabilities of the listed steps, computed block by block."""
    return torch.cat([reasoner.successor_log_probs(block) for block in blocks(reasoner, states)])


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(r Â, clip(r, 1 − c, 1 + c) Â) with r = exp(log_ratio), elementwise (Algorithm 3)."""
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def surrogate_of_rollout(log_p: Tensor, old_log_p: Tensor, rollout: Rollout, clip: float) -> Tensor:
    """Sum of the clipped surrogate over a rollout: positive and negative advantages of a step share its ratio.

    Args:
        log_p: (B, T, S) of the policy in training.
        old_log_p: (B, T, S) of the policy that sampled.
        rollout: gain and loss, (B, T, S).
        clip: c.

    Returns:
        Scalar, not yet divided by the number of samples.
    """
    tables = (log_p, old_log_p, rollout.gain, rollout.loss)
    new, old, gain, loss = (x.flatten().index_select(0, rollout.cells) for x in tables)  # few of all steps were sampled
    possible = old > -torch.inf
    log_ratio = torch.where(possible, new - old, 0.0)
    surrogate = clipped_surrogate(log_ratio, gain, clip) + clipped_surrogate(log_ratio, -loss, clip)
    return torch.where(possible, surrogate, 0.0).sum()


def entropy(log_p: Tensor) -> Tensor:
    """(...,) entropy in nats of (..., S) log-probabilities; a forbidden step counts 0, not NaN."""
    finite = torch.where(log_p > -torch.inf, log_p, 0.0)  # before the product: its gradient would be NaN as well
    return -(log_p.exp() * finite).sum(-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(...,) exact KL(p ‖ q) in nats over all S next states that p lists."""
    return (log_p.exp() * torch.where(log_p > -torch.inf, log_p - log_q, 0.0)).sum(-1)


# ---- measurements -----------------------------------------------------------------------------------------------


@torch.no_grad()
def mean_kl(reasoner: Reasoner, rollout: Rollout, old: Tensor, rows: Tensor, loop: TrainingLoop) -> float:
    """Mean exact KL from the policy that sampled, over the visits to some contexts on all ranks."""
    sums = []
    for block in blocks(reasoner, rows):
        visits = rollout.counts[block].sum(-1)
        with loop.autocast():
            log_p = reasoner.successor_log_probs(rollout.states[block])
        moved = kl_divergence(old[block], log_p) * visits
        sums.append(torch.stack([moved.sum(), visits.sum()]))
    moved, seen = loop.sum(torch.stack(sums).sum(0))
    return float(moved / seen.clamp_min(1))


@torch.no_grad()
def round_metrics(
    reasoner: Reasoner, reference: Reasoner, rollout: Rollout, old: Tensor, clip: float, loop: TrainingLoop
) -> Metrics:
    """KL, clip fraction and entropy over the samples of a round, and the largest distance of a row from p_ref."""
    sums, farthest = [], []
    for block in blocks(reasoner, torch.arange(len(old), device=old.device)):
        states, counts, before = rollout.states[block], rollout.counts[block], old[block]
        log_p, visits = reasoner.successor_log_probs(states), counts.sum(-1)
        taken = (counts > 0) & (before > -torch.inf)
        ratio = torch.where(taken, log_p - before, 0.0).exp()
        clipped = ((ratio - 1).abs() > clip) & taken
        # What p_ref gives to steps that the policy does not list is lost.
        p_ref = reference.log_probs_of(states, reasoner.support.successors_of(states)).exp()
        moved = ((log_p.exp() - p_ref).abs().sum(-1) + 1 - p_ref.sum(-1)) / 2
        parts = (kl_divergence(before, log_p) * visits, clipped * counts, counts, entropy(log_p) * visits)
        sums.append(torch.stack([x.double().sum() for x in parts]))
        farthest.append(moved.max())
    kl, n_clipped, n, mean_entropy = loop.sum(torch.stack(sums).sum(0))
    return {
        "mean_reward": rollout.mean_reward,
        "explained_variance": rollout.explained_variance,
        "approx_kl": float(kl / n),
        "clip_fraction": float(n_clipped / n),
        "entropy": float(mean_entropy / n),
        "tv_to_pretrained_max": float(loop.largest(torch.stack(farthest).max())),
    }


@torch.no_grad()
def distance_to_optimum(reasoner: Reasoner, sampler: RolloutSampler, states: Tensor, loop: TrainingLoop) -> Metrics:
    """Largest total variation of a row from the optimum of the objective, where the optimum is known in closed form.

    The optimum is not known with a discount and a window above 1, and not computed with a discount above 4,096 states.
    """
    n, gamma, reference, terminal = reasoner.n_states, sampler.gamma, sampler.reference, sampler.terminal
    if gamma and (reasoner.window > 1 or n > _MOST_SOLVED):
        return {}
    if reasoner.support.successors is not None and bool((reference.support.mask & ~reasoner.support.mask).any()):
        return {}  # the optimum takes steps that the policy cannot
    contexts = torch.arange(n, device=reasoner.device)[:, None] if reasoner.window == 1 else states
    reward, farthest = sampler.reward(None), []
    for block in (contexts,) if gamma else blocks(reasoner, contexts):
        log_ref = reference.log_probs_of(block, reasoner.support.successors_of(block)).double()
        weight = sampler.weight_of(block, log_ref)
        if gamma:
            all_steps = reference.log_probs(block)[:, 0].double()
            _, optimum = soft_values(all_steps, reward, terminal, gamma, weight[:, 0])
            optimum = reasoner.support.pick(optimum, block)
        else:
            optimum = (log_ref + reasoner.support.pick(reward, block) / weight[..., None]).log_softmax(-1)
        policy = reasoner.successor_log_probs(block).double().exp()
        distance = (policy - optimum.exp()).abs().sum(-1) / 2
        farthest.append(torch.where(terminal[block], 0.0, distance).max())
    return {"tv_to_optimum_max": float(loop.largest(torch.stack(farthest).max()))}


# ---- the paper's form -------------------------------------------------------------------------------------------


def sign_ascent(reasoner: LinearReasoner, prm: PRM, scales: Scales, step: float = 0.1, clip: float = 0.2) -> int:
    """Sign-gradient ascent on the table until its hard steps stand at ε_max (Proposition 3.4).

    A sign step η adds 2η to the log-odds of a row's rewarded steps. With Λ the gap in log-odds, n = ⌈Λ/2η⌉ steps of
    Λ/(2n) end on it exactly; a fixed step would overshoot.

    Returns:
        n, the number of updates: proportional to log(ε_max/ε).
    """
    reward = prm.mask(reasoner.device)
    mass = (reasoner.kernel() * reward).sum(-1)
    gap = torch.where(mass > 0, tilt_strength(mass, scales), 0.0)  # (N,)
    n_updates = math.ceil(float(gap.max()) / (2 * step))
    states = torch.arange(reasoner.n_states, device=reasoner.device)[:, None]
    advantage = reward.to(torch.float64)
    for _ in range(n_updates):
        log_p = reasoner.log_probs(states)[:, 0]
        old = log_p.detach()
        ratio = torch.where(old > -torch.inf, log_p - old, 0.0)
        objective = (old.exp() * clipped_surrogate(ratio, advantage, clip)).sum()
        (gradient,) = torch.autograd.grad(objective, reasoner.logits)
        with torch.no_grad():
            reasoner.logits.add_(gradient.sign() * (gap / (2 * n_updates))[:, None])
    return n_updates


def ppo_by_sign(reasoner: Reasoner, prm: PRM, scales: Scales, config: PPOConfig, context: Context) -> Result[Reasoner]:
    """`sign_ascent` with the result and the log of `ppo`."""
    if not isinstance(reasoner, LinearReasoner):
        raise ValueError("ppo.form: sign is the paper's form for the linear reasoner; use form: clip for others")
    updates = sign_ascent(reasoner, prm, scales, config.sign_step, config.clip)
    line: Metrics = {"step": updates, "updates": updates}
    if context.probe is not None:
        line |= context.probe(reasoner)
    if context.report is not None:
        context.report(line)
    return Result(reasoner, [line], Cost(0, updates * reasoner.n_states, updates))
