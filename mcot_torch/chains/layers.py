"""Layers of an elimination without subtractions: what takes states out of a sparse chain, and the way back.

A layer leaves the chain watched on the states that it keeps; its way back fills in the values of the others.

- `ClusterLayer` eliminates the inside of every cluster, in batches of clusters of like size, as stacks of dense
  blocks. What is left are the portals, the states at the ends of steps between clusters (specification,
  "Elimination by cluster", docs/specification.md#elimination-by-cluster).
- `Round` eliminates one independent set of states of few neighbours: no two of them are joined, so that a pivot a state
  is all it takes.

Source: Grassmann, Taksar and Heyman, Operations Research 33 (1985). In which order, and what ends it: sparse.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp

from mcot_torch.chains.elimination import Array, UnreachableError, gth_solve, off_diagonal, row_sums

__all__ = ["Chain", "ClusterLayer", "Layer", "Round", "few_neighbours"]

Indices = NDArray[np.int64]

_BATCH = 2**18  # entries of a stack of blocks: 2 MiB, so that it stays in a core's cache
_LARGEST_BLOCK = 2_000  # states of a cluster that is eliminated as a dense block


class Chain(NamedTuple):
    """A system (D - A) X = R, or what is left of one.

    rates A (n, n) CSR, at least 0, diagonal absent; exits (n,), at least 0; right (n, r), at least 0.
    """

    rates: sp.csr_array
    exits: Array
    right: Array


# ---- clusters at once -------------------------------------------------------------------------------------------


@dataclass
class ClusterBatch:
    """c clusters of like size; m, p: most inner states, portals of one.

    Attributes:
        inner: (c, m) inner states of each cluster, n where there is none.
        ports: (c, p) its portals, n where there is none.
        through: (c, m, p) the portal reached first from an inner state.
        own: (c, m, r) what an inner state collects until then.
        visits: (c, m, m) visits to inner states until then; None unless asked for.
        into: (c, p, m) visits to inner states after a portal; None unless asked for.
    """

    inner: Indices
    ports: Indices
    through: Array
    own: Array
    visits: Array | None = None
    into: Array | None = None


@dataclass
class ClusterLayer:
    """The insides of all clusters; `kept` (k,) the states that are left, ascending, of `n_states`."""

    n_states: int
    kept: Indices
    batches: list[ClusterBatch]

    @classmethod
    def of(cls, chain: Chain, clusters: NDArray[np.integer], green: bool = False) -> tuple[ClusterLayer, Chain]:
        """Eliminate by labels (n,); `green` keeps the visits, for laws and Green's functions.

        Raises:
            UnreachableError: where some inner state never leaves its cluster's inside.
        """
        n, r = chain.right.shape
        exits, right = np.append(chain.exits, 0.0), np.concatenate([chain.right, np.zeros((1, r))])
        rows, columns, values, batches = [], [], [], []
        cut = _Cut(chain.rates, clusters)
        for inner, ports, rates in cut.batches():
            m, p = inner.shape[1], ports.shape[1]
            inside, outward, inward = rates[:, :m, :m], rates[:, :m, m:], rates[:, m:, :m]
            out = exits[inner]
            leave = out + outward.sum(-1) + (inner == n)  # padding leaves at once
            collect = np.concatenate([outward, out[..., None], right[inner]], axis=-1)  # (c, m, p + 1 + r)
            visits = into = None
            if green:
                visits = gth_solve(inside, leave, np.broadcast_to(np.eye(m), inside.shape))
                W, into = visits @ collect, inward @ visits
            else:
                W = gth_solve(inside, leave, collect)
            gain = inward @ W
            exits[ports] += gain[..., p]
            right[ports] += gain[..., p + 1 :]
            batches.append(ClusterBatch(inner, ports, W[..., :p], W[..., p + 1 :], visits, into))
            rates = rates[:, m:, m:] + gain[..., :p]
            keep = (rates > 0) & (ports[:, :, None] != ports[:, None, :])
            cluster, row, column = np.nonzero(keep)
            rows.append(ports[cluster, row])
            columns.append(ports[cluster, column])
            values.append(rates[keep])
        kept, edges = np.flatnonzero(cut.left), cut.edges
        rows, columns, values = ([old, *new] for old, new in zip(edges, (rows, columns, values), strict=True))
        place = np.cumsum(cut.left) - 1
        where = place[np.concatenate(rows)], place[np.concatenate(columns)]
        rest = sp.csr_array((np.concatenate(values), where), shape=(len(kept), len(kept)))
        return cls(n, kept, batches), Chain(rest, exits[kept], right[kept])

    def back(self, X: Array) -> Array:
        """(k, r) solution on the states that are left -> (n, r)."""
        full = self._spread(X)
        for batch in self.batches:
            full[batch.inner] = batch.own + batch.through @ full[batch.ports]
        return full[:-1]

    def law(self, pi: Array) -> Array:
        """(k,) invariant weights of the states that are left -> (n,); needs `green`."""
        full = self._spread(pi)
        for batch in self.batches:
            assert batch.into is not None
            full[batch.inner] = (full[batch.ports][:, None] @ batch.into)[:, 0]
        return full[:-1]

    def green_diagonal(self, green: Array) -> Array:
        """(k, k) Green's function on the states that are left -> (n,) its diagonal on all; needs `green`."""
        full = self._spread(np.diagonal(green))
        place = np.full(self.n_states + 1, len(self.kept))
        place[self.kept] = np.arange(len(self.kept))
        for batch in self.batches:
            assert batch.visits is not None
            assert batch.into is not None
            at = np.minimum(place[batch.ports], len(self.kept) - 1)  # padding is multiplied by 0
            own = green[at[:, :, None], at[:, None, :]]  # (c, p, p)
            loops = ((batch.through @ own) * np.swapaxes(batch.into, 1, 2)).sum(-1)
            full[batch.inner] = np.diagonal(batch.visits, axis1=1, axis2=2) + loops
        return full[:-1]

    def _spread(self, values: Array) -> Array:
        full = np.zeros((self.n_states + 1, *values.shape[1:]))
        full[self.kept] = values
        return full


