"""Ordinary least squares with t intervals, and what experiments share about rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mcot_torch.experiments.base import Measurement, Number

__all__ = ["mean_number", "power_law", "power_laws", "select", "slope", "straight_line"]


def straight_line(x: ArrayLike, y: ArrayLike) -> tuple[float, float, float, float]:
    """y = a + b x by least squares: (b, half width of its 95 % t interval, a, R²); half width 0 with two points."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(np.unique(x)) < 2:
        raise ValueError("a line needs two different x")
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr) if len(x) > 2 else 0.0
    return float(fit.slope), half, float(fit.intercept), float(fit.rvalue**2)


def power_law(x: ArrayLike, y: ArrayLike) -> tuple[float, float, float]:
    """y = c x^b by least squares of log y on log x: (b, half width of its 95 % interval, c)."""
    b, half, a, _ = straight_line(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)))
    return b, half, float(np.exp(a))


def power_laws(columns: Mapping[str, ArrayLike], y: ArrayLike) -> dict[str, tuple[float, float]]:
    """y = c Π x_i^b_i by least squares in logarithms: name -> (b, half width of its 95 % t interval)."""
    design = np.stack([np.log(np.asarray(x, dtype=np.float64)) for x in columns.values()], axis=1)
    design = np.column_stack([design, np.ones(len(design))])
    target = np.log(np.asarray(y, dtype=np.float64))
    b, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    if rank < design.shape[1]:
        raise ValueError("the columns do not vary independently")
    free = len(target) - design.shape[1]
    if free < 1:
        return {name: (float(value), 0.0) for name, value in zip(columns, b[:-1], strict=True)}
    variance = float(((target - design @ b) ** 2).sum()) / free * np.diagonal(np.linalg.inv(design.T @ design))
    half = stats.t.ppf(0.975, free) * np.sqrt(variance)
    return {name: (float(b[i]), float(half[i])) for i, name in enumerate(columns)}


def slope(
    name: str,
    x: ArrayLike,
    y: ArrayLike,
    expected: float | None = None,
    tolerance: float | None = None,
) -> Number:
    """The exponent of y against x as a `Number`, decided by |b − expected| ≤ tolerance if both are given."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    bounds: dict[str, float] = {}
    if expected is not None and tolerance is not None:
        bounds = {"at_least": expected - tolerance, "at_most": expected + tolerance}
    text = "" if expected is None else f"{expected:g}" + (f" ± {tolerance:g}" if tolerance is not None else "")
    if len(np.unique(x)) < 2:
        return Number(name, None, expected=text, **bounds)  # type: ignore[arg-type]
    b, half, _ = power_law(x, y)
    return Number(name, b, b - half, b + half, expected=text, **bounds)  # type: ignore[arg-type]


def mean_number(name: str, values: Sequence[float], **bounds: Any) -> Number:
    """The mean of repeated measurements (seeds) with its 95 % t interval."""
    v = np.asarray(values, dtype=np.float64)
    half = float(stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else 0.0
    return Number(name, float(v.mean()), float(v.mean()) - half, float(v.mean()) + half, **bounds)


def select(rows: Iterable[Measurement], **where: Any) -> list[Measurement]:
    """The rows whose columns have the given values."""
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]
