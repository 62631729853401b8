"""From trajectories to a graph: counts, connected set, clusters, hard steps with their uncertainty, and a plain verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp

from mcot_torch.chains import hitting_time
from mcot_torch.errors import InputError
from mcot_torch.estimation.clusters import (
    METASTABLE,
    number_of_clusters,
    pcca_clusters,
    simplex_clusters,
    spectrum,
)
from mcot_torch.estimation.trajectories import Trajectories, largest_connected
from mcot_torch.estimation.uncertainty import (
    CKRow,
    chapman_kolmogorov,
    hitting_time_interval,
    separation_confidence,
    step_intervals,
)
from mcot_torch.evaluation.statistics import NORMAL_975
from mcot_torch.graphs.formats.interchange import from_kernel
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import TaskConfig, build_task
from mcot_torch.system.randomness import generator

__all__ = ["Estimate", "EstimationConfig", "HardStep", "HittingTime", "estimate"]


@dataclass
class EstimationConfig:
    """How a graph is estimated from trajectories."""

    n_clusters: int | None = None
    """K; null for the widest gap in the spectrum, and for none where there is no clear gap."""
    method: Literal["spectral", "pcca"] = "spectral"
    """How states are put into K clusters: k-means from the corners of the eigenvectors' simplex, or PCCA+ (needs deeptime)."""
    min_visits: int = 10
    """States left less often are left out."""
    draws: int = 200
    """Kernels drawn for the interval of the hitting time; a quarter as many resampled counts for the confidence."""
    seed: int = 0
    """Of these draws."""


@dataclass(frozen=True)
class HardStep:
    """A step between two clusters, as the data show it.

    Attributes:
        source: name of its tail.
        target: name of its head.
        count: how often it was seen.
        visits: steps seen out of the source.
        probability: count / visits.
        low: end of the 95 % credible interval.
        high: the other end.
        confidence: share of resampled data whose clusters part its two ends.
    """

    source: str
    target: str
    count: int
    visits: int
    probability: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class HittingTime:
    """E[τ] of the estimated chain in steps, with a 95 % credible interval."""

    task: str
    steps: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Estimate:
    """What trajectories say about metastability.

    Attributes:
        kept: (n,) int64, the states on which the chain is estimated, in the numbering of the input.
        names: (n,) their names.
        left_out: names of the other states.
        steps: steps observed in all.
        steps_lost: steps from or to a state that was left out.
        counts: (n, n) float64, steps seen between the states kept.
        rates: relaxation rates 1 - λ of C + Cᵀ, ascending, the first 0.
        separation: ratio of the rates at the gap.
        graph: the metastable graph; None where the data show no metastability.
        verdict: one sentence on whether they do, and why.
        warnings: what a reader of the numbers must know.
        hard_steps: most often seen first.
        chapman_kolmogorov: whether the data are a chain of these states at all.
        hitting_time: of the default task, or of the one asked for.
    """

    kept: NDArray[np.int64]
    names: tuple[str, ...]
    left_out: tuple[str, ...]
    steps: int
    steps_lost: int
    counts: sp.csr_array
    rates: NDArray[np.float64]
    separation: float
    graph: MetastableGraph | None
    verdict: str
    warnings: list[str] = field(default_factory=list)
    hard_steps: list[HardStep] = field(default_factory=list)
    chapman_kolmogorov: list[CKRow] = field(default_factory=list)
    hitting_time: HittingTime | None = None