class _Cut:
    """Where the insides of the clusters are.

    Attributes:
        left: (n,) bool, the states that stay.
        edges: (sources, targets, rates) of the edges that stay as they are.
    """

    def __init__(self, rates: sp.csr_array, clusters: NDArray[np.integer]) -> None:
        names, label = np.unique(clusters, return_inverse=True)
        source = np.repeat(np.arange(len(label)), np.diff(rates.indptr))
        target, value = rates.indices.astype(np.int64), rates.data
        crossing = label[source] != label[target]
        portal = np.zeros(len(label), dtype=bool)
        portal[source[crossing]] = portal[target[crossing]] = True
        ports = np.bincount(label[portal], minlength=len(names))
        inner = np.bincount(label, minlength=len(names)) - ports
        # A cluster too large for a dense block, or with hardly an inside, is left to the rounds.
        fits = (inner > 0) & (inner + ports <= _LARGEST_BLOCK) & (ports <= 4 * inner)
        self.left = portal | ~fits[label]
        here = fits[label[source]] & ~crossing
        self.edges = source[~here], target[~here], value[~here]

        by_size = np.lexsort((ports, inner))
        by_size = by_size[fits[by_size]]
        self._inner, self._ports = inner[by_size], ports[by_size]
        turn = np.full(len(names), len(names))
        turn[by_size] = np.arange(len(by_size))
        turn = turn[label]
        self._states = np.lexsort((portal, turn))[: (self._inner + self._ports).sum()]
        self._first = np.concatenate([[0], np.cumsum(self._inner + self._ports)])
        self._rank = np.zeros(len(label), dtype=np.int64)  # in the cluster, inner states first
        self._rank[self._states] = np.arange(len(self._states)) - self._first[turn[self._states]]
        source, target, value = source[here], target[here], value[here]
        order = np.argsort(turn[source], kind="stable")
        self._edges = source[order], target[order], value[order]
        self._turn = turn
        self._first_edge = np.searchsorted(turn[self._edges[0]], np.arange(len(by_size) + 1))

    def batches(self) -> Iterator[tuple[Indices, Indices, Array]]:
        """(inner (c, m), ports (c, p), rates (c, m + p, m + p)) of clusters of like size, padded with state n."""
        n, first = len(self._turn), 0
        while first < len(self._inner):
            last, m, p = first, 0, 0
            while last < len(self._inner):
                wide, deep = max(m, int(self._inner[last])), max(p, int(self._ports[last]))
                if last > first and (last + 1 - first) * (wide + deep) ** 2 > _BATCH:
                    break
                last, m, p = last + 1, wide, deep
            states = self._states[self._first[first] : self._first[last]]
            rank, turn = self._rank[states], self._turn[states] - first
            inner_count = self._inner[turn + first]
            table = np.full((last - first, m + p), n)
            slot = np.where(rank < inner_count, rank, rank - inner_count + m)
            table[turn, slot] = states
            self._rank[states] = slot  # now the place in the padded block
            source, target, value = (x[self._first_edge[first] : self._first_edge[last]] for x in self._edges)
            rates = np.zeros((last - first, m + p, m + p))
            rates[self._turn[source] - first, self._rank[source], self._rank[target]] = value
            yield table[:, :m], table[:, m:], rates
            first = last


