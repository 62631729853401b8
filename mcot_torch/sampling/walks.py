"""Walks of a finite chain: sampled paths, transition counts without paths, i.i.d. pairs, first hitting times.

A `StepTable` holds a kernel in the two forms that samplers want: successor lists with their probabilities, and Walker's
alias table (one uniform, one comparison a step). Uniforms are float64: with float32 a step of probability
1e-8 fires several times too often (docs/specification.md#random-numbers). On a GPU torch draws the
binomials of `_multinomial` from 24-bit uniforms: what has less than 6e-8 expected events in one draw never happens
there.

Three samplers, all exact in law:

- `TableWalker` moves every walker one alias draw at a time and yields their states. On a CPU it steps in numba where that
  is installed and in NumPy where not, with equal numbers; on a GPU it steps in torch.
- `walk_counts` keeps no paths. Where walkers are many it keeps no walkers either: they are exchangeable, so n of them in
  state x leave it as one Multinomial(n, P(·|x)) draw, and a step of a million walkers costs one draw an edge.
- `pair_counts` draws Theorem 3.1's i.i.d. pairs as a multinomial a row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse as sp
from torch import Tensor

from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.system.blocks import draws_at_once

__all__ = ["StepTable", "TableWalker", "Walker", "first_hitting_times", "pair_counts", "walk_counts", "walk_paths"]

_BLOCK = 256  # steps between two looks for walkers that arrived
_FEW = 64  # walkers a state below which walking them is cheaper than one multinomial a state


@dataclass(frozen=True, eq=False)
class StepTable:
    """A kernel as padded successor lists; N states, at most D successors a state.

    Attributes:
        successors: (N, D) int64; padding repeats the likeliest one.
        probabilities: (N, D) float64; 0 on padding, rows sum to 1.
    """

    successors: Tensor
    probabilities: Tensor

    @classmethod
    def from_graph(cls, graph: MetastableGraph, device: torch.device | str = "cpu") -> StepTable:
        """The table of p^ε."""
        return cls.from_scipy(graph.to_scipy(), device)

    @classmethod
    def from_kernel(cls, kernel: Tensor) -> StepTable:
        """The table of a dense (N, N) kernel, on its device; entries equal to 0 are dropped."""
        return cls.from_scipy(sp.csr_array(kernel.detach().double().cpu().numpy()), kernel.device)

    @classmethod
    def from_scipy(cls, kernel: sp.csr_array, device: torch.device | str = "cpu") -> StepTable:
        """The table of an (N, N) CSR kernel."""
        indptr, indices = kernel.indptr, kernel.indices.astype(np.int64)
        degree = np.diff(indptr)
        if (degree == 0).any():
            raise ValueError(f"state {int(np.flatnonzero(degree == 0)[0])} has no successor")
        n, width = len(degree), int(degree.max())
        columns = np.arange(len(indices)) - np.repeat(indptr[:-1], degree)
        rows = np.repeat(np.arange(n), degree)
        successors = np.zeros((n, width), dtype=np.int64)
        probabilities = np.zeros((n, width))
        successors[rows, columns] = indices
        probabilities[rows, columns] = kernel.data
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return cls.from_lists(torch.from_numpy(successors).to(device), torch.from_numpy(probabilities).to(device))

    @classmethod
    def from_lists(cls, successors: Tensor, probabilities: Tensor) -> StepTable:
        """The table of (N, D) lists of successors and their float64 probabilities; those of probability 0 are padding."""
        if not bool(probabilities.isfinite().all()):
            state = int((~probabilities.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"state {state} has no successor")
        likeliest = successors.gather(1, probabilities.argmax(1, keepdim=True))
        return cls(torch.where(probabilities > 0, successors, likeliest), probabilities)

    def to_scipy(self) -> sp.csr_array:
        """The kernel as (N, N) CSR, columns ascending."""
        rows, columns = (self.probabilities > 0).cpu().nonzero(as_tuple=True)
        values, after = (x.cpu()[rows, columns] for x in (self.probabilities, self.successors))
        shape = (self.n_states, self.n_states)
        return sp.coo_array((values.numpy(), (rows.numpy(), after.numpy())), shape=shape).tocsr()

    @property
    def n_states(self) -> int:
        """N."""
        return self.successors.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the table lies and its walks run."""
        return self.successors.device

    @cached_property
    def alias(self) -> tuple[Tensor, Tensor]:
        """Walker's alias table: accept (N·D,) float64 and outcome (N·D·2,) int64 as [alias, own] pairs."""
        accept, places = self._alias
        return accept.ravel(), self.successors.gather(1, places).ravel()

    @cached_property
    def _alias(self) -> tuple[Tensor, Tensor]:
        """accept (N, D), and (N, 2·D) where the outcomes stand in the list of successors."""
        n, width = self.successors.shape
        accept = self.probabilities.cpu().numpy() * width
        other = np.tile(np.arange(width), (n, 1))
        compiled = _compiled()
        (_alias if compiled is None else compiled.alias)(accept, other)
        places = np.stack([other, np.tile(np.arange(width), (n, 1))], axis=-1).reshape(n, -1)
        return torch.from_numpy(accept).to(self.device), torch.from_numpy(places).to(self.device)

    def to_edges(self, counts: Tensor) -> Tensor:
        """(N, N) matrix of the (N, D) counts of each successor."""
        matrix = torch.zeros(self.n_states, self.n_states, dtype=counts.dtype, device=counts.device)
        return matrix.scatter_add_(1, self.successors, counts)

    def taken(self, hits: Tensor) -> Tensor:
        """(N, D) float64 counts of each successor, of the (N·D·2,) counts of the entries of `alias`'s outcome."""
        places = self._alias[1]
        return torch.zeros_like(self.probabilities).scatter_add_(1, places, hits.double().view_as(places))


