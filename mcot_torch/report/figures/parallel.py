"""Parallel coordinates: an axis a column, a line a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator

from mcot_torch.report.figures.style import BLACK, DPI, GREY, LIGHT, SMALL, TEXT, Array

__all__ = ["parallel_figure"]

_SPREAD = 20.0  # ratio of largest to smallest from which an axis is logarithmic
_MOST_LEVELS = 12  # different values of a setting up to which its axis shows each of them
_STEPS = np.linspace(0, 1, 30)


def parallel_figure(
    rows: Sequence[Mapping[str, Any]], colour: str | None = None, levels: Collection[str] = ()
) -> Figure:
    """A line for each row through its value on each column.

    Args:
        rows: column -> number or text; None leaves a gap.
        colour: column of numbers that colours the lines.
        levels: columns that were set to few values, shown evenly spaced, as text is. Others are axes of numbers,
            logarithmic where they span a factor of 20.
    """
    columns = list(rows[0])
    figure = Figure(figsize=(max(6.0, 1.35 * len(columns) + 1.0), 4.2), dpi=DPI, layout=ConstrainedLayoutEngine())
    axes = figure.add_subplot()
    heights = np.array(
        [_axis(axes, x, [row[column] for row in rows], column in levels) for x, column in enumerate(columns)]
    ).T
    norm, shades = _colours([row.get(colour) for row in rows] if colour else [])
    bend = _STEPS**2 * (3 - 2 * _STEPS)  # level at both ends: a line can be followed through an axis
    for row, height in zip(rows, heights, strict=True):
        value = row.get(colour) if colour else None
        shade = LIGHT if value is None or norm is None else shades(norm(value))
        for x in range(len(columns) - 1):
            a, b = height[x], height[x + 1]
            axes.plot(x + _STEPS, a + (b - a) * bend, color=shade, lw=1.4, alpha=0.85, solid_capstyle="round")
    axes.set_xticks(range(len(columns)), columns, fontsize=TEXT)
    axes.xaxis.tick_top()
    axes.tick_params(top=False, pad=6)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.3, len(columns) - 1 + 0.45)
    axes.set_ylim(-0.05, 1.05)
    if norm is not None and colour is not None:
        bar = figure.colorbar(ScalarMappable(norm, shades), ax=axes, pad=0.01, fraction=0.03)
        bar.set_label(colour, fontsize=TEXT)
        bar.ax.tick_params(labelsize=SMALL)
    return figure


def _colours(values: Sequence[Any]) -> tuple[Normalize | None, Any]:
    numbers = [float(x) for x in values if x is not None]
    shades = colormaps["viridis"]
    if len(set(numbers)) < 2:
        return None, shades
    low, high = min(numbers), max(numbers)
    return (LogNorm(low, high) if low > 0 and high / low > _SPREAD else Normalize(low, high)), shades


def _axis(axes: Any, x: int, values: Sequence[Any], level: bool) -> Array:
    """Draw one axis at `x` with its ticks; the heights in [0, 1] of the values, NaN where there is none."""
    axes.axvline(x, color=GREY, lw=0.8, zorder=0)
    known = [value for value in values if value is not None]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    if not numeric or (level and len(set(known)) <= _MOST_LEVELS):
        names = sorted({float(value) for value in known}) if numeric else sorted({str(value) for value in known})
        place = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
        ticks = {height: _label(name) for name, height in place.items()}
        heights = [math.nan if v is None else place[float(v) if numeric else str(v)] for v in values]
    else:
        low, high = min(known), max(known)
        log = low > 0 and high / low > _SPREAD
        scale = math.log10 if log else float
        a, b = scale(low), scale(high)
        span = (b - a) or 1.0
        locator = LogLocator(subs=(1.0, 2.0, 5.0)) if log else MaxNLocator(5)
        inside = [float(t) for t in locator.tick_values(low, high) if low <= t <= high]
        ticks = {(scale(t) - a) / span: _label(t) for t in inside}
        heights = [math.nan if v is None else (scale(v) - a) / span for v in values]
    for height, label in ticks.items():
        axes.plot([x - 0.02, x + 0.02], [height, height], color=GREY, lw=0.8, zorder=0)
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
        axes.text(x + 0.05, height, label, fontsize=SMALL, va="center", color=BLACK, bbox=box, zorder=3)
    return np.array(heights, dtype=float)


def _label(value: Any) -> str:
    if isinstance(value, str):
        return value if len(value) <= 16 else value[:15] + "…"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
