"""Algorithm 2, sparse edge search: find the hard steps from the reasoner's own walks.

A round draws a start X_0 and runs N walks from it. The states that most of them visit within T_0 steps are Ĉ, the
estimate of the start's cluster; then each walk goes on until it leaves Ĉ, and the step that left is a vote for a hard
step. Search receives a reasoner and four numbers, never a graph: Proposition 3.3 says that it finds E_s exactly at
about the price of one unaided solve, Õ(KM/ε) transitions.

Where the paper takes the union of the visited states, real sizes need a majority: with probability about
N·T_0·n_out·ε/M a round, one walk escapes while Ĉ is still being collected. Walks that end outside Ĉ are dropped, and a
step counts only if several rounds voted for it (THEORY section 2). Starts are drawn among the states that the fewest Ĉ
held so far: with uniform starts one run in seven left some cluster with too few rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mcot_torch.algorithms.config import SearchConfig
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import walks
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.support import Policy, entries_at
from mcot_torch.system.files import READ_ERRORS
from mcot_torch.system.progress import progress_bar
from mcot_torch.system.randomness import generator
from mcot_torch.system.ranks import any_of, from_first, is_first
from mcot_torch.training.loop import Context, interruptible, load_state, save_state, unreadable

__all__ = ["SearchConfig", "SearchResult", "resolve_search", "search"]

_BLOCK = 256  # steps between two looks for walks that left


@dataclass
class SearchResult:
    """What search found and what it cost.

    Attributes:
        edges: (n, 2) int64, Ê, the steps with enough votes.
        votes: (n,) int64, rounds that voted for each.
        transitions: steps walked in all.
        history: a line for each chunk of rounds: rounds, transitions, edges.
    """

    edges: Tensor
    votes: Tensor
    transitions: int
    history: list[dict[str, float]] = field(default_factory=list)


def resolve_search(config: SearchConfig, scales: Scales) -> SearchConfig:
    """The configuration with every null replaced by its value."""
    k, m = scales.n_clusters, max(2, scales.cluster_size)
    log_k = math.log(max(k, 10))  # fewer clusters need as many rounds each
    return replace(
        config,
        rounds=config.rounds or math.ceil(3 * k * log_k),
        walks=config.walks or math.ceil(3 * log_k),
        cover_steps=config.cover_steps or math.ceil(2.5 * m * math.log(m)),
        max_steps=config.max_steps or math.ceil(m / scales.epsilon),
    )


def estimate_cluster(visited: Tensor) -> Tensor:
    """Ĉ: states that most walks visited; (..., N walks, S) bool -> (..., S) bool."""
    return 2 * visited.sum(-2) > visited.shape[-2]


def search_rounds(
    reasoner: Reasoner,
    starts: Tensor,
    config: SearchConfig,
    draw: torch.Generator,
    policy: Policy | None = None,
) -> tuple[list[set[tuple[int, int]]], Tensor, int]:
    """Several rounds at once, one from each of the (R,) `starts`.

    Returns:
        For each round the steps by which its walks left Ĉ; Ĉ (R, N) bool; the transitions walked in all.
    """
    assert config.walks and config.cover_steps and config.max_steps
    n_rounds, n_walks, device = len(starts), config.walks, reasoner.device
    walker = walks.walker(reasoner, starts.repeat_interleave(n_walks), draw, policy)
    visited = torch.zeros(n_rounds * n_walks, reasoner.n_states, dtype=torch.bool, device=device)
    visited.scatter_(1, walker.states[:, None], True)
    for first in range(0, config.cover_steps, _BLOCK):
        visited.scatter_(1, walker.advance(min(_BLOCK, config.cover_steps - first)), True)
    cluster = estimate_cluster(visited.view(n_rounds, n_walks, -1))  # (R, S)
    transitions = n_rounds * n_walks * config.cover_steps

    rounds = torch.arange(n_rounds, device=device).repeat_interleave(n_walks)
    inside = cluster[rounds, walker.states]
    walker.keep(inside)
    rounds = rounds[inside]
    found: list[set[tuple[int, int]]] = [set() for _ in range(n_rounds)]
    done = config.cover_steps
    while done < config.max_steps and len(rounds):
        last = walker.states
        path = walker.advance(min(_BLOCK, config.max_steps - done))  # (W, block)
        outside = ~cluster[rounds[:, None], path]
        left = outside.any(dim=1)
        exit_at = outside.to(torch.uint8).argmax(dim=1)
        transitions += int(torch.where(left, exit_at + 1, path.shape[1]).sum())
        walk, at = left.nonzero()[:, 0], exit_at[left]
        before = torch.where(at > 0, path[walk, (at - 1).clamp_min(0)], last[walk])
        for r, x, y in torch.stack([rounds[walk], before, path[walk, at]], dim=1).tolist():
            found[r].add((x, y))
        walker.keep(~left)
        rounds = rounds[~left]
        done += path.shape[1]
    return found, cluster, transitions


def search(
    reasoner: Reasoner,
    scales: Scales,
    config: SearchConfig | None = None,
    context: Context | None = None,
    on_round: Callable[[Tensor], int] | None = None,
) -> SearchResult:
    """Algorithm 2.

    Args:
        reasoner: walked on, and changed only by `on_round`.
        scales: K, M, ε; they set the defaults of R, N, T_0 and T_max.
        config: see `SearchConfig`.
        context: seed, folder, watchers.
        on_round: in RL mode, called after each round that found a step with the (n, 2) found so far; runs Algorithm 3. Walks of
            later rounds avoid the steps that are known already, else the raised ones would spoil Ĉ. Returns the
            transitions that it sampled; they count towards the cost.

    Returns:
        The steps found, their votes and the cost.
    """
    config, context = resolve_search(config or SearchConfig(), scales), context or Context()
    assert config.rounds and config.walks
    one_by_one = config.mode == "rl"
    chunk = 1 if one_by_one else scales.n_clusters
    coverage = torch.zeros(reasoner.n_states, dtype=torch.int64, device=reasoner.device)
    votes: dict[tuple[int, int], int] = {}
    transitions, done, history = 0, 0, []
    path = context.folder / "state.safetensors" if context.folder else None
    # ranks walk together, or one would find the state that another has written since
    if path is not None and (state := from_first(lambda: load_state(path))) is not None:
        try:
            coverage, votes = _checked(*state, reasoner)
            transitions, done, history = (state[1][key] for key in ("transitions", "done", "history"))
            if one_by_one:
                reasoner.load_state_dict({k.removeprefix("model."): x for k, x in state[0].items() if k != "coverage"})
        except (*READ_ERRORS, RuntimeError) as error:
            raise unreadable(path, " ".join(str(error).split())[:200]) from None
    watch = SimpleNamespace(stop_requested=False)
    with progress_bar("search", config.rounds, context.trainer.progress) as bar, interruptible(watch):
        while done < config.rounds:
            size = min(chunk, config.rounds - done)
            draw = generator(context.seed, "search", done, device=reasoner.device)
            least = (coverage == coverage.min()).double()
            starts = torch.multinomial(least, size, replacement=True, generator=draw)
            known = _accepted(votes, config.min_votes)
            policy = avoid(known, reasoner) if one_by_one and len(known) else None
            found, clusters, cost = from_first(
                partial(search_rounds, reasoner, starts, config, draw, policy), reasoner.device
            )
            coverage += clusters.sum(0)
            for steps in found:
                for edge in steps:
                    votes[edge] = votes.get(edge, 0) + 1
            transitions, done = transitions + cost, done + size
            edges = _accepted(votes, config.min_votes)
            if on_round is not None and len(edges) > len(known):
                transitions += on_round(edges)
            line: dict[str, float] = {"step": done, "transitions": transitions, "edges": len(edges)}
            history.append(line)
            if context.report is not None:
                context.report(line)
            if path is not None and is_first():
                model = {f"model.{key}": x for key, x in reasoner.state_dict().items()} if one_by_one else {}
                meta = {"transitions": transitions, "done": done, "history": history}
                meta["votes"] = [[*edge, n] for edge, n in votes.items()]
                save_state(path, {"coverage": coverage, **model}, meta)
            bar.update(done, f"{len(edges)} hard steps")
            if any_of(watch.stop_requested)[0]:  # all ranks together, or the others would wait for this one
                raise KeyboardInterrupt
    edges = _accepted(votes, config.min_votes)
    return SearchResult(
        edges, torch.tensor([votes[x, y] for x, y in edges.tolist()], dtype=torch.int64), transitions, history
    )


def _checked(
    tensors: dict[str, Tensor], meta: dict[str, Any], reasoner: Reasoner
) -> tuple[Tensor, dict[tuple[int, int], int]]:
    """(coverage (N,), votes) of a saved state; `ValueError` unless they are of a search on `reasoner`."""
    n, coverage, votes = reasoner.n_states, tensors["coverage"], {(x, y): v for x, y, v in meta["votes"]}
    if coverage.shape != (n,) or coverage.dtype != torch.int64:
        raise ValueError(f"it covers {len(coverage)} states, and there are {n}")
    numbers = [number for edge in votes for number in edge]
    if not all(isinstance(x, int) and 0 <= x < n for x in numbers):
        raise ValueError(f"it votes for a step outside the states 0 .. {n - 1}")
    if not all(isinstance(x, int) and 0 <= x < 2**63 for x in (*votes.values(), meta["transitions"], meta["done"])):
        raise ValueError("it holds a count that is none")
    if not all(bool(x.isfinite().all()) for x in tensors.values()):
        raise ValueError("it holds a weight that is not finite")
    return coverage.to(reasoner.device), votes


def _accepted(votes: dict[tuple[int, int], int], min_votes: int) -> Tensor:
    return torch.tensor(sorted(edge for edge, n in votes.items() if n >= min_votes), dtype=torch.int64).reshape(-1, 2)


def avoid(edges: Tensor, reasoner: Reasoner) -> Policy:
    """A policy that never takes the given steps: walks that stay among the easy ones."""
    known = torch.zeros(reasoner.n_states, reasoner.n_states, dtype=torch.bool, device=reasoner.device)
    known[edges[:, 0], edges[:, 1]] = True

    def policy(states: Tensor, log_p: Tensor, listed: Tensor | None) -> Tensor:
        return log_p.masked_fill(entries_at(known, states, listed), -torch.inf).log_softmax(-1)

    return policy
