"""How sure an estimate is: Dirichlet laws of the rows, resampled clusters, and the Chapman-Kolmogorov check."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp
from scipy.stats import beta

from mcot_torch.chains import hitting_time
from mcot_torch.estimation.clusters import simplex_clusters, spectrum
from mcot_torch.estimation.trajectories import Trajectories
from mcot_torch.graphs.task import Task

__all__ = ["CKRow", "chapman_kolmogorov", "hitting_time_interval", "separation_confidence", "step_intervals"]

LEVEL = 0.95
_MOST_LAGS = 8
_TOLERATED = 3.0  # standard errors

Array = NDArray[np.float64]
Interval = tuple[float, float]


def step_intervals(counts: sp.csr_array, steps: NDArray[np.int64]) -> Array:
    """(n, 2) equal-tailed 95 % intervals of p(y|x) for steps (n, 2).

    The law of a row given its counts is Dirichlet(n(x, y) + 1/d), d the number of steps seen out of x: one
    imaginary visit in all, so that rare steps are hardly moved (Perks 1947). Its margins are beta laws.
    """
    visits, width = counts.sum(axis=1), np.diff(counts.indptr)
    seen = np.array([counts[x, y] for x, y in steps], dtype=np.float64)
    n, prior = visits[steps[:, 0]], 1.0 / width[steps[:, 0]]
    tail, rest = (1 - LEVEL) / 2, n - seen + 1.0 - prior
    law = beta(seen + prior, np.where(rest > 0, rest, 1.0))
    ends = np.stack([law.ppf(tail), law.ppf(1 - tail)], axis=1)
    return np.where(rest[:, None] > 0, ends, 1.0)  # a single way out is taken surely


def hitting_time_interval(
    counts: sp.csr_array, clusters: NDArray[np.int64], task: Task, draws: int, rng: np.random.Generator
) -> Interval:
    """95 % interval of E[τ] in steps: the exact hitting time of `draws` kernels drawn from the law of the rows."""
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    prior = 1.0 / np.diff(counts.indptr)[row]
    times = []
    for _ in range(draws):
        weight = rng.gamma(counts.data + prior)
        kernel = sp.csr_array((weight / np.bincount(row, weight)[row], counts.indices, counts.indptr), counts.shape)
        times.append(hitting_time(kernel, task.start, task.target, clusters))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(times, [tail, 1 - tail])
    return float(low), float(high)


def separation_confidence(
    counts: sp.csr_array, steps: NDArray[np.int64], n_clusters: int, draws: int, rng: np.random.Generator
) -> Array:
    """(n,) share of resampled counts, Poisson(C), whose clusters part the two ends of each step (n, 2).

    1 where the data leave no doubt that a step joins two clusters. A state that a resampling never visits counts as
    parted from no other.
    """
    parted = np.zeros(len(steps))
    for _ in range(draws):
        again = sp.csr_array((rng.poisson(counts.data).astype(np.float64), counts.indices, counts.indptr), counts.shape)
        mass = again.sum(axis=1) + again.sum(axis=0)
        alive = np.flatnonzero(mass > 0)
        labels = np.full(len(mass), -1)
        inside = sp.csr_array(again[alive][:, alive])
        labels[alive] = simplex_clusters(spectrum(inside, n_clusters).vectors, mass[alive], n_clusters)
        ends = labels[steps]
        parted += (ends[:, 0] != ends[:, 1]) & (ends >= 0).all(1)
    return parted / max(draws, 1)


@dataclass(frozen=True)
class CKRow:
    """One cluster at one lag: the share of visits that are in the cluster again `lag` steps later.

    Attributes:
        lag: steps.
        cluster: k.
        observed: share in the data.
        predicted: what the estimated one-step kernel says of the same starts.
        error: standard error of the observed share, at most.
        consistent: within three of them.
    """

    lag: int
    cluster: int
    observed: float
    predicted: float
    error: float
    consistent: bool


def chapman_kolmogorov(trajectories: Trajectories, clusters: NDArray[np.int64]) -> list[CKRow]:
    """Whether powers of the one-step kernel say what the data say at lags 2, 4, 8, ... up to half the longest run.

    Chains that remember more than their state fail it. Residuals of windows that do not overlap are uncorrelated under
    the hypothesis, and the windows of a lag are `lag` interleaved families of those: so a mean over all windows has at most
    `lag` times the variance of independent ones.

    Args:
        trajectories: runs over N states.
        clusters: (N,) labels.
    """
    counts = trajectories.counts
    kernel = sp.csr_array(sp.diags_array(1 / counts.sum(axis=1)) @ counts)
    n_clusters = int(clusters.max()) + 1
    arrives, done = np.eye(n_clusters)[clusters], 0  # (N, K) P_x(X_done in C_k)
    longest = max(map(len, trajectories.paths)) - 1
    rows = []
    for lag in (2**i for i in range(1, _MOST_LAGS + 1)):
        if 2 * lag > longest:
            break
        for _ in range(lag - done):
            arrives = kernel @ arrives
        done, stays = lag, arrives[np.arange(len(clusters)), clusters]
        pairs = [(path[:-lag], path[lag:]) for path in trajectories.paths if len(path) > lag]
        start, end = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
        here = clusters[start]
        windows = np.bincount(here, minlength=n_clusters)
        for k in np.flatnonzero(windows):
            at = here == k
            observed, predicted = float((clusters[end[at]] == k).mean()), float(stays[start[at]].mean())
            error = float(np.sqrt(max(predicted * (1 - predicted), 1e-12) * lag / windows[k]))
            rows.append(CKRow(lag, int(k), observed, predicted, error, abs(observed - predicted) <= _TOLERATED * error))
    return rows
