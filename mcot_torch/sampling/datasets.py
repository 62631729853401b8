"""The dataset module: what the stages train on, sampled from a chain.

Every dataset is addressed by step: item i is a function of (seed, i) alone. A run that is killed goes on at item i + 1
with the very batches that it would have seen, and needs no saved loader. All of them yield the same pair, so that one
objective serves both feeders (specification, "Counts are sufficient", docs/specification.md#counts-are-sufficient):

- `states` (B, T) int64, contexts: every prefix of a row is one;
- `after` (B, T, D) int64, next states, and `counts` (B, T, D), how often each of them was seen after its context.

With window 1 a batch is the N states and the transition counts n(x, y) of all sampled walks: one forward pass over N
states gives the identical gradient of one over every sampled step. With a longer one each context has the one next state
that was sampled. Where several ranks train, each samples its share of the walks; counts are summed and their rows dealt
out, paths stay where they were sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mcot_torch.sampling.walks import StepTable, pair_counts, walk_counts, walk_paths
from mcot_torch.system.ranks import own_rows, rank_generator, share, total

__all__ = ["CountData", "PairData", "PathData", "count_batch", "path_batch", "sample_counts", "uniform_starts"]

Batch = tuple[Tensor, Tensor, Tensor]


def count_batch(counts: Tensor, after: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Batch:
    """Transition counts (N, D) of the successors `after` (N, D), of all N by default, as a batch of window 1.

    states (N, 1), after (N, 1, D), counts (N, 1, D); of several ranks each has its rows.
    """
    states = torch.arange(len(counts), device=counts.device)
    mine = own_rows(len(counts))
    after = states.expand(len(counts), -1) if after is None else after
    return states[mine, None], after[mine, None], counts[mine, None].to(dtype)


def path_batch(paths: Tensor) -> Batch:
    """(B, T + 1) paths as a batch: states (B, T), after and counts (B, T, 1), each next state once."""
    after = paths[:, 1:, None]
    return paths[:, :-1], after, torch.ones(after.shape, device=paths.device)


def uniform_starts(n_walkers: int, n_states: int, seed_generator: torch.Generator) -> Tensor:
    """(N,) float64: how many of `n_walkers` independent uniform starts fall on each state."""
    device = seed_generator.device
    starts = torch.randint(n_states, (n_walkers,), generator=seed_generator, device=device)
    return torch.bincount(starts, minlength=n_states).double()


def sample_counts(table: StepTable, n_walkers: int, path_length: int, draw: torch.Generator) -> Tensor:
    """Transition counts of walks from independent uniform starts; ranks share the walks, and each gets the sum.

    Args:
        table: the chain, N states, lists of D successors.
        n_walkers: walks of all ranks together.
        path_length: steps of each walk.
        draw: generator on the table's device.

    Returns:
        (N, D) float64, how often each successor of each state was taken.
    """
    starts = uniform_starts(share(n_walkers), table.n_states, draw)
    return total(walk_counts(table, starts, path_length, draw))


class CountData(Dataset[Batch]):
    """Transition counts of walks sampled once; every step sees all of them."""

    def __init__(
        self, table: StepTable, transitions: int, path_length: int, steps: int, seed: int, dtype: torch.dtype
    ) -> None:
        draw = rank_generator(seed, "pretrain", "counts", device=table.device)
        self.after = table.successors
        n_walkers = max(1, round(transitions / path_length))
        self.transitions = n_walkers * path_length
        self.counts = sample_counts(table, n_walkers, path_length, draw)  # (N, D)
        self.batch = count_batch(self.counts, self.after, dtype)
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        return self.batch


class PairData(Dataset[Batch]):
    """Fresh i.i.d. pairs X_0 ~ Unif(S), X_1 ~ p(·|X_0) at every step (Theorem 3.1's setting), as counts."""

    def __init__(self, table: StepTable, pairs: int, steps: int, seed: int, dtype: torch.dtype) -> None:
        self.table, self.pairs, self.steps, self.seed, self.dtype = table, pairs, steps, seed, dtype
        self.transitions = pairs * steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        draw = rank_generator(self.seed, "pretrain", "pairs", step, device=self.table.device)
        return count_batch(total(pair_counts(self.table, share(self.pairs), draw)), self.table.successors, self.dtype)


class PathData(Dataset[Batch]):
    """Fresh paths of `length` steps from uniform starts at every step, for a reasoner that reads its history."""

    def __init__(self, table: StepTable, batch_size: int, length: int, steps: int, seed: int) -> None:
        self.table, self.batch_size, self.length, self.steps, self.seed = table, batch_size, length, steps, seed

    def __len__(self) -> int:
        return self.steps

    def paths(self, step: int) -> Tensor:
        """(batch_size, length + 1) int64, the paths of one step; of several ranks each its share of them."""
        draw = rank_generator(self.seed, "pretrain", "paths", step, device=self.table.device)
        starts = torch.randint(self.table.n_states, (share(self.batch_size),), generator=draw, device=self.table.device)
        return walk_paths(self.table, starts, self.length, draw)

    def __getitem__(self, step: int) -> Batch:
        return path_batch(self.paths(step))
