"""MetastableGraph: a sparse kernel p^ε whose hard steps scale with ε (Section 2 of the paper).

Specification, "Kernel and hard steps" (docs/specification.md#kernel-and-hard-steps).

Data only: no learning, no sampling, no linear algebra. The graph stores p^0 and the weights w of the hard steps
rather than p^ε itself, so that `with_epsilon` is exact at every ε and nothing is ever computed as 1 - p.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse as sp
from scipy.sparse.csgraph import connected_components

from mcot_torch.errors import InputError
from mcot_torch.system.files import read_arrays, whole_file

__all__ = ["MetastableGraph"]

_ROW_SUM_TOLERANCE = 1e-9
_ARRAYS = {
    "indptr": np.int64,
    "indices": np.int64,
    "weights": np.float64,
    "hard": np.bool_,
    "clusters": np.int64,
    "entries": np.int64,
    "epsilon": np.float64,
}
_MOST_BYTES = {  # of a file: 2 million states, 50 million edges
    **dict.fromkeys(("indptr", "clusters", "entries"), 2**24),
    **dict.fromkeys(("indices", "weights", "hard"), 400_001_000),
    "epsilon": 1000,
}
_MOST_BYTES_OF_NAMES = 2**28


@dataclass(frozen=True, eq=False)
class MetastableGraph:
    """A state graph of dense clusters joined by rare hard steps; N states, E edges, K clusters.

    The kernel of row x is p^ε(y|x) = ε·w_xy on its hard (sparse) edges and p^0(z|x)·(1 - ε·W_x) on its dense edges,
    W_x = Σ_y w_xy. Compressed sparse rows: the edges of state x are `indptr[x]:indptr[x + 1]`.

    Attributes:
        indptr: (N + 1,) int64, row pointers.
        indices: (E,) int64, head of each edge, ascending in a row.
        weights: (E,) float64, p^0(y|x) on dense edges, w_xy > 0 on hard edges.
        hard: (E,) bool, True on the sparse edges E_s.
        clusters: (N,) int64, cluster of each state, 0 .. K - 1.
        epsilon: ε, probability a step of a hard edge of weight 1.
        entries: (K,) int64, the one state at which hard steps enter each cluster (A5), -1 where there is none.
        names: optional name of each state, unique.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    weights: NDArray[np.float64]
    hard: NDArray[np.bool_]
    clusters: NDArray[np.int64]
    epsilon: float
    entries: NDArray[np.int64]
    names: tuple[str, ...] | None = None

    # ---- construction -------------------------------------------------------------------------------------------

    @classmethod
    def from_edges(
        cls,
        dense: tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.floating]],
        hard: tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.floating]],
        clusters: NDArray[np.integer],
        epsilon: float,
        names: tuple[str, ...] | None = None,
    ) -> MetastableGraph:
        """Build and validate a graph from triples (sources, targets, values).

        Values are p^0 for `dense` and w for `hard`. The entry state of a cluster is the single head of the hard
        edges into it, -1 where there are several or none.
        """
        labels: NDArray[np.int64] = np.asarray(clusters, dtype=np.int64)
        source = np.concatenate([np.asarray(dense[0]), np.asarray(hard[0])]).astype(np.int64)
        target = np.concatenate([np.asarray(dense[1]), np.asarray(hard[1])]).astype(np.int64)
        value = np.concatenate([np.asarray(dense[2]), np.asarray(hard[2])]).astype(np.float64)
        is_hard = np.repeat([False, True], [len(dense[0]), len(hard[0])])
        order = np.lexsort((target, source))
        n_states = len(labels)
        if len(source) and not (0 <= min(source.min(), target.min()) and max(source.max(), target.max()) < n_states):
            raise InputError(f"an edge names a state outside 0 .. {n_states - 1}")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=n_states))])
        if labels.min(initial=0) < 0:
            raise InputError(f"state {labels.argmin()} lies in cluster {labels.min()}; clusters are numbered from 0")
        entries = _entry_states(target[is_hard], labels)
        graph = cls(
            indptr.astype(np.int64),
            target[order],
            value[order],
            is_hard[order],
            labels,
            float(epsilon),
            entries,
            names,
        )
        graph.validate()
        return graph

    def with_epsilon(self, epsilon: float) -> MetastableGraph:
        """The same support and weights at another ε; `InputError` outside 0 < ε < 1 / max W_x."""
        graph = replace(self, epsilon=float(epsilon))
        graph._check_epsilon()
        return graph

    # ---- sizes and views ----------------------------------------------------------------------------------------

    @property
    def n_states(self) -> int:
        """N, the number of states."""
        return len(self.clusters)

    @property
    def n_edges(self) -> int:
        """E, dense and hard edges together, self-loops included."""
        return len(self.indices)

    @cached_property
    def n_clusters(self) -> int:
        """K, the number of clusters."""
        return int(self.clusters.max()) + 1

    @cached_property
    def cluster_sizes(self) -> NDArray[np.int64]:
        """(K,) number of states of each cluster; M is their maximum."""
        return np.bincount(self.clusters, minlength=self.n_clusters)

    @property
    def cluster_size(self) -> int:
        """M, the size of the largest cluster."""
        return int(self.cluster_sizes.max())

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """(E,) tail of each edge."""
        return np.repeat(np.arange(self.n_states), np.diff(self.indptr))

    @cached_property
    def hard_weight(self) -> NDArray[np.float64]:
        """(N,) W_x, total weight of the hard edges that leave x."""
        weight = np.bincount(self.sources[self.hard], self.weights[self.hard], minlength=self.n_states)
        return weight.astype(np.float64)

    @property
    def epsilon_limit(self) -> float:
        """1 / max W_x: every ε must lie below it."""
        largest = float(self.hard_weight.max(initial=0.0))
        return 1.0 / largest if largest > 0 else np.inf

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(E,) p^ε of each edge."""
        dense_mass = 1.0 - self.epsilon * self.hard_weight[self.sources]
        return self.weights * np.where(self.hard, self.epsilon, dense_mass)

    @cached_property
    def sparse_edges(self) -> NDArray[np.int64]:
        """(n_hard, 2) the hard steps (source, head), in row order."""
        return np.stack([self.sources[self.hard], self.indices[self.hard]], axis=1)

    def members(self, cluster: int) -> NDArray[np.int64]:
        """The states of one cluster, ascending."""
        order, first = self._by_cluster
        return order[first[cluster] : first[cluster + 1]]

    @cached_property
    def _by_cluster(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(N,) the states, cluster by cluster, ascending, and (K + 1,) where each cluster begins in them."""
        return np.argsort(self.clusters, kind="stable"), np.concatenate([[0], np.cumsum(self.cluster_sizes)])

    def kernel(self) -> NDArray[np.float64]:
        """(N, N) p^ε as a dense array."""
        dense = np.zeros((self.n_states, self.n_states))
        dense[self.sources, self.indices] = self.probabilities
        return dense

    def to_scipy(self) -> sp.csr_array:
        """(N, N) p^ε as a SciPy CSR array."""
        return sp.csr_array((self.probabilities, self.indices, self.indptr), shape=(self.n_states, self.n_states))

    def to_torch(self, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(indptr (N + 1,) int64, indices (E,) int64, probabilities (E,) float64) as tensors on `device`."""
        arrays = (self.indptr, self.indices, self.probabilities)
        indptr, indices, probabilities = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays)
        return indptr, indices, probabilities

    # ---- names --------------------------------------------------------------------------------------------------

    def name(self, state: int) -> str:
        """What to call a state in messages and figures."""
        return self.names[state] if self.names is not None else str(state)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names or map(str, range(self.n_states)))}

    def state(self, name: str | int) -> int:
        """The state called `name`; `InputError` with the nearest name where there is none."""
        if str(name) in self._index:
            return self._index[str(name)]
        if self.names is None:
            raise InputError(f"unknown state {str(name)!r}: the states are numbered 0 .. {self.n_states - 1}")
        from difflib import get_close_matches

        near = get_close_matches(str(name), self._index, n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"the first is {self.name(0)!r}, the last {self.name(self.n_states - 1)!r}"
        )
        raise InputError(f"unknown state {str(name)!r}: the graph has {self.n_states} states; {hint}")

    # ---- checks -------------------------------------------------------------------------------------------------

    def _check_epsilon(self) -> None:
        if not 0.0 < self.epsilon < 1.0:
            raise InputError(f"epsilon is {self.epsilon}; it is a probability a step and must lie in (0, 1)")
        if not self.epsilon < self.epsilon_limit:
            x = int(self.hard_weight.argmax())
            raise InputError(
                f"epsilon {self.epsilon:g} times the hard-step weight W = {self.hard_weight[x]:g} of state {self.name(x)} "
                f"is {self.epsilon * self.hard_weight[x]:g}; it must be below 1: use epsilon < {self.epsilon_limit:g}"
            )

    def validate(self) -> None:
        """Check everything that the rest of the package relies on.

        Raises:
            InputError: naming the state, the value and the rule, at the first thing that is wrong.
        """
        n, e, k = self.n_states, self.n_edges, len(self.entries)
        if n == 0 or self.indptr.shape != (n + 1,) or self.indptr[0] != 0 or self.indptr[-1] != e:
            raise InputError(f"row pointers do not fit a graph of {n} states and {e} edges")
        if (np.diff(self.indptr) < 0).any():
            raise InputError("row pointers must not decrease")
        if not (len(self.weights) == len(self.hard) == e):
            raise InputError(f"{e} edges but {len(self.weights)} weights and {len(self.hard)} hard-step marks")
        if e and not 0 <= self.indices.min() <= self.indices.max() < n:
            raise InputError(f"an edge points outside the states 0 .. {n - 1}")
        if k < 2:
            raise InputError(f"the graph has {k} cluster(s); metastability needs at least 2")
        if len(np.unique(self.clusters)) != k or self.clusters.min() != 0 or self.clusters.max() != k - 1:
            raise InputError(f"clusters must be labelled 0 .. {k - 1}, each with at least one state")
        if self.names is not None and (len(self.names) != n or len(set(self.names)) != n):
            raise InputError(
                f"{n} states need {n} different names; got {len(set(self.names))} different of {len(self.names)}"
            )
        source, target = self.sources, self.indices
        again = (np.diff(source) == 0) & (np.diff(target) <= 0)
        if again.any():
            i = int(np.flatnonzero(again)[0]) + 1
            raise InputError(f"edge {self.name(source[i])} -> {self.name(target[i])} stands twice or out of order")
        bad = ~(np.isfinite(self.weights) & (self.weights > 0))
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"edge {self.name(source[i])} -> {self.name(target[i])} has weight {self.weights[i]}; weights are positive and finite"
            )
        crossing = self.clusters[source] != self.clusters[target]
        if (crossing != self.hard).any():
            i = int(np.flatnonzero(crossing != self.hard)[0])
            kind, rule = ("hard", "joins two clusters") if self.hard[i] else ("dense", "stays in its cluster")
            raise InputError(
                f"edge {self.name(source[i])} -> {self.name(target[i])} is marked {kind}, and a {kind} edge {rule}; "
                f"its ends lie in clusters {self.clusters[source[i]]} and {self.clusters[target[i]]}"
            )
        row_sum = np.bincount(source[~self.hard], self.weights[~self.hard], minlength=n)
        wrong = np.abs(row_sum - 1.0) > _ROW_SUM_TOLERANCE
        if wrong.any():
            x = int(np.flatnonzero(wrong)[0])
            if row_sum[x] == 0.0:
                raise InputError(
                    f"state {self.name(x)} has no dense edge: every state needs an easy step inside its cluster (a self-loop will do)"
                )
            raise InputError(
                f"the dense edges of state {self.name(x)} sum to {row_sum[x]:.9g}; every row must sum to 1"
            )
        self._check_epsilon()
        self._check_connected()
        for cluster, entry in enumerate(self.entries):
            if entry != -1 and not (0 <= entry < n and self.clusters[entry] == cluster):
                raise InputError(f"the entry state {entry} of cluster {cluster} does not lie in it")
        expected = _entry_states(self.indices[self.hard], self.clusters)
        if (expected != self.entries).any():
            c = int(np.flatnonzero(expected != self.entries)[0])
            raise InputError(
                f"the entry state of cluster {c} is given as {self.entries[c]}, but by its hard edges it is {expected[c]} "
                "(-1: not a single one)"
            )

    def _check_connected(self) -> None:
        n = self.n_states
        dense = sp.csr_array(
            (np.ones(int((~self.hard).sum())), (self.sources[~self.hard], self.indices[~self.hard])),
            shape=(n, n),
        )
        count, labels = connected_components(dense, directed=True, connection="strong")
        if count != self.n_clusters:
            for k in range(self.n_clusters):
                parts = labels[self.members(k)]
                if len(np.unique(parts)) > 1:
                    stray = self.members(k)[parts != parts[0]][0]
                    raise InputError(
                        f"cluster {k} is not connected by its dense edges: state {self.name(int(stray))} and state "
                        f"{self.name(int(self.members(k)[0]))} do not reach each other; split it or add edges"
                    )
        whole = sp.csr_array((np.ones(self.n_edges), self.indices, self.indptr), shape=(n, n))
        count, labels = connected_components(whole, directed=True, connection="strong")
        if count > 1:
            leaves = np.zeros(count, dtype=bool)
            leaves[labels[self.sources[labels[self.sources] != labels[self.indices]]]] = True
            trap = int(np.flatnonzero(~leaves)[0])
            x = int(np.flatnonzero(labels == trap)[0])
            raise InputError(
                f"the graph has a part that cannot be left: {int((labels == trap).sum())} state(s) from which the rest is out of "
                f"reach, state {self.name(x)} (cluster {self.clusters[x]}) among them; add a step out or remove them"
            )

    def fingerprint(self) -> str:
        """16 hex digits of the graph's numbers and names, the same in every process."""
        digest = hashlib.sha256(repr((self.epsilon, self.names)).encode())
        for array in (self.indptr, self.indices, self.weights, self.hard, self.clusters):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    # ---- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a compressed .npz (no pickle); the name appears only when the file is whole."""
        arrays: dict[str, NDArray[Any]] = {
            key: np.asarray(getattr(self, key), dtype=dtype) for key, dtype in _ARRAYS.items()
        }
        if self.names is not None:
            arrays["names"] = np.array(self.names, dtype=np.str_)
        with whole_file(Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # no key is allow_pickle

    @classmethod
    def load(cls, path: str | Path) -> MetastableGraph:
        """Read what `save` wrote and validate it; `InputError` names the file and what is wrong."""
        arrays = read_arrays(Path(path), {**_MOST_BYTES, "names": _MOST_BYTES_OF_NAMES})
        missing = [key for key in _ARRAYS if key not in arrays]
        if missing:
            raise InputError(f"{path}: not a graph file, {', '.join(missing)} missing")
        called = arrays.pop("names", None)
        if called is not None and (called.dtype.kind != "U" or called.ndim != 1):
            raise InputError(
                f"{path}: not a readable graph file (names has dtype {called.dtype} and {called.ndim} axes)"
            )
        names = None if called is None else tuple(called.tolist())
        for key, dtype in _ARRAYS.items():
            if arrays[key].dtype != dtype or arrays[key].ndim != (0 if key == "epsilon" else 1):
                raise InputError(
                    f"{path}: {key} has dtype {arrays[key].dtype} and {arrays[key].ndim} axes; expected {np.dtype(dtype)}"
                )
        epsilon = float(arrays.pop("epsilon"))
        graph = cls(**arrays, epsilon=epsilon, names=names)
        try:
            graph.validate()
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return graph


def _entry_states(heads: NDArray[np.int64], clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K,) the single head of the hard edges into each cluster, -1 where there are several or none."""
    heads = np.unique(heads)
    n_heads = np.bincount(clusters[heads], minlength=int(clusters.max(initial=-1)) + 1)
    entries = np.full(len(n_heads), -1, dtype=np.int64)
    alone = heads[n_heads[clusters[heads]] == 1]
    entries[clusters[alone]] = alone
    return entries
