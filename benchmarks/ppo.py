"""A round of Algorithm 3: ours on counts, against the same PPO on sampled steps and a plain loop in CleanRL's manner."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.models import HEADS, LAYERS, WIDTH, default_graph
from benchmarks.rollout import decode
from benchmarks.timing import Benchmark, Mark, Settings, Work, race
from mcot_torch.algorithms.config import PPOConfig, PretrainConfig
from mcot_torch.algorithms.ppo import clipped_surrogate, ppo
from mcot_torch.algorithms.pretrain import pretrain
from mcot_torch.algorithms.prm import PRM, tilt_strength
from mcot_torch.algorithms.rollouts import penalised
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import TransformerReasoner
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.loop import Context

_EPOCHS, _MINIBATCH = 10, 1024


def on_steps(model: TransformerReasoner, prm: PRM, scales: Scales, n_steps: int, draw: torch.Generator) -> None:
    """The same PPO, one sampled step at a time: same reward, advantage, clip and epochs; minibatches of 1,024 steps."""
    device, walkers = draw.device, 256
    reference = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    start = torch.randint(model.n_states, (walkers,), generator=draw, device=device)
    paths = decode(model, start, max(1, n_steps // walkers), draw)
    states, after = paths[:, :-1].reshape(-1, 1), paths[:, 1:].reshape(-1)
    with torch.no_grad():
        old, log_ref = model.log_probs(states)[:, 0], reference.log_probs(states)[:, 0]
        known = prm.mask(device)[states[:, 0]]
        weight = 1.0 / tilt_strength(torch.where(known, log_ref.exp(), 0.0).sum(-1), scales)
        value = penalised(known.float(), old, log_ref, weight)
        advantage = (value - (old.exp() * value).sum(-1, keepdim=True)).gather(1, after[:, None])[:, 0]
        old = old.gather(1, after[:, None])[:, 0]
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(after), generator=draw, device=device).split(_MINIBATCH):
            log_p = model.log_probs(states[rows])[:, 0].gather(1, after[rows, None])[:, 0]
            optimizer.zero_grad()
            (-clipped_surrogate(log_p - old[rows], advantage[rows], 0.2).mean()).backward()
            optimizer.step()


class ActorCritic(nn.Module):
    """Embedding, then two tanh layers of 64 for the policy and two for the value."""

    def __init__(self, n_states: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_states, WIDTH)
        self.actor = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.policy, self.value = nn.Linear(WIDTH, n_states), nn.Linear(WIDTH, 1)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, N) and values (B,)."""
        x = self.embedding(states)
        return self.policy(self.actor(x)).log_softmax(-1), self.value(self.critic(x))[:, 0]


def plain_loop(agent: ActorCritic, rewarded: Tensor, n_steps: int, draw: torch.Generator) -> None:
    """256 environments side by side, GAE, 4 epochs of 4 minibatches, clipped policy and value losses, entropy bonus."""
    device, envs = draw.device, 256
    length = max(1, n_steps // envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
    state = torch.randint(len(rewarded), (envs,), generator=draw, device=device)
    states, actions = (torch.zeros(length, envs, dtype=torch.int64, device=device) for _ in range(2))
    log_probs, rewards, values = (torch.zeros(length, envs, device=device) for _ in range(3))
    with torch.no_grad():
        for t in range(length):
            states[t] = state
            log_p, values[t] = agent(state)
            actions[t] = torch.multinomial(log_p.exp(), 1, generator=draw)[:, 0]
            log_probs[t] = log_p.gather(1, actions[t][:, None])[:, 0]
            rewards[t] = rewarded[state, actions[t]].float()
            state = actions[t]
        following = torch.cat([values[1:], agent(state)[1][None]])
        advantages, last = torch.zeros_like(rewards), torch.zeros(envs, device=device)
        for t in reversed(range(length)):
            last = rewards[t] + 0.99 * following[t] - values[t] + 0.99 * 0.95 * last
            advantages[t] = last
    flat = [x.flatten() for x in (states, actions, log_probs, advantages, advantages + values, values)]
    for _ in range(4):
        for rows in torch.randperm(envs * length, generator=draw, device=device).chunk(4):
            s, a, old, adv, returns, v_old = (x[rows] for x in flat)
            log_p, v = agent(s)
            adv = (adv - adv.mean()) / (adv.std() + 1e-8)
            policy = -clipped_surrogate(log_p.gather(1, a[:, None])[:, 0] - old, adv, 0.2).mean()
            clipped = v_old + (v - v_old).clamp(-0.2, 0.2)
            value = 0.5 * torch.maximum((v - returns) ** 2, (clipped - returns) ** 2).mean()
            entropy = -(log_p.exp() * log_p).sum(-1).mean()
            optimizer.zero_grad()
            (policy + 0.5 * value - 0.01 * entropy).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def rounds(settings: Settings) -> Benchmark:
    """Rollout and update."""
    device = settings.device
    graph = default_graph(settings.quick)
    scales, prm = Scales.of(graph, 0.03), PRM.simulated(graph)
    n_rounds, transitions, few = settings.size(5, 1), settings.size(1_000_000, 2000), settings.size(4096, 512)
    context = Context(trainer=TrainerConfig(accelerator=device, threads=settings.threads, progress=False))
    model = TransformerReasoner(graph.n_states, 1, WIDTH, LAYERS, HEADS).to(device)
    pretrain(model, graph, PretrainConfig(steps=settings.size(150, 2), steps_after_cut=2, threshold=0.0), context)
    model.support.set(torch.from_numpy(graph.kernel() > 0))
    agent = ActorCritic(graph.n_states).to(device)
    draw, rewarded = torch.Generator(device).manual_seed(0), prm.mask(torch.device(device))
    config = PPOConfig(rounds=n_rounds, transitions=transitions, epochs=_EPOCHS)
    ours = f"ours, on counts ({transitions:,} transitions a round)"
    works = [
        Work(ours, lambda: ppo(copy.deepcopy(model), prm, scales, config, context), n_rounds * transitions, True),
        Work("the same PPO on sampled steps", lambda: on_steps(copy.deepcopy(model), prm, scales, few, draw), few),
        Work("plain loop in CleanRL's manner", lambda: plain_loop(agent, rewarded, few, draw), few),
    ]
    setup = f"N = {graph.n_states}; rollout and update, {_EPOCHS} epochs (the plain loop 4); peers {few:,} transitions a round"
    row = Benchmark("ppo", "ppo_round", setup, "transitions", race(works, settings))
    row.marks = [Mark(f"≥ 20 x {work.name}", row.ratio(ours, work.name), 20.0) for work in works[1:]]
    row.notes = [
        "The peers' cost is proportional to the transitions; rounds of a million would take them minutes each."
    ]
    return row


ROWS = {"ppo_round": rounds}