class Walker(Protocol):
    """Anything that moves walkers: a table, or a reasoner that reads its own history."""

    @property
    def states(self) -> Tensor:
        """(W,) int64, where the walkers are."""

    def advance(self, n_steps: int) -> Tensor:
        """Move all walkers; returns (W, n_steps) the states entered."""

    def keep(self, alive: Tensor) -> None:
        """Go on with the walkers marked in (W,) bool `alive` only."""

    def replace(self, states: Tensor) -> None:
        """Overwrite where the walkers are, (W,): the last step went elsewhere than it was sampled."""


class TableWalker:
    """W walkers of a `StepTable`, each an independent chain."""

    def __init__(self, table: StepTable, start: Tensor, generator: torch.Generator) -> None:
        self._width = table.successors.shape[1]
        self._accept, self._outcome = table.alias
        self._states = start.to(table.device, torch.int64)
        self._generator = generator
        if table.device.type == "cpu":  # SFC64 is more than twice as fast as torch's Mersenne twister
            seed = int(torch.randint(2**63 - 1, (), generator=generator))
            self._stream = np.random.Generator(np.random.SFC64(seed))  # NumPy hashes the seed

    @property
    def states(self) -> Tensor:
        """(W,) int64."""
        return self._states

    def advance(self, n_steps: int) -> Tensor:
        """Move all walkers `n_steps` steps; returns (W, n_steps) int64."""
        path = torch.empty(n_steps, len(self._states), dtype=torch.int64, device=self._states.device)
        state, done = self._states.clone(), 0
        compiled = _compiled() if path.device.type == "cpu" else None
        for uniform in self._uniforms(n_steps):
            block = path[done : done + len(uniform)]
            if compiled is not None:
                compiled.walk(*self._arrays(), uniform.numpy(), state.numpy(), block.numpy())
            else:
                self._take(uniform, state, block)
                block.copy_(self._outcome[block])
            done += len(uniform)
        self._states = state
        return path.T

    def tally(self, n_steps: int) -> Tensor:
        """Move all walkers; returns (N·D·2,) int64, how often each entry of the alias table's `outcome` was taken."""
        hits = torch.zeros(len(self._outcome), dtype=torch.int64, device=self._states.device)
        state = self._states.clone()
        compiled = _compiled() if hits.device.type == "cpu" else None
        for uniform in self._uniforms(n_steps):
            if compiled is not None:
                compiled.tally(*self._arrays(), uniform.numpy(), state.numpy(), hits.numpy())
            else:
                taken = torch.empty(uniform.shape, dtype=torch.int64, device=uniform.device)
                self._take(uniform, state, taken)
                hits += torch.bincount(taken.ravel(), minlength=len(hits))
        self._states = state
        return hits

    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
        return self._accept.numpy(), self._outcome.numpy(), self._width

    def _uniforms(self, n_steps: int) -> Iterator[Tensor]:
        """(rows, W) uniforms, in blocks that stay in the cache; every block overwrites the last one."""
        device, n_walkers = self._states.device, len(self._states)
        rows = draws_at_once(n_walkers, device)
        buffer = torch.empty(min(rows, n_steps), n_walkers, dtype=torch.float64, device=device)
        for first in range(0, n_steps, rows):
            block = buffer[: min(rows, n_steps - first)]
            if device.type == "cpu":
                self._stream.random(out=block.numpy())
            else:
                torch.rand(block.shape, dtype=torch.float64, generator=self._generator, device=device, out=block)
            yield block

    def _take(self, uniform: Tensor, state: Tensor, taken: Tensor) -> None:
        """Move the walkers `state` (W,) by `uniform` (T, W), which is spoilt; `taken` (T, W) are indices into `outcome`."""
        uniform *= self._width
        column = uniform.long()
        uniform -= column
        if uniform.device.type == "cpu":
            _take_numpy(*self._arrays(), uniform.numpy(), column.numpy(), state.numpy(), taken.numpy())
        else:
            _take_torch(self._accept, self._outcome, self._width, uniform, column, state, taken)

    def keep(self, alive: Tensor) -> None:
        """Go on with the walkers marked in `alive` only."""
        self._states = self._states[alive]

    def replace(self, states: Tensor) -> None:
        """Overwrite where the walkers are."""
        self._states = states.clone()


