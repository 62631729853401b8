"""Results of several runs together: interquartile means over seeds, with bootstrap intervals.

The interquartile mean and its percentile bootstrap over runs follow Agarwal et al., "Deep Reinforcement Learning at the Edge
of the Statistical Precipice" (NeurIPS 2021); the mean here is the integral of the quantile function from 1/4 to 3/4, which
needs no multiple of four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcot_torch.evaluation.models import ordered
from mcot_torch.evaluation.rows import ModelRow, expected_time

__all__ = [
    "METRICS",
    "Aggregate",
    "EvaluatedRun",
    "Metric",
    "SeedGroup",
    "aggregate",
    "aggregate_values",
    "interquartile_mean",
    "models_of",
]

_RESAMPLES = 10_000


@dataclass(frozen=True)
class EvaluatedRun:
    """A run that is finished and evaluated.

    Attributes:
        path: folder of the run.
        name: name of the run in its configuration.
        settings: dotted key -> value of all settings that decide the numbers of the run, the seed included.
        teacher: name of the model that the student learned from.
        result: content of evaluation.json.
        histories: stage -> logged lines.
    """

    path: Path
    name: str
    settings: dict[str, Any]
    teacher: str
    result: dict[str, Any]
    histories: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class SeedGroup:
    """Runs whose configurations differ in the seed alone.

    Attributes:
        name: what sets the group apart from the other groups.
        runs: in the order given.
    """

    name: str
    runs: list[EvaluatedRun]


@dataclass(frozen=True)
class Aggregate:
    """One metric of one model over the runs of a group.

    Attributes:
        mean: interquartile mean.
        low, high: ends of its 95 % bootstrap interval; None for a single run.
        n: number of runs that have the metric.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Metric:
    """A number of a row of evaluation.json, by which runs are compared."""

    name: str
    of: Callable[[ModelRow], float | None]


METRICS = (
    Metric("time to the target", expected_time),
    Metric("lifted steps", lambda row: row.get("lifted_steps")),
    Metric("speed-up", lambda row: row["speedup"]),
    Metric("hard step", lambda row: row["hard_step_probability"]["mean"]),
    Metric("TV max", lambda row: row["row_tv_max"]),
    Metric("recall", lambda row: row["hard_step_recall"]),
    Metric("precision", lambda row: row["hard_step_precision"]),
)
"""The columns of a comparison, in their order."""


def interquartile_mean(values: ArrayLike) -> NDArray[np.float64]:
    """Mean of the middle half along the last axis: the quantile function integrated from 1/4 to 3/4, doubled.

    >>> float(interquartile_mean([1.0, 2.0, 3.0, 100.0]))
    2.5
    """
    increasing = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    n = increasing.shape[-1]
    edges = np.clip(np.arange(n + 1) / n, 0.25, 0.75)
    return increasing @ (2.0 * np.diff(edges))


@cache
def aggregate_values(values: tuple[float | None, ...]) -> Aggregate | None:
    """Interquartile mean with its 95 % percentile bootstrap interval over the runs; None where no run has a value."""
    known = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    n = len(known)
    if n == 0:
        return None
    mean = float(interquartile_mean(known))
    if n == 1:
        return Aggregate(mean, None, None, 1)
    picks = np.random.default_rng(n).integers(n, size=(_RESAMPLES, n))
    low, high = np.quantile(interquartile_mean(known[picks]), [0.025, 0.975])
    return Aggregate(mean, float(low), float(high), n)


def models_of(group: SeedGroup) -> list[str]:
    """Names of the models that any run of a group has, in the order of the table of models."""
    names = {name for run in group.runs for name in run.result["models"]}
    return [entry.name for entry in ordered(names)]


def aggregate(group: SeedGroup, model: str, metric: Metric) -> Aggregate | None:
    """One metric of one model over the runs of a group; None where no run has it."""
    rows = [run.result["models"].get(model) for run in group.runs]
    return aggregate_values(tuple(None if row is None else metric.of(row) for row in rows))
