"""Curves of many runs over one another, a colour a group, thin for a run and thick for the middle of its group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from mcot_torch.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SMALL,
    TEXT,
    TITLE,
    VERMILION,
    WIDTH,
    Array,
    few_decades,
    plain,
    thousands,
)

__all__ = ["GROUP_COLOURS", "GroupCurve", "Panel", "compare_figure"]

GROUP_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, GREY)
"""Of the groups in their order, again from the first after the last."""


@dataclass(frozen=True)
class GroupCurve:
    """One line of a panel: a run of a group, or the middle of the group.

    Attributes:
        group: number of its group.
        who: "teacher" (solid) or "student" (dashed).
        x, y: (n,) points.
        middle: the middle of a group rather than one of its runs.
    """

    group: int
    who: str
    x: Array
    y: Array
    middle: bool = False


@dataclass
class Panel:
    """Curves over common axes."""

    title: str
    xlabel: str
    ylabel: str
    log_x: bool = False
    log_y: bool = False
    curves: list[GroupCurve] = field(default_factory=list)


def compare_figure(panels: Sequence[Panel], names: Sequence[str]) -> Figure:
    """Panels two in a row under one legend of the groups.

    Args:
        panels: with at least one curve each.
        names: of the groups.
    """
    rows = max(1, -(-len(panels) // 2))
    figure = Figure(figsize=(WIDTH, 2.7 * rows + 0.35 + 0.2 * len(names)), layout="constrained")
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, min(2, max(1, len(panels))), i + 1)
        for curve in panel.curves:
            axes.plot(
                curve.x,
                curve.y,
                color=GROUP_COLOURS[curve.group % len(GROUP_COLOURS)],
                ls="-" if curve.who == "teacher" else (0, (4, 1.6)),
                lw=2.2 if curve.middle else 0.7,
                alpha=1.0 if curve.middle else 0.45,
            )
        axes.set_xscale("log" if panel.log_x else "linear")
        axes.set_yscale("log" if panel.log_y else "linear")
        axes.set_title(panel.title, fontsize=TITLE, loc="left", weight="bold")
        axes.set_xlabel(panel.xlabel, fontsize=TEXT)
        axes.set_ylabel(panel.ylabel, fontsize=TEXT)
        plain(axes)
        if not panel.log_x:
            axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        if panel.log_y:
            few_decades(axes)
    handles = [
        Line2D([], [], color=GROUP_COLOURS[i % len(GROUP_COLOURS)], lw=2.2, label=name) for i, name in enumerate(names)
    ]
    handles.append(Line2D([], [], color=GREY, lw=1.5, label="solid: teacher"))
    handles.append(Line2D([], [], color=GREY, lw=1.5, ls=(0, (4, 1.6)), label="dashed: student"))
    handles.append(Line2D([], [], color=GREY, lw=0.7, label="thin: one run; thick: interquartile mean"))
    columns = 2 if max(map(len, names), default=0) > 24 else 3
    figure.legend(handles=handles, loc="outside upper left", fontsize=SMALL, frameon=False, ncols=columns)
    return figure