@cache
def _compiled() -> ModuleType | None:
    """The loops as numba compiles them, or None where it is not installed."""
    if find_spec("numba") is None:
        return None
    try:
        return import_module("mcot_torch.sampling.compiled")
    except ImportError as error:  # a numba too old for this NumPy says so here
        warnings.warn(f"numba is installed but cannot be used ({error}); walks step in NumPy", stacklevel=2)
        return None


def _alias(accept: NDArray, other: NDArray) -> None:
    """Walker's tables in place: `accept` (N, D) from probabilities times D, `other` (N, D) who takes a rejected draw."""
    for row, partner in zip(accept, other, strict=True):
        small = [j for j, p in enumerate(row) if p < 1.0]
        large = [j for j, p in enumerate(row) if p >= 1.0]
        while small and large:
            j, i = small.pop(), large[-1]
            partner[j] = i
            row[i] -= 1.0 - row[j]
            if row[i] < 1.0:
                small.append(large.pop())
        row[small + large] = 1.0  # what rounding left over


def _take_numpy(
    accept: NDArray, outcome: NDArray, width: int, uniform: NDArray, column: NDArray, state: NDArray, taken: NDArray
) -> None:
    for t in range(len(taken)):
        cell = np.multiply(state, width, out=state)
        cell += column[t]
        own = uniform[t] < accept.take(cell)
        np.multiply(cell, 2, out=taken[t])
        taken[t] += own
        outcome.take(taken[t], out=state)


def _take_torch(
    accept: Tensor, outcome: Tensor, width: int, uniform: Tensor, column: Tensor, state: Tensor, taken: Tensor
) -> None:
    for t in range(len(taken)):
        cell = state.mul_(width).add_(column[t])
        torch.add(uniform[t] < accept[cell], cell, alpha=2, out=taken[t])
        state.copy_(outcome[taken[t]])


def walk_paths(table: StepTable, start: Tensor, n_steps: int, generator: torch.Generator) -> Tensor:
    """(W, n_steps + 1) int64 paths of the chain from the (W,) `start` states, starts included."""
    walker = TableWalker(table, start, generator)
    return torch.cat([walker.states[:, None], walker.advance(n_steps)], dim=1)


