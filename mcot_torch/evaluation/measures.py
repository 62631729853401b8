"""A kernel against the true one: distances of rows, hard steps, support; and the probe that training logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse as sp

from mcot_torch.chains.elimination import Kernel
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.walks import own_paths, sparse_kernel
from mcot_torch.system.randomness import generator

__all__ = [
    "edge_precision_recall",
    "entries",
    "hard_step_probabilities",
    "make_probe",
    "precision_recall",
    "row_tv",
]


def row_tv(kernel: Kernel, truth: Kernel) -> NDArray[np.float64]:
    """(N,) total variation between the rows of two kernels."""
    return abs(kernel - truth).sum(axis=1) / 2


def entries(kernel: Kernel, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) probabilities of the (n, 2) steps."""
    found = kernel[steps[:, 0], steps[:, 1]]
    return found.toarray().ravel() if isinstance(found, sp.sparray) else found


def hard_step_probabilities(kernel: Kernel, hard: NDArray[np.int64]) -> dict[str, float]:
    """Min, mean and max probability of the (n, 2) hard steps."""
    return _range(entries(kernel, hard))


def _range(p: NDArray[np.float64]) -> dict[str, float]:
    return {"min": float(p.min()), "mean": float(p.mean()), "max": float(p.max())}


def precision_recall(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Precision and recall of a set against the true one, as masks."""
    both = float((found & truth).sum())
    return both / max(1.0, float(found.sum())), both / max(1.0, float(truth.sum()))


def edge_precision_recall(found: ArrayLike, truth: ArrayLike) -> tuple[float, float]:
    """Precision and recall of a set of edges.

    Args:
        found: (n, 2) int edges, each once.
        truth: (m, 2) int edges, each once.

    >>> edge_precision_recall([[0, 1], [1, 2]], [[0, 1], [2, 0], [2, 1]])
    (0.5, 0.3333333333333333)
    """
    ours, true = ({(int(x), int(y)) for x, y in np.asarray(edges).reshape(-1, 2)} for edges in (found, truth))
    both = float(len(ours & true))
    return both / max(1.0, float(len(ours))), both / max(1.0, float(len(true)))


def make_probe(
    graph: MetastableGraph, epsilon_max: float | None = None, n_paths: int = 128
) -> Callable[[Reasoner], dict[str, float]]:
    """Exact comparisons for the log of a training stage, for `Context.probe`.

    Args:
        graph: the truth.
        epsilon_max: compare with p^{ε_max} instead of p^ε.
        n_paths: with a longer window, sampled paths over which predictions are averaged.
    """
    truth = (graph if epsilon_max is None else graph.with_epsilon(epsilon_max)).to_scipy()
    hard = graph.sparse_edges
    edges = torch.as_tensor(np.stack(truth.nonzero()))
    source_rows = graph.hard_weight > 0

    def blocks(reasoner: Reasoner) -> Iterator[tuple[Kernel, Kernel]]:
        """Predicted rows and the true ones, in order of the states; a row that no context ends in is taken as true."""
        if reasoner.window == 1 and reasoner.support.successors is not None:
            yield sparse_kernel(reasoner), truth
        elif reasoner.window == 1:
            for states, rows in reasoner.kernel_rows():
                yield rows.cpu().numpy(), truth[int(states[0]) : int(states[-1]) + 1].toarray()
        else:
            paths = own_paths(reasoner, n_paths, generator(0, "probe", device=reasoner.device))
            mean, visits, _ = reasoner.context_kernel(paths)
            expected = truth.toarray()
            yield np.where((visits > 0).cpu().numpy()[:, None], mean.cpu().numpy(), expected), expected

    def probe(reasoner: Reasoner) -> dict[str, float]:
        sup, tv, p, first = 0.0, [], [], 0
        for predicted, expected in blocks(reasoner):
            difference = abs(predicted - expected)
            sup = max(sup, float(difference.max()))
            tv.append(difference.sum(axis=1) / 2)
            mine = (hard[:, 0] >= first) & (hard[:, 0] < first + predicted.shape[0])
            p.append(entries(predicted, hard[mine] - [first, 0]))
            first += predicted.shape[0]
        row_tvs = np.concatenate(tv)
        shared = int(reasoner.support.mask[tuple(edges.to(reasoner.device))].sum())
        return {
            "sup_error": sup,
            "row_tv_mean": float(row_tvs.mean()),
            "row_tv_max": float(row_tvs.max()),
            "row_tv_easy_max": float(row_tvs[~source_rows].max(initial=0.0)),
            "support_recall": shared / max(1, graph.n_edges),
            "support_precision": shared / max(1, int(reasoner.support.mask.count_nonzero())),
            **{f"hard_step_{key}": value for key, value in _range(np.concatenate(p)).items()},
        }

    return probe