# ---- independent sets -------------------------------------------------------------------------------------------


@dataclass
class Round:
    """One independent set of states.

    Attributes:
        kept: (k,) the states that are left, ascending, of n.
        gone: (g,) the states that were eliminated.
        through: (g, k) CSR, where they go next.
        own: (g, r) what they collect until then.
        into: (k, g) CSR, visits to them before the next state that is left.
    """

    kept: Indices
    gone: Indices
    through: sp.csr_array
    own: Array
    into: sp.csr_array

    @classmethod
    def of(cls, chain: Chain, gone: NDArray[np.bool_]) -> tuple[Round, Chain]:
        """Eliminate the states of a mask (n,), no two of which are joined."""
        A, outflow = chain.rates, row_sums(chain.rates) + chain.exits
        if not (outflow[gone] > 0).all():
            raise UnreachableError
        out, stay = np.flatnonzero(gone), np.flatnonzero(~gone)
        pivot, through, remaining = outflow[out], A[out][:, stay], A[stay]
        through.data /= np.repeat(pivot, np.diff(through.indptr))
        arriving, among = remaining[:, out], remaining[:, stay]
        own = chain.right[out] / pivot[:, None]
        rest = Chain(
            off_diagonal(among + arriving @ through),
            chain.exits[stay] + arriving @ (chain.exits[out] / pivot),
            chain.right[stay] + arriving @ own,
        )
        arriving.data /= pivot[arriving.indices]
        return cls(stay, out, through, own, arriving), rest

    def back(self, X: Array) -> Array:
        """(k, r) solution on the states that are left -> (n, r)."""
        full = np.empty((len(self.kept) + len(self.gone), X.shape[1]))
        full[self.kept] = X
        full[self.gone] = self.own + self.through @ X
        return full

    def law(self, pi: Array) -> Array:
        """(k,) invariant weights of the states that are left -> (n,)."""
        full = np.empty(len(self.kept) + len(self.gone))
        full[self.kept] = pi
        full[self.gone] = pi @ self.into
        return full


def few_neighbours(A: sp.csr_array, jitter: Array) -> NDArray[np.bool_]:
    """(n,) mask of an independent set: the states that would fill in less than every neighbour does."""
    source = np.repeat(np.arange(A.shape[0]), np.diff(A.indptr))
    fill = np.diff(A.indptr) * np.bincount(A.indices, minlength=A.shape[0]) + jitter
    least = np.full(A.shape[0], np.inf)
    np.minimum.at(least, source, fill[A.indices])
    np.minimum.at(least, A.indices, fill[source])
    return fill < least


Layer: TypeAlias = ClusterLayer | Round
