"""A kernel against the true one: distances of rows, hard steps, support; and the probe that training logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse as sp
from torch import Tensor

from mcot_torch.chains.elimination import Kernel
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.randomness import generator
from mcot_torch.reasoners.base import Policy, Reasoner

__all__ = ["entries", "hard_step_probabilities", "make_probe", "own_paths", "precision_recall", "row_tv"]


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
    source_rows = graph.hard_weight > 0

    def blocks(reasoner: Reasoner) -> Iterator[tuple[Tensor, Tensor, NDArray[np.bool_]]]:
        """States, their predictions, and which of them were predicted at all."""
        if reasoner.window == 1:
            for states, rows in reasoner.kernel_rows():
                yield states, rows, np.ones(len(states), dtype=bool)
            return
        paths = own_paths(reasoner, n_paths, generator(0, "probe", device=reasoner.device))
        mean, visits, _ = reasoner.context_kernel(paths)
        yield torch.arange(reasoner.n_states), mean, (visits > 0).cpu().numpy()

    def probe(reasoner: Reasoner) -> dict[str, float]:
        sup, tv, p, shared, kept = 0.0, np.zeros(graph.n_states), np.zeros(len(hard)), 0, 0
        for states, rows, seen in blocks(reasoner):
            first, here = int(states[0]), slice(int(states[0]), int(states[-1]) + 1)
            expected = truth[here].toarray()
            predicted = np.where(seen[:, None], rows.cpu().numpy(), expected)
            difference = np.abs(predicted - expected)
            sup, tv[here] = max(sup, float(difference.max())), difference.sum(axis=1) / 2
            mine = (hard[:, 0] >= here.start) & (hard[:, 0] < here.stop)
            p[mine] = predicted[hard[mine, 0] - first, hard[mine, 1]]
            support = reasoner.support[here].cpu().numpy()
            shared, kept = shared + int((support & (expected > 0)).sum()), kept + int(support.sum())
        return {
            "sup_error": sup,
            "row_tv_mean": float(tv.mean()),
            "row_tv_max": float(tv.max()),
            "row_tv_easy_max": float(tv[~source_rows].max(initial=0.0)),
            "support_recall": shared / max(1, graph.n_edges),
            "support_precision": shared / max(1, kept),
            **{f"hard_step_{key}": value for key, value in _range(p).items()},
        }

    return probe


def own_paths(reasoner: Reasoner, n_paths: int, draw: torch.Generator, policy: Policy | None = None) -> Tensor:
    """(n_paths, window) int64 paths of the reasoner from uniform starts: every prefix is a context."""
    starts = torch.randint(reasoner.n_states, (n_paths,), generator=draw, device=reasoner.device)
    return reasoner.generate(starts, reasoner.window - 1, draw, policy)
