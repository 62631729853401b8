"""What the stages logged as they ran, a panel a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from mcot_torch.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    PURPLE,
    SKY,
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

__all__ = ["training_figure"]


class _Panel(NamedTuple):
    """One panel of the training figure: metric -> (label, colour) of one stage."""

    stage: str
    title: str
    ylabel: str
    metrics: dict[str, tuple[str, str]]
    log: bool = False
    scales: tuple[str, ...] = ()
    x: str = "step"
    xlabel: str = "optimiser steps"


_HARD_STEPS = {"hard_step_min": ("min", SKY), "hard_step_mean": ("mean", BLUE), "hard_step_max": ("max", PURPLE)}
_PANELS = [
    _Panel("pretrain", "pretrain: loss", "cross-entropy (nats a step)", {"loss": ("loss", BLUE)}),
    _Panel(
        "pretrain",
        "pretrain: error",
        "distance to the graph's rows",
        {"sup_error": ("sup |p̂ − p|", VERMILION), "row_tv_max": ("row TV, max", BLUE)},
        log=True,
    ),
    _Panel("pretrain", "pretrain: hard steps", "probability a step", _HARD_STEPS, log=True, scales=("ε",)),
    _Panel(
        "pretrain",
        "pretrain: support",
        "share of edges",
        {"support_recall": ("recall", BLUE), "support_precision": ("precision", VERMILION)},
    ),
    _Panel(
        "search",
        "search: edges found",
        "edges in Ê",
        {"edges": ("edges", BLUE)},
        x="transitions",
        xlabel="transitions (steps)",
    ),
    _Panel(
        "ppo", "PPO: hard steps", "probability a step", _HARD_STEPS, log=True, scales=("ε", "ε_max"), xlabel="rounds"
    ),
    _Panel(
        "ppo",
        "PPO: update and distance",
        "value (KL in nats)",
        {
            "approx_kl": ("approx. KL", BLUE),
            "tv_to_optimum_max": ("TV to optimum, max", VERMILION),
            "clip_fraction": ("clip fraction", GREEN),
        },
        log=True,
        xlabel="rounds",
    ),
    _Panel(
        "ppo",
        "PPO: reward, entropy",
        "reward a step; nats",
        {"mean_reward": ("mean reward", GREEN), "entropy": ("entropy", BLUE)},
        log=True,
        xlabel="rounds",
    ),
    _Panel("distill", "distill: loss", "cross-entropy (nats a pair)", {"loss": ("loss", PURPLE)}),
]


def training_figure(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], epsilon: float | None = None, epsilon_max: float | None = None
) -> Figure:
    """What the stages logged, a panel a question; panels without data are left out.

    Args:
        histories: stage (pretrain, search, ppo, distill) -> logged lines {"step": ..., metric: value}.
        epsilon: ε, drawn as a line where hard-step probabilities are shown.
        epsilon_max: ε_max, likewise.
    """
    filled = []
    for panel in _PANELS:
        series = {m: _series(histories.get(panel.stage) or (), panel, m) for m in panel.metrics}
        series = {m: xy for m, xy in series.items() if len(xy)}
        if series:
            filled.append((panel, series))
    columns = max(1, min(3, len(filled)))
    rows = max(1, -(-len(filled) // columns))
    figure = Figure(figsize=(WIDTH, 2.35 * rows + 0.15), layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.06))
    if not filled:
        figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center", size=TITLE)
    for i, (panel, series) in enumerate(filled):
        axes = figure.add_subplot(rows, columns, i + 1)
        for metric, xy in series.items():
            label, colour = panel.metrics[metric]
            marker = "o" if len(xy) < 4 else None
            axes.plot(*xy.T, color=colour, lw=1.5, ms=3, marker=marker, label=label)
        for value, text, style in ((epsilon, "ε", ":"), (epsilon_max, "ε_max", "--")):
            if value is not None and text in panel.scales:
                axes.axhline(value, color=BLACK, lw=1.0, ls=style, label=text)
        _finish_panel(axes, panel, np.concatenate([xy for xy in series.values()]))
    return figure


def _series(lines: Sequence[Mapping[str, Any]], panel: _Panel, metric: str) -> Array:
    """(n, 2) finite values of one metric over the panel's x; only positive ones for a logarithmic panel."""
    points = [(line[panel.x], line[metric]) for line in lines if None not in (line.get(panel.x), line.get(metric))]
    if points and panel.stage == "search":  # which begins with nothing
        points.insert(0, (0, 0))
    xy = np.array(points, dtype=np.float64).reshape(-1, 2)
    return xy[np.isfinite(xy).all(1) & ((xy[:, 1] > 0) | (not panel.log))]


def _finish_panel(axes: Axes, panel: _Panel, xy: Array) -> None:
    axes.set_title(panel.title, fontsize=TEXT, loc="left", weight="bold")
    axes.set_xlabel(panel.xlabel, fontsize=SMALL)
    axes.set_ylabel(panel.ylabel, fontsize=SMALL)
    plain(axes)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    if panel.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        low = max(low, 1e-6 * high)  # what is smaller still would press the rest together
        axes.set_ylim(low, high)
        few_decades(axes)
    elif panel.ylabel.startswith("share"):
        axes.set_ylim(min(0.0, xy[:, 1].min()), 1.05)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    if len(axes.lines) > 1:
        axes.legend(fontsize=7, framealpha=0.85, edgecolor="none", borderpad=0.2, handlelength=1.4, labelspacing=0.25)