def _multinomial(counts: Tensor, probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """(N, D) float64 draws of Multinomial(counts[x], probabilities[x]): one conditional binomial a column."""
    remaining = counts.clone()
    tail = probabilities.flip(1).cumsum(1).flip(1)  # mass of this column and all after it, no subtraction
    drawn = torch.zeros_like(probabilities)
    for j in range(probabilities.shape[1]):
        share = torch.where(tail[:, j] > 0, probabilities[:, j] / tail[:, j].clamp_min(1e-300), 0.0).clamp_max(1.0)
        drawn[:, j] = torch.binomial(remaining, share, generator=generator)
        remaining = remaining - drawn[:, j]
    return drawn


def walk_counts(table: StepTable, start: Tensor, n_steps: int, generator: torch.Generator) -> Tensor:
    """Transition counts of independent walks, without the walks.

    Args:
        table: the chain.
        start: (N,) number of walkers that start in each state.
        n_steps: steps of each walker.
        generator: on the table's device.

    Returns:
        (N, D) float64 n(x, y) of each of the table's successors, 0 on padding, summing to `start.sum() * n_steps`; the
        joint law is that of the counts of `start.sum()` independent walks. `table.to_edges` makes a matrix of them.
    """
    occupied = start.to(table.device, torch.float64)
    if float(occupied.sum()) < _FEW * table.n_states:
        states = torch.arange(table.n_states, device=table.device)
        walker = TableWalker(table, states.repeat_interleave(occupied.long()), generator)
        return _without_padding(table, table.taken(walker.tally(n_steps)))
    total = torch.zeros_like(table.probabilities)
    for _ in range(n_steps):
        drawn = _multinomial(occupied, table.probabilities, generator)
        total += drawn
        occupied = torch.zeros_like(occupied).scatter_add_(0, table.successors.ravel(), drawn.ravel())
    return _without_padding(table, total)


def _without_padding(table: StepTable, counts: Tensor) -> Tensor:
    """Counts (N, D) with those of padding, which rounding alone can cause, on the successor that it repeats."""
    padding = table.probabilities == 0
    likeliest = table.probabilities.argmax(1, keepdim=True)
    return counts.scatter_add(1, likeliest, torch.where(padding, counts, 0.0).sum(1, keepdim=True)).masked_fill_(
        padding, 0.0
    )


def pair_counts(table: StepTable, n_pairs: int, generator: torch.Generator) -> Tensor:
    """(N, D) float64 counts of `n_pairs` i.i.d. pairs X_0 ~ Unif(S), X_1 ~ p(·|X_0) (Theorem 3.1's setting), by successor."""
    uniform = torch.full((1, table.n_states), 1.0 / table.n_states, dtype=torch.float64, device=table.device)
    starts = _multinomial(
        torch.full((1,), float(n_pairs), dtype=torch.float64, device=table.device), uniform, generator
    )
    return _multinomial(starts[0], table.probabilities, generator)


def first_hitting_times(walker: Walker, target: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """First t ≥ 0 at which each walker stands in the target, by walking.

    Args:
        walker: W walkers at their starts; consumed.
        target: (N,) bool.
        horizon: steps after which a walker is given up.

    Returns:
        times (W,) int64, equal to `horizon` where censored, and censored (W,) bool.
    """
    device = target.device
    times = torch.zeros(len(walker.states), dtype=torch.int64, device=device)
    index = torch.arange(len(times), device=device)
    alive = ~target[walker.states]
    walker.keep(alive)
    index, done = index[alive], 0
    while done < horizon and len(index):
        block = min(_BLOCK, horizon - done)
        hits = target[walker.advance(block)]  # (W, block)
        hit = hits.any(dim=1)
        times[index[hit]] = done + 1 + hits[hit].to(torch.uint8).argmax(dim=1)
        walker.keep(~hit)
        index, done = index[~hit], done + block
    times[index] = horizon
    censored = torch.zeros(len(times), dtype=torch.bool, device=device)
    censored[index] = True
    return times, censored
