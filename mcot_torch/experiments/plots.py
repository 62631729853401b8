"""Axes for the figures of experiments: one look, small files, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

__all__ = ["COLOURS", "GREY", "last_value", "legend", "log_axis", "panels", "reference", "trend"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
GREY = "#6b6b6b"
_MARKERS = "os^Dvp*"


def panels(n: int, columns: int | None = None, width: float = 8.0, height: float = 3.1) -> tuple[Figure, list[Axes]]:
    """A figure of n panels, at most three side by side."""
    columns = columns or min(n, 3)
    rows = -(-n // columns)
    figure = Figure(
        figsize=(width if columns > 1 else 0.75 * width, height * rows),
        layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07),
    )
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(n)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e8e8e8", lw=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8)
    return figure, axes


def log_axis(axis: Axes, which: str = "xy", ticks: Sequence[float] | None = None) -> None:
    """Logarithmic axes; `ticks` are the values of x that are named, 32 rather than 10^1.5."""
    for name in which:
        getattr(axis, f"set_{name}scale")("log")
        side = axis.xaxis if name == "x" else axis.yaxis
        side.set_minor_formatter(NullFormatter())
        low, high = side.get_view_interval()
        if name == "x" and ticks is not None:
            shown = sorted(set(ticks))
            if len(shown) > 6:
                shown = shown[:: -(-len(shown) // 6)]
            side.set_major_locator(FixedLocator(shown))
            side.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            side.set_minor_locator(FixedLocator([]))
        elif high / low < 30:  # few decades: ticks within them
            side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            side.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def trend(axis: Axes, x: ArrayLike, y: ArrayLike, label: str = "", index: int = 0, line: bool = True) -> None:
    """Points (repeated x are seeds) and the line through their means."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    colour, marker = COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)]
    grid = np.unique(x)
    means = np.array([y[x == value].mean() for value in grid])
    if len(grid) < len(x):
        axis.plot(x, y, marker, color=colour, ms=3, alpha=0.35, mew=0)
    axis.plot(grid, means, marker + ("-" if line else ""), color=colour, ms=4.5, lw=1.4, label=label or None)


def last_value(axis: Axes) -> float:
    """The least of the last values of the lines drawn so far, points apart: where a reference line may start."""
    return min(
        float(np.asarray(line.get_ydata(), dtype=float)[-1]) for line in axis.lines if line.get_linestyle() == "-"
    )


def reference(axis: Axes, x: ArrayLike, exponent: float, at: tuple[float, float], label: str = "") -> None:
    """A dashed power law through one point: the slope that theory predicts."""
    x = np.asarray(x, dtype=np.float64)
    ends = np.array([x.min(), x.max()])
    axis.plot(ends, at[1] * (ends / at[0]) ** exponent, "--", color=GREY, lw=1.1, label=label or None, zorder=1)


def legend(axis: Axes, where: str = "best") -> None:
    """A small legend without a frame's line."""
    axis.legend(loc=where, fontsize=7.5, framealpha=0.85, edgecolor="none", handlelength=1.6)  # type: ignore[call-overload]
