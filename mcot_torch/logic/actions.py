"""Logical actions: a group element on every hard step, and the value that a path computes with them (Section 5).

Along a path r_0 = ψ(X_0) and r_t = α(X_{t-1}, X_t)·r_{t-1}: later steps act from the left, which matters in a non-abelian
group. α is the identity on every easy step. The task of Section 5 asks for a valid path and its final value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mcot_torch.errors import InputError
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.logic.groups import Group

__all__ = ["LogicalActions"]


@dataclass(frozen=True, eq=False)
class LogicalActions:
    """α and ψ on a graph of N states and E edges; made by `random` or `from_map`.

    Paths are int64 tensors (..., T) of states, filled up at the end with -1. Everything runs on the device of the paths.

    Attributes:
        graph: whose edges they are.
        group: G.
        alpha: (E,) int64, the element of each edge in the graph's order, the identity on easy steps.
        psi: (N,) int64, r_0 of a path that starts in each state.
    """

    graph: MetastableGraph
    group: Group
    alpha: Tensor
    psi: Tensor

    @classmethod
    def from_map(
        cls, graph: MetastableGraph, group: Group, elements: Mapping[tuple[int, int], int], psi: Tensor | None = None
    ) -> LogicalActions:
        """The given element on each named hard step (source, head), the identity on all others.

        Args:
            graph: of N states.
            group: G.
            elements: (source, head) -> element number.
            psi: (N,) int64; None for the identity everywhere.

        Raises:
            InputError: an edge that is no hard step of the graph, or an element outside the group.
        """
        index = {(int(x), int(y)): i for i, (x, y) in enumerate(graph.sparse_edges)}
        hard = np.full(len(index), group.identity, dtype=np.int64)
        for (x, y), element in elements.items():
            if (x, y) not in index:
                raise InputError(
                    f"the action of {x} -> {y} is given, and that is no hard step of the graph; easy steps act as the identity"
                )
            hard[index[x, y]] = element
        return cls._build(graph, group, torch.from_numpy(hard), psi)

    @classmethod
    def random(
        cls, graph: MetastableGraph, group: Group, generator: torch.Generator, psi: Tensor | None = None
    ) -> LogicalActions:
        """An element drawn uniformly from G, the identity included, on each hard step, in the order of `sparse_edges`."""
        drawn = torch.randint(group.order, (len(graph.sparse_edges),), generator=generator)
        return cls._build(graph, group, drawn, psi)

    @classmethod
    def _build(cls, graph: MetastableGraph, group: Group, hard: Tensor, psi: Tensor | None) -> LogicalActions:
        start = torch.full((graph.n_states,), group.identity) if psi is None else psi
        if start.shape != (graph.n_states,):
            raise InputError(
                f"psi has shape {tuple(start.shape)}; it gives an element for each of {graph.n_states} states"
            )
        for what, elements in (("an action", hard), ("psi", start)):
            if len(elements) and not 0 <= int(elements.min()) <= int(elements.max()) < group.order:
                wrong = elements[(elements < 0) | (elements >= group.order)][0]
                raise InputError(f"{what} is {int(wrong)}; the elements of the group are 0 .. {group.order - 1}")
        alpha = torch.full((graph.n_edges,), group.identity)
        alpha[torch.from_numpy(graph.hard)] = hard
        return cls(graph, group, alpha, start)

    # ---- paths --------------------------------------------------------------------------------------------------

    def valid(self, paths: Tensor) -> Tensor:
        """(...,) bool: at least one state, every step an edge of the graph, -1 only behind the end."""
        good = paths[..., 0] >= 0
        for t in range(1, paths.shape[-1]):
            good = good & (self._edge(paths[..., t - 1], paths[..., t])[1] | (paths[..., t] == -1))
        return good & (paths < self.graph.n_states).all(dim=-1)

    def values(self, paths: Tensor) -> Tensor:
        """(...,) int64, the final value r_T of each path.

        A step that is no edge counts as the identity, so that a path that is not `valid` has a value as well.
        """
        for r in self._run(paths):
            last = r
        return last

    def running_values(self, paths: Tensor) -> Tensor:
        """(..., T) int64, r_0 .. r_{T-1}; behind the end of a path its final value."""
        return torch.stack(list(self._run(paths)), dim=-1)

    def between(self, labels: Tensor) -> Tensor:
        """(K, K) int64 actions of the hops between the clusters of (N,) `labels`, -1 where no hard step leads from one to
        the other: what the meta-chain computes with.

        Raises:
            InputError: two hard steps from one cluster to another act differently, so that the hop has no value.
        """
        n_clusters = int(labels.max()) + 1
        hops = torch.full((n_clusters, n_clusters), -1)
        steps = zip(
            self.graph.sparse_edges.tolist(), self.alpha[torch.from_numpy(self.graph.hard)].tolist(), strict=True
        )
        for (x, y), element in steps:
            here, there = int(labels[x]), int(labels[y])
            if here != there and hops[here, there] not in (-1, element):
                raise InputError(
                    f"hard steps from cluster {here} to cluster {there} act as {self.group.names[int(hops[here, there])]} and as "
                    f"{self.group.names[element]}, so that a hop has no value; use at most one hard step for a pair (A2)"
                )
            if here != there:
                hops[here, there] = element
        return hops

    def _run(self, paths: Tensor) -> Iterator[Tensor]:
        """r_0, r_1, ... one after the other, so that a large batch needs no memory for all of them."""
        table, alpha = self.group.table.to(paths.device), self.alpha.to(paths.device)
        first = paths[..., 0]
        r = self.psi.to(paths.device)[first.clamp(0, self.graph.n_states - 1)].where(first >= 0, self.group.identity)
        yield r
        for t in range(1, paths.shape[-1]):
            edge, is_edge = self._edge(paths[..., t - 1], paths[..., t])
            r = table[alpha[edge].where(is_edge, self.group.identity), r]
            yield r

    def _edge(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The edge x -> y in the graph's order, some edge where there is none, and whether there is one."""
        n = self.graph.n_states
        keys, asked = self._keys.to(x.device), x * n + y
        edge = torch.searchsorted(keys, asked).clamp_max(len(keys) - 1)
        inside = (x >= 0) & (y >= 0) & (y < n)  # x * n + y is then no other edge's key
        return edge, inside & (keys[edge] == asked)

    @cached_property
    def _keys(self) -> Tensor:
        """(E,) source·N + head of every edge, ascending."""
        return torch.from_numpy(self.graph.sources * self.graph.n_states + self.graph.indices)
