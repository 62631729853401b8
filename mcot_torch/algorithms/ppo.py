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
from collections.abc import Iterator

import torch
from torch import Tensor

from mcot_torch.algorithms.config import PPOConfig
from mcot_torch.algorithms.prm import PRM, tilt_strength
from mcot_torch.algorithms.rollouts import (
    Rollout,
    discount,
    gae_rollout,
    kl_weight,
    n_walkers,
    one_step_rollout,
    soft_values,
)
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners.linear import LinearReasoner
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.sampling.datasets import Steps
from mcot_torch.system.randomness import generator
from mcot_torch.system.ranks import largest, own_rows, share, stream, total, whole, world_size
from mcot_torch.training.loop import Context, Metrics, Stage, cosine, fit

_MOST_SOLVED = 4096  # states of which the optimum of a discounted reward is solved for, a few (N, N) systems

__all__ = ["PPOConfig", "clipped_surrogate", "entropy", "kl_divergence", "ppo", "sign_ascent"]


# ---- pure functions ---------------------------------------------------------------------------------------------


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


# ---- the practical form -----------------------------------------------------------------------------------------


class PPOStage(Stage):
    """Rounds of: sample with the policy as it is, then climb the clipped surrogate for some epochs."""

    name = "ppo"

    def __init__(
        self,
        reasoner: Reasoner,
        prm: PRM,
        scales: Scales,
        config: PPOConfig,
        context: Context,
        start: Tensor | None = None,
        target: Tensor | None = None,
        reference: Reasoner | None = None,
    ) -> None:
        super().__init__(reasoner, context, config.log_every)
        self.config, self.prm, self.scales = config, prm, scales
        self.reference = copy.deepcopy(reference or reasoner).requires_grad_(False)
        self.gamma = discount(config, reasoner)
        self.env_steps = 0
        self.start, self.target = start, target
        self.values = torch.zeros(reasoner.n_states, dtype=torch.float64, device=reasoner.device)
        self.walkers: Tensor | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.reasoner.parameters(), lr=self.config.learning_rate, fused=True)

    def extra_state(self) -> dict[str, Tensor]:
        """The reference, the values, the walkers, and the steps sampled so far."""
        state = {f"reference.{key}": value for key, value in self.reference.state_dict().items()}
        walkers = {} if self.walkers is None else {"walkers": whole(self.walkers, self._n_walkers())}
        return {**state, **walkers, "values": self.values, "env_steps": torch.tensor(self.env_steps)}

    def load_extra_state(self, tensors: dict[str, Tensor]) -> None:
        """Take them back."""
        reference = {k.removeprefix("reference."): v for k, v in tensors.items() if k.startswith("reference.")}
        self.reference.load_state_dict(reference)
        values, walkers = tensors["values"], tensors.get("walkers")
        if values.shape != self.values.shape or values.dtype != self.values.dtype:
            raise ValueError(f"it holds {len(values)} values of states, and there are {len(self.values)}")
        if walkers is not None and not bool(((walkers >= 0) & (walkers < len(values))).all()):
            raise ValueError(f"it holds a walker outside the states 0 .. {len(values) - 1}")
        self.values = values.to(self.reasoner.device)
        self.walkers = None if walkers is None else walkers[own_rows(self._n_walkers())]
        self.env_steps = int(tensors["env_steps"])

    def kl_weight(self, states: Tensor, log_ref: Tensor) -> Tensor:
        """(B, T) λ of each context."""
        known = self.reasoner.support.pick(self.prm.mask(states.device), states)
        return kl_weight(log_ref, known, self.scales, self.config)

    def reward(self, draw: torch.Generator | None = None) -> Tensor:
        """(N, N) float64 reward of each step, without the KL term; a noisy PRM draws its errors from `draw`."""
        if self.config.reward == "process":
            return self.prm.scores(self.reasoner.device, draw)
        return self.terminal().double().expand(self.reasoner.n_states, -1)

    def terminal(self) -> Tensor:
        """(N,) bool, where an episode ends: X_out with the outcome reward, nowhere with the process reward."""
        if self.config.reward == "process":
            return torch.zeros(self.reasoner.n_states, dtype=torch.bool, device=self.reasoner.device)
        if self.start is None or self.target is None:
            raise ValueError("ppo.reward: outcome needs a task: give start (N,) and target (N,)")
        return self.target.to(self.reasoner.device)

    @torch.no_grad()
    def rollout(self, draw: torch.Generator) -> Rollout:
        """Sample with the policy as it is, and weigh what was sampled."""
        if self.gamma == 0:
            return one_step_rollout(self.reasoner, self.reference, self.reward(draw), self.kl_weight, self.config, draw)
        terminal = self.terminal()
        if self.walkers is not None:
            fresh = terminal[self.walkers.to(draw.device)]
            walkers = torch.where(fresh, self._starts(len(fresh), draw), self.walkers.to(draw.device))
        else:
            walkers = self._starts(share(self._n_walkers()), draw)
        rollout, self.values, self.walkers = gae_rollout(
            self.reasoner,
            self.reference,
            self.reward(draw),
            terminal,
            self.values.to(draw.device),
            walkers,
            self.kl_weight,
            self.config,
            draw,
        )
        return rollout

    def _n_walkers(self) -> int:
        """Walkers of all ranks together."""
        return n_walkers(self.config, self.reasoner)

    def _starts(self, n_walkers: int, draw: torch.Generator) -> Tensor:
        law = self.start if self.start is not None else torch.ones(self.reasoner.n_states, dtype=torch.float64)
        return torch.multinomial(law.to(draw.device), n_walkers, replacement=True, generator=draw)

    def training_step(self, round_number: int) -> None:
        """One round; `round_number` equals `self.step`."""
        self.check_finite()  # a policy that is not finite cannot be sampled
        draw = generator(self.context.seed, "ppo", self.step, *stream(), device=self.reasoner.device)
        rollout = self.rollout(draw)
        self.env_steps += rollout.n_samples
        old = self._log_probs(rollout.states)
        rate = self.config.learning_rate * cosine(self.step, self.total)
        stopped = False
        for _ in range(self.config.epochs):
            order = torch.randperm(len(rollout.states), generator=draw, device=draw.device)
            for rows in order.tensor_split(self.config.minibatches):
                stopped = self._improve(rollout, old, rows, rate)
                if stopped:
                    break
            if stopped:
                break
        self.finish_step(lambda: self._measure(rollout, old, rate), n_samples=rollout.n_samples)

    def _blocks(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Contexts, or their numbers, in blocks."""
        return self.in_blocks(rows, self.reasoner.numbers_per_context * self.reasoner.window)

    @torch.no_grad()
    def _log_probs(self, states: Tensor) -> Tensor:
        """(B, T, S) as `Reasoner.successor_log_probs`, computed block by block."""
        return torch.cat([self.reasoner.successor_log_probs(block) for block in self._blocks(states)])

    def _log_ref(self, states: Tensor) -> Tensor:
        """(B, T, S) log p_ref of the steps that the policy lists."""
        return self.reference.log_probs_of(states, self.reasoner.support.successors_of(states))

    def _improve(self, rollout: Rollout, old: Tensor, rows: Tensor, rate: float) -> bool:
        """One optimiser step on some contexts; True if the KL limit says to stop before it."""
        if self.config.target_kl is not None and self._moved(rollout, old, rows) > self.config.target_kl:
            return True
        # the whole rollout normalises, not the minibatch; ranks are averaged, so that each counts as all of them
        weight = self.config.minibatches * world_size() / rollout.n_samples

        def losses() -> Iterator[Tensor]:
            for block in self._blocks(rows):
                # all of them: in their own order, whose cells are known
                part, before = (rollout, old) if len(block) == len(old) else (rollout.rows(block), old[block])
                log_p = self.reasoner.successor_log_probs(part.states)
                loss = -surrogate_of_rollout(log_p, before, part, self.config.clip) * weight
                if self.config.entropy_coefficient:
                    bonus = (entropy(log_p) * part.counts.sum(-1)).sum()
                    loss = loss - self.config.entropy_coefficient * bonus * weight
                yield loss

        self.update(losses(), rate)
        return False

    @torch.no_grad()
    def _moved(self, rollout: Rollout, old: Tensor, rows: Tensor) -> float:
        """Mean exact KL from the policy that sampled, over the visits to some contexts."""
        sums = []
        for block in self._blocks(rows):
            visits = rollout.counts[block].sum(-1)
            moved = kl_divergence(old[block], self.reasoner.successor_log_probs(rollout.states[block])) * visits
            sums.append(torch.stack([moved.sum(), visits.sum()]))
        moved, seen = total(torch.stack(sums).sum(0))
        return float(moved / seen.clamp_min(1))

    @torch.no_grad()
    def _measure(self, rollout: Rollout, old: Tensor, rate: float) -> Metrics:
        sums, farthest = [], []
        for block in self._blocks(torch.arange(len(old), device=old.device)):
            states, counts, before = rollout.states[block], rollout.counts[block], old[block]
            log_p, visits = self.reasoner.successor_log_probs(states), counts.sum(-1)
            taken = (counts > 0) & (before > -torch.inf)
            ratio = torch.where(taken, log_p - before, 0.0).exp()
            clipped = ((ratio - 1).abs() > self.config.clip) & taken
            reference = self._log_ref(states).exp()  # what it gives to steps that the policy does not list is lost
            moved = ((log_p.exp() - reference).abs().sum(-1) + 1 - reference.sum(-1)) / 2
            parts = (kl_divergence(before, log_p) * visits, clipped * counts, counts, entropy(log_p) * visits)
            sums.append(torch.stack([x.double().sum() for x in parts]))
            farthest.append(moved.max())
        kl, n_clipped, n, mean_entropy = total(torch.stack(sums).sum(0))
        metrics = {
            "learning_rate": rate,
            "env_steps": self.env_steps,
            "mean_reward": rollout.mean_reward,
            "explained_variance": rollout.explained_variance,
            "approx_kl": float(kl / n),
            "clip_fraction": float(n_clipped / n),
            "entropy": float(mean_entropy / n),
            "tv_to_pretrained_max": float(largest(torch.stack(farthest).max())),
        }
        return metrics | self._distance(rollout)

    def _distance(self, rollout: Rollout) -> Metrics:
        """How far the policy still is from the optimum of its objective, where that is known in closed form."""
        if self.config.entropy_coefficient or self.prm.noise or (self.gamma and self.reasoner.window > 1):
            return {}
        n = self.reasoner.n_states
        if self.gamma and n > _MOST_SOLVED:
            return {}
        if self.reasoner.support.successors is not None and bool(
            (self.reference.support.mask & ~self.reasoner.support.mask).any()
        ):
            return {}  # the optimum takes steps that the policy cannot
        contexts = (
            torch.arange(n, device=self.reasoner.device)[:, None] if self.reasoner.window == 1 else rollout.states
        )
        reward, terminal, farthest = self.reward(), self.terminal(), []
        for states in (contexts,) if self.gamma else self._blocks(contexts):
            log_ref = self._log_ref(states).double()
            weight = self.kl_weight(states, log_ref)
            if self.gamma:
                whole = self.reference.log_probs(states)[:, 0].double()
                _, optimum = soft_values(whole, reward, terminal, self.gamma, weight[:, 0])
                optimum = self.reasoner.support.pick(optimum, states)
            else:
                optimum = (log_ref + self.reasoner.support.pick(reward, states) / weight[..., None]).log_softmax(-1)
            policy = self.reasoner.successor_log_probs(states).double().exp()
            distance = (policy - optimum.exp()).abs().sum(-1) / 2
            farthest.append(torch.where(terminal[states], 0.0, distance).max())
        return {"tv_to_optimum_max": float(largest(torch.stack(farthest).max()))}


def ppo(
    reasoner: Reasoner,
    prm: PRM,
    scales: Scales,
    config: PPOConfig | None = None,
    context: Context | None = None,
    start: Tensor | None = None,
    target: Tensor | None = None,
    reference: Reasoner | None = None,
) -> list[Metrics]:
    """Algorithm 3 on `reasoner`, in place.

    Args:
        reasoner: the pretrained model.
        prm: M_s; its scores are the process reward.
        scales: gives ε and ε_max.
        config: see `PPOConfig`.
        context: seed, folder, devices, watchers.
        start: (N,) law of X_in, for the outcome reward.
        target: (N,) bool, X_out, for the outcome reward.
        reference: p_ref; the reasoner as it is at the call unless another is given.

    Returns:
        The logged lines.
    """
    config, context = config or PPOConfig(), context or Context()
    if config.form == "sign":
        if not isinstance(reasoner, LinearReasoner):
            raise ValueError("ppo.form: sign is the paper's form for the linear reasoner; use form: clip for others")
        updates = sign_ascent(reasoner, prm, scales, config.sign_step, config.clip)
        line: Metrics = {"step": updates, "updates": updates}
        if context.probe is not None:
            line |= context.probe(reasoner)
        if context.report is not None:
            context.report(line)
        return [line]
    return fit(PPOStage(reasoner, prm, scales, config, context, start, target, reference), Steps(config.rounds))
