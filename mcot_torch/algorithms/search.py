"""Algorithm 2, sparse edge search: find the hard steps from the reasoner's own walks.

A round draws a start X_0 and runs N walks from it. The states that most of them visit within T_0 steps are Ĉ, the
estimate of the start's cluster; then each walk goes on until it leaves Ĉ, and the step that left is a vote for a hard
step. Search receives a reasoner and four numbers, never a graph: Proposition 3.3 says that it finds E_s exactly at
about the price of one unaided solve, Õ(KM/ε) transitions.

Where the paper takes the union of the visited states, real sizes need a majority: with probability about
N·T_0·n_out·ε/M a round, one walk escapes while Ĉ is still being collected. Walks that end outside Ĉ are dropped, and a
step counts only if several rounds voted for it (specification, "Algorithm 2",
docs/specification.md#algorithm-2-sparse-edge-search). Starts are drawn among the states that the fewest Ĉ
held so far: with uniform starts one run in seven left some cluster with too few rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from mcot_torch.algorithms.config import SearchConfig
from mcot_torch.algorithms.prm import PRM, avoid
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.support import Policy
from mcot_torch.reasoners.walks import walker
from mcot_torch.system.randomness import generator
from mcot_torch.system.ranks import on_first_rank
from mcot_torch.training.loop import Context, TrainingLoop, with_trainer_settings
from mcot_torch.training.result import Cost, Result

__all__ = ["SearchConfig", "resolve_search", "search"]

STEPS_BETWEEN_LOOKS = 256  # steps between two looks for walks that left


@with_trainer_settings
def search(
    reasoner: Reasoner,
    scales: Scales,
    config: SearchConfig | None = None,
    context: Context | None = None,
    on_round: Callable[[Tensor], Cost] | None = None,
) -> Result[PRM]:
    """Run Algorithm 2.

    Args:
        reasoner: walked on, and changed only by `on_round`.
        scales: K, M, ε; they set the defaults of R, N, T_0 and T_max.
        config: options.
        context: seed, folder of checkpoints, watchers.
        on_round: in RL mode, called after each round that found a step with the (n, 2) steps found so far; runs Algorithm 3
            and returns its cost. Walks of later rounds avoid the steps that are known already, else the raised ones
            would spoil Ĉ.

    Returns:
        The PRM M_s whose edges are Ê, the steps with enough votes, and whose `votes` tell how many rounds voted for each;
        a line for each chunk of rounds (rounds, transitions, edges); the cost.
    """
    config, context = resolve_search(config or SearchConfig(), scales), context or Context()
    assert config.rounds and config.walks and config.cover_steps and config.max_steps
    one_by_one = config.mode == "rl"
    chunk = 1 if one_by_one else scales.n_clusters
    votes = Votes(reasoner.n_states, config.min_votes, reasoner.device)
    model = reasoner if one_by_one else None

    unprobed = replace(context, probe=None)  # what search logs does not need the truth
    with TrainingLoop(
        "search", config.rounds, unprobed, model=model, extra=votes, stride=chunk, always_save=True
    ) as loop:
        for first in loop:
            n_rounds = min(chunk, loop.total - first)
            draw = generator(context.seed, "search", first, device=reasoner.device)
            least = (votes.coverage == votes.coverage.min()).double()
            starts = torch.multinomial(least, n_rounds, replacement=True, generator=draw)
            known = votes.edges()
            policy = avoid(known, reasoner) if one_by_one and len(known) else None
            found, clusters, transitions = search_rounds(
                reasoner, starts, config.walks, config.cover_steps, config.max_steps, draw, policy
            )
            votes.count(found, clusters)
            votes.cost += Cost(transitions, passes(reasoner, transitions), n_rounds)
            edges = votes.edges()
            if on_round is not None and len(edges) > len(known):
                votes.cost += replace(on_round(edges), rounds=0)
            line = {"transitions": votes.cost.transitions, "edges": len(edges)}
            loop.finish(first, line, f"{len(edges)} hard steps", n_samples=None)
    prm = PRM(reasoner.n_states, votes.edges(), votes=votes.of_edges())
    return Result(prm, loop.history, votes.cost)


def resolve_search(config: SearchConfig, scales: Scales) -> SearchConfig:
    """The configuration with every null replaced by its value."""
    k, m = scales.n_clusters, max(2, scales.cluster_size)
    log_k = math.log(max(k, 10))  # fewer clusters need as many rounds each
    return replace(
        config,
        rounds=config.rounds or math.ceil(3 * k * log_k),
        walks=config.walks or math.ceil(3 * log_k),
        cover_steps=config.cover_steps or scales.cover_steps,
        max_steps=config.max_steps or math.ceil(m / scales.epsilon),
    )


def passes(reasoner: Reasoner, transitions: int) -> int:
    """Forward passes behind some sampled steps: one for each state where a table is made first, else one for each step."""
    return reasoner.n_states if reasoner.window == 1 else transitions


def estimate_cluster(visited: Tensor) -> Tensor:
    """Ĉ: states that most walks visited; (..., N walks, S) bool -> (..., S) bool."""
    return 2 * visited.sum(-2) > visited.shape[-2]


@on_first_rank
def search_rounds(
    reasoner: Reasoner,
    starts: Tensor,
    n_walks: int,
    cover_steps: int,
    max_steps: int,
    draw: torch.Generator,
    policy: Policy | None = None,
) -> tuple[list[set[tuple[int, int]]], Tensor, int]:
    """Run several rounds at once, one from each start.

    Args:
        reasoner: walked on.
        starts: (R,) int64, X_0 of each round.
        n_walks: N, walks of a round.
        cover_steps: T_0, steps that collect Ĉ.
        max_steps: T_max, steps after which a walk that has not left is given up.
        draw: generator on the reasoner's device.
        policy: changes the reasoner's predictions.

    Returns:
        For each round the steps by which its walks left Ĉ; Ĉ (R, N) bool; the transitions walked in all.
    """
    n_rounds, device = len(starts), reasoner.device
    walkers = walker(reasoner, starts.repeat_interleave(n_walks), draw, policy)
    visited = torch.zeros(n_rounds * n_walks, reasoner.n_states, dtype=torch.bool, device=device)
    visited.scatter_(1, walkers.states[:, None], True)
    for first in range(0, cover_steps, STEPS_BETWEEN_LOOKS):
        visited.scatter_(1, walkers.advance(min(STEPS_BETWEEN_LOOKS, cover_steps - first)), True)
    cluster = estimate_cluster(visited.view(n_rounds, n_walks, -1))  # (R, S)
    transitions = n_rounds * n_walks * cover_steps

    rounds = torch.arange(n_rounds, device=device).repeat_interleave(n_walks)
    inside = cluster[rounds, walkers.states]
    walkers.keep(inside)
    rounds = rounds[inside]
    found: list[set[tuple[int, int]]] = [set() for _ in range(n_rounds)]
    done = cover_steps
    while done < max_steps and len(rounds):
        last = walkers.states
        path = walkers.advance(min(STEPS_BETWEEN_LOOKS, max_steps - done))  # (W, block)
        outside = ~cluster[rounds[:, None], path]
        left = outside.any(dim=1)
        exit_at = outside.to(torch.uint8).argmax(dim=1)
        transitions += int(torch.where(left, exit_at + 1, path.shape[1]).sum())
        walk, at = left.nonzero()[:, 0], exit_at[left]
        before = torch.where(at > 0, path[walk, (at - 1).clamp_min(0)], last[walk])
        for r, x, y in torch.stack([rounds[walk], before, path[walk, at]], dim=1).tolist():
            found[r].add((x, y))
        walkers.keep(~left)
        rounds = rounds[~left]
        done += path.shape[1]
    return found, cluster, transitions


class Votes:
    """Votes of the rounds so far for each step, and how often each state was in a Ĉ.

    Args:
        n_states: N.
        min_votes: rounds that must vote for a step before it counts.
        device: of the coverage.

    Attributes:
        coverage: (N,) int64, number of estimated clusters that held each state.
        cost: what the rounds have used.
    """

    def __init__(self, n_states: int, min_votes: int, device: torch.device) -> None:
        self.min_votes = min_votes
        self.coverage = torch.zeros(n_states, dtype=torch.int64, device=device)
        self.cost = Cost()
        self._votes: dict[tuple[int, int], int] = {}

    def count(self, found: Iterable[set[tuple[int, int]]], clusters: Tensor) -> None:
        """Add rounds: the steps that each found, and their Ĉ, (R, N) bool."""
        self.coverage += clusters.sum(0)
        for steps in found:
            for edge in steps:
                self._votes[edge] = self._votes.get(edge, 0) + 1

    def edges(self) -> Tensor:
        """(n, 2) int64, the steps with enough votes, ascending."""
        accepted = sorted(edge for edge, n in self._votes.items() if n >= self.min_votes)
        return torch.tensor(accepted, dtype=torch.int64).reshape(-1, 2)

    def of_edges(self) -> Tensor:
        """(n,) int64, votes of the steps in `edges`."""
        return torch.tensor([self._votes[x, y] for x, y in self.edges().tolist()], dtype=torch.int64)

    def state_dict(self) -> dict[str, Tensor]:
        """Coverage, votes as (n, 3) source, target, number, and cost, for a checkpoint."""
        rows = [[x, y, n] for (x, y), n in self._votes.items()]
        cost = [self.cost.transitions, self.cost.forward_passes, self.cost.rounds]
        return {
            "coverage": self.coverage,
            "votes": torch.tensor(rows, dtype=torch.int64).reshape(-1, 3),
            "cost": torch.tensor(cost, dtype=torch.int64),
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore `state_dict`; `ValueError` unless it is of a search over the same states."""
        n, coverage, votes, cost = len(self.coverage), tensors["coverage"], tensors["votes"], tensors["cost"]
        if coverage.shape != (n,) or coverage.dtype != torch.int64:
            raise ValueError(f"it covers {len(coverage)} states, and there are {n}")
        if votes.dtype != torch.int64 or votes.dim() != 2 or votes.shape[1] != 3 or cost.shape != (3,):
            raise ValueError("its votes are no table of steps and counts")
        if not bool(((votes[:, :2] >= 0) & (votes[:, :2] < n)).all()):
            raise ValueError(f"it votes for a step outside the states 0 .. {n - 1}")
        if cost.dtype != torch.int64 or bool((votes[:, 2] < 0).any()) or bool((cost < 0).any()):
            raise ValueError("it holds a count that is none")
        self.coverage = coverage.to(self.coverage.device)
        self._votes = {(x, y): count for x, y, count in votes.tolist()}
        self.cost = Cost(*cost.tolist())