def estimate(
    trajectories: Trajectories, config: EstimationConfig | None = None, task: TaskConfig | None = None
) -> Estimate:
    """Estimate a chain from trajectories and say whether it is metastable.

    The chain lives on the largest strongly connected set of states that were left `min_visits` times. K is where the
    relaxation rates of C + Cᵀ have their widest gap; the data are called metastable if the rates there differ by a factor
    of 6 (`METASTABLE`) and every cluster is held together by easy steps. ε is the pooled probability of the hard steps,
    their counts over the visits of their sources, and w = p/ε keeps every estimated probability as it is.

    Args:
        trajectories: over any states.
        config: see `EstimationConfig`.
        task: whose hitting time is given an interval; the default task if None.

    Raises:
        InputError: nothing to estimate from, a K that the states cannot have, or a task that the graph does not know.
    """
    config = config or EstimationConfig()
    k = config.n_clusters
    if k is not None and k < 2:
        raise InputError(f"n_clusters is {k}; metastability needs at least 2 clusters, or null to find out")
    if config.min_visits < 1 or config.draws < 1:
        raise InputError(f"min_visits is {config.min_visits} and draws {config.draws}; both must be at least 1")
    kept = largest_connected(trajectories.counts, config.min_visits)
    if len(kept) < 2:
        return _nothing(
            trajectories,
            kept,
            f"no metastability can be seen: of {trajectories.n_states} states no two are connected in both directions and left "
            f"at least {config.min_visits} times each",
        )
    runs = trajectories.restrict(kept)
    if k is not None and 2 * k > len(kept):
        raise InputError(f"n_clusters is {k}, but {len(kept)} states were kept; ask for at most {len(kept) // 2}")
    slow = spectrum(runs.counts) if k is None else spectrum(runs.counts, k + 1)
    found, separation = number_of_clusters(slow.rates, len(kept))
    if k is None and separation < METASTABLE:
        return _nothing(
            trajectories,
            kept,
            f"no metastability: the widest gap between relaxation rates is a factor {separation:.2g} (after {found} slow ones), "
            f"and a walk without barriers has up to 5; {METASTABLE:g} or more would show clusters",
            slow.rates,
            separation,
        )
    if k is None:
        k = found
    else:
        separation = float(slow.rates[k] / max(slow.rates[k - 1], 1e-12))
    mass = runs.counts.sum(axis=1)
    by_pcca = config.method == "pcca"
    labels = pcca_clusters(runs.counts, k) if by_pcca else simplex_clusters(slow.vectors, mass, k)
    inside = largest_connected(runs.counts, config.min_visits, labels)
    clusters = np.unique(labels[inside], return_inverse=True)[1].astype(np.int64)
    if len(inside) < 2 or clusters.max() < 1:
        return _nothing(
            trajectories,
            kept,
            f"no metastability: the spectrum has a gap of a factor {separation:.2g} after {k} slow rates, but easy steps "
            "do not hold the clusters together; more data may",
            slow.rates,
            separation,
        )
    return _describe(trajectories, kept[inside], clusters, slow.rates, separation, k, config, task)


def _nothing(
    trajectories: Trajectories,
    kept: NDArray[np.int64],
    verdict: str,
    rates: NDArray[np.float64] | None = None,
    separation: float = 1.0,
) -> Estimate:
    rates = np.zeros(0) if rates is None else rates
    runs = trajectories.restrict(kept)
    return Estimate(
        kept,
        runs.names,
        _others(trajectories, kept),
        trajectories.n_steps,
        trajectories.n_steps - runs.n_steps,
        runs.counts if len(kept) else sp.csr_array((0, 0)),
        rates,
        separation,
        None,
        verdict,
        _warnings(trajectories, runs),
    )


def _others(trajectories: Trajectories, kept: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(trajectories.names[x] for x in np.setdiff1d(np.arange(trajectories.n_states), kept))


def _warnings(trajectories: Trajectories, runs: Trajectories) -> list[str]:
    """What the connected set costs."""
    lost = 1 - runs.n_steps / max(trajectories.n_steps, 1)
    if lost <= 0.05:
        return []
    return [
        f"{lost:.0%} of the steps begin or end outside the connected set and are not used: final states that are never left, "
        "states seen too rarely, or parts of the data that no trajectory joins"
    ]


def _describe(
    trajectories: Trajectories,
    kept: NDArray[np.int64],
    clusters: NDArray[np.int64],
    rates: NDArray[np.float64],
    separation: float,
    n_clusters: int,
    config: EstimationConfig,
    task: TaskConfig | None,
) -> Estimate:
    """Graph, hard steps, intervals and checks of a metastable chain."""
    runs = trajectories.restrict(kept)
    counts = runs.counts
    visits = counts.sum(axis=1)
    coo = counts.tocoo()
    between = clusters[coo.row] != clusters[coo.col]
    steps = np.stack([coo.row[between], coo.col[between]], axis=1).astype(np.int64)
    seen = coo.data[between]
    epsilon = float(seen.sum() / visits[np.unique(steps[:, 0])].sum())
    kernel = sp.csr_array(sp.diags_array(1 / visits) @ counts)
    graph = from_kernel(kernel, clusters, runs.names, epsilon)

    warnings = _warnings(trajectories, runs)
    left = np.bincount(clusters[steps[:, 0]], seen, minlength=graph.n_clusters)
    rare = [f"C_{k} ({int(n)})" for k, n in enumerate(left) if n < 10]
    if rare:
        warnings.append(
            f"few crossings: the data leave {', '.join(rare[:4])} fewer than 10 times; collect longer trajectories"
        )
    if separation < METASTABLE:
        warnings.append(
            f"{n_clusters} clusters were asked for, but the relaxation rates there differ by a factor {separation:.2g} only, "
            f"less than {METASTABLE:g}: the data show no metastability at this number"
        )
    if graph.n_clusters < n_clusters:
        warnings.append(f"{n_clusters - graph.n_clusters} of {n_clusters} clusters fell apart and were left out")

    def draw(name: str) -> np.random.Generator:
        return np.random.default_rng(generator(config.seed, "estimation", name).initial_seed())

    intervals = step_intervals(counts, steps)
    confidence = separation_confidence(counts, steps, graph.n_clusters, max(config.draws // 4, 1), draw("confidence"))
    hard_steps = [
        HardStep(
            source=runs.names[x],
            target=runs.names[y],
            count=int(seen[i]),
            visits=int(visits[x]),
            probability=float(seen[i] / visits[x]),
            low=float(intervals[i, 0]),
            high=float(intervals[i, 1]),
            confidence=float(confidence[i]),
        )
        for i, (x, y) in enumerate(steps.tolist())
    ]
    hard_steps.sort(key=lambda step: (-step.count, step.source, step.target))
    check = chapman_kolmogorov(runs, clusters)
    if not all(row.consistent for row in check):
        worst = max(check, key=lambda row: abs(row.observed - row.predicted) / row.error)
        warnings.append(
            f"Chapman-Kolmogorov check fails: after {worst.lag} steps {worst.observed:.1%} of the visits to C_{worst.cluster} are "
            f"there again, where the one-step kernel says {worst.predicted:.1%} (± {NORMAL_975 * worst.error:.1%}); the next step "
            "depends on more than the state, so take hitting times with care"
        )
    goal = build_task(task or TaskConfig(), graph)
    low, high = hitting_time_interval(counts, clusters, goal, config.draws, draw("hitting time"))
    time = HittingTime(goal.description, hitting_time(graph.to_scipy(), goal.start, goal.target, clusters), low, high)
    verdict = (
        f"metastable: {graph.n_clusters} clusters of {graph.cluster_sizes.min()} to {graph.cluster_sizes.max()} states, joined by "
        f"{len(hard_steps)} hard steps of about ε = {epsilon:.3g} a step; the relaxation rates differ by a factor {separation:.3g}"
    )
    if separation < METASTABLE:
        verdict = "not " + verdict
    return Estimate(
        kept,
        runs.names,
        _others(trajectories, kept),
        trajectories.n_steps,
        trajectories.n_steps - runs.n_steps,
        counts,
        rates,
        separation,
        graph,
        verdict,
        warnings,
        hard_steps,
        check,
        time,
    )
