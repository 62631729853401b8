"""The constructions of Section 5 in the manner of the paper's Figures 2 and 3: two concepts that look alike from the path.

One panel a concept, drawn from the graph that `LiftedUnits` builds. A unit stands on its ports, its lanes mirror images of one
another; the height of a state is its distance from the ports, so that the horizon at ρ is a line: below it the panels agree in
every row, above it edges run inside their lanes (p_k = 1, two clusters) or cross (p_k = 0, one).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from numpy.typing import NDArray

from mcot_torch.errors import InputError
from mcot_torch.graphs.families.lifts import ENTRY, PORTS, SIDE, UP, LiftedUnits
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.logic import ball, concept_actions, task_paths
from mcot_torch.report.figures.style import BLACK, BLUE, GREY, ORANGE, SKY, SMALL, TEXT, TITLE, VERMILION, WIDTH, Array

__all__ = ["concept_figure"]

_UNIT = 2.55  # from the middle of a unit to that of the next
_LANE = (0.13, 1.09)  # a lane from the middle of its unit outwards
_PORT_SPOTS = {UP: 0.25, ENTRY: 0.62, SIDE: 0.99}
_FILLS = ("#dfebf5", "#dff0e7")  # clusters: that of lane 0, its twin
_ONE = "#f3ead6"  # both lanes in one cluster
_PANEL = 2.9  # inches
_MOST_UNITS = 4


def concept_figure(units: LiftedUnits, concepts: Sequence[str], bits: Sequence[int]) -> Figure:
    """A panel for each of `concepts`: clusters, hard steps, the path of `bits`, and what can be seen from it.

    Args:
        units: the construction, up to 4 units; up to 32 states a lane stay legible.
        concepts: hidden concepts p such as "10" and "01", one below the other.
        bits: x, where the path makes its detours.
    """
    if units.n_units > _MOST_UNITS:
        raise InputError(f"n_units is {units.n_units}; the figure shows at most {_MOST_UNITS}")
    path = task_paths(units, torch.tensor([list(bits)]))
    spots = _spots(units)
    height = 0.62 + _PANEL * len(concepts) + 0.52
    figure = Figure(figsize=(WIDTH, height))
    for i, concept in enumerate(concepts):
        bottom = (0.52 + _PANEL * (len(concepts) - 1 - i)) / height
        axes = figure.add_axes((0.0, bottom, 1.0, _PANEL / height))
        _draw_panel(axes, units, concept, path, spots)
    seen = "the rows on the path" if units.radius == 0 else f"the rows within {units.radius} of the path"
    title = f"Section 5, ρ = {units.radius}: {seen} are the same, whatever the hidden bits"
    x = ", ".join(map(str, bits))
    told = f"One path, x = ({x}): it takes the detour over e where x is 1. Hidden bits change edges above the horizon only."
    figure.text(0.015, 1 - 0.2 / height, title, size=TITLE, weight="bold", va="center")
    figure.text(0.015, 1 - 0.43 / height, told, size=TEXT, color=GREY, va="center")
    figure.legend(
        handles=_handles(units.radius), loc="lower center", ncols=4, fontsize=SMALL, frameon=False, columnspacing=1.2
    )
    return figure


def _draw_panel(axes: Axes, units: LiftedUnits, concept: str, path: torch.Tensor, spots: Array) -> None:
    graph = units.graph(concept)
    actions = concept_actions(units, graph)
    value = 1 - 2 * int(actions.values(path)[0])
    seen = np.isin(np.arange(graph.n_states), ball(graph, path, units.radius))
    top, right = float(spots[:, 1].max()), float(spots[:, 0].max())

    _draw_clusters(axes, units, concept, top)
    _draw_easy_steps(axes, units, graph, spots, seen)
    _draw_rare_steps(axes, units, graph, path, spots)
    _draw_states(axes, units, path, spots, seen)

    horizon = units.radius + 0.5
    axes.axhline(horizon, color=GREY, lw=0.9, ls=(0, (5, 3)), zorder=2)
    axes.text(-1.38, horizon + 0.08, "out of sight", size=SMALL, color=GREY, va="bottom", ha="center", rotation=90)
    axes.text(-1.38, horizon - 0.1, "in sight", size=SMALL, color=GREY, va="top", ha="center", rotation=90)
    for unit, bit in enumerate(concept):
        told = "two clusters, e is hard and acts as −1" if bit == "1" else "one cluster, e acts as the identity"
        caption = f"$p_{unit} = {bit}$: {told}"
        axes.text(_UNIT * unit, top + 0.42, caption, size=SMALL, ha="center", va="bottom", color=BLACK)
        onward = 0.7 * spots[units.state(unit, 0, SIDE), 0] + 0.3 * spots[units.state(unit + 1, 0, ENTRY), 0]
        for x, y, letter in ((_UNIT * unit - 0.2, -0.6, "e"), (onward, -0.72, "f")):
            axes.text(x, y, letter, size=TEXT, style="italic", ha="center", va="center")
    goal = float(spots[units.goal : units.goal + units.cluster_size, 0].mean())
    sign = "+1" if value > 0 else "−1"
    axes.text(goal, top + 0.42, "goal", size=SMALL, ha="center", va="bottom", color=BLACK)
    axes.text(right, -1.15, f"value of the path: {sign}", size=TITLE, weight="bold", ha="right", color=VERMILION)
    axes.set(xlim=(-1.55, right + 0.3), ylim=(-1.5, top + 0.95))
    axes.set_axis_off()


def _draw_clusters(axes: Axes, units: LiftedUnits, concept: str, top: float) -> None:
    """A box a cluster."""

    def box(left: float, right: float, colour: str) -> None:
        style = "round,pad=0.0,rounding_size=0.12"
        patch = FancyBboxPatch((left, -0.3), right - left, top + 0.6, boxstyle=style, fc=colour, ec="none", zorder=0)
        axes.add_patch(patch)

    inner, outer = 0.04, _LANE[1] + 0.07
    for unit, bit in enumerate(concept):
        middle = _UNIT * unit
        if bit == "0":
            box(middle - outer, middle + outer, _ONE)
        else:
            box(middle + inner, middle + outer, _FILLS[0])
            box(middle - outer, middle - inner, _FILLS[1])
    shift = _goal_shift(units)
    box(shift + inner, shift + outer, "#ececec")


def _draw_easy_steps(
    axes: Axes, units: LiftedUnits, graph: MetastableGraph, spots: Array, seen: NDArray[np.bool_]
) -> None:
    """Lines: those of rows in sight dark, those that cross between lanes in a colour of their own."""
    easy = (graph.probabilities > 2 * graph.epsilon) & (graph.sources < graph.indices)
    pairs = np.stack([graph.sources[easy], graph.indices[easy]], axis=1)
    lanes = pairs // units.cluster_size
    crossing, in_sight = lanes[:, 0] != lanes[:, 1], seen[pairs].any(axis=1)
    for label, chosen, colour, width in (
        ("out of sight", ~crossing & ~in_sight, "#b9c1c8", 0.6),
        ("in sight", ~crossing & in_sight, "#4a5a68", 0.9),
        ("crossing", crossing, VERMILION, 0.8),
    ):
        lines = LineCollection(list(spots[pairs[chosen]]), colors=colour, linewidths=width, zorder=3, label=label)
        axes.add_collection(lines)


def _draw_rare_steps(axes: Axes, units: LiftedUnits, graph: MetastableGraph, path: torch.Tensor, spots: Array) -> None:
    """Arrows for the steps of probability ε, and the path over all."""
    walked = list(pairwise(x for x in path[0].tolist() if x >= 0))
    rare = graph.probabilities <= 2 * graph.epsilon
    steps = list(zip(graph.sources[rare].tolist(), graph.indices[rare].tolist(), strict=True))
    for x, y in [*(step for step in steps if step not in walked), *walked]:
        on_path, is_rare = (x, y) in walked, (x, y) in steps
        if y == units.start and x >= units.goal:
            continue  # back from the goal: across the whole figure, and no part of the task
        far = abs(spots[y, 0] - spots[x, 0])
        bend = 0.0 if not is_rare else (0.32 if far < 1.5 else 0.2)
        # both below the ports, whichever way they go
        arc = f"arc3,rad={bend if spots[y, 0] > spots[x, 0] else -bend}"
        arrow = FancyArrowPatch(
            tuple(spots[x]),
            tuple(spots[y]),
            connectionstyle=arc,
            arrowstyle="-|>,head_length=4.5,head_width=2.2",
            color=ORANGE if on_path else BLUE,
            linewidth=2.0 if on_path else 1.0,
            linestyle=(0, (3, 1.5)) if is_rare else "-",
            shrinkA=5.5,
            shrinkB=5.5,
            zorder=6 if on_path else 5,
        )
        axes.add_patch(arrow)


def _draw_states(axes: Axes, units: LiftedUnits, path: torch.Tensor, spots: Array, seen: NDArray[np.bool_]) -> None:
    """Dots: on the path, in sight, out of sight; the ports carry their letters."""
    on_path = np.isin(np.arange(len(spots)), path[0].numpy())
    port = np.arange(len(spots)) % units.cluster_size < len(PORTS)
    for chosen, face, edge in (
        (~seen & ~on_path, "white", "#8c9aa6"),
        (seen & ~on_path, SKY, BLACK),
        (on_path, ORANGE, BLACK),
    ):
        for size, part in ((3.6, chosen & ~port), (9.5, chosen & port)):
            style: dict[str, Any] = {"s": size**2, "c": face, "edgecolors": edge, "linewidths": 0.6, "zorder": 7}
            axes.scatter(spots[part, 0], spots[part, 1], **style)
    for x in np.flatnonzero(port):
        letter = PORTS[x % units.cluster_size] + ("′" if x < units.goal and x // units.cluster_size % 2 else "")
        axes.text(spots[x, 0], spots[x, 1], letter, size=6.5, ha="center", va="center_baseline", zorder=8)


def _goal_shift(units: LiftedUnits) -> float:
    """The goal has no twin, and moves up to the last unit."""
    return _UNIT * units.n_units - _LANE[1] - 0.15


def _spots(units: LiftedUnits) -> Array:
    """(N, 2): across, from the middle of the unit outwards; upwards, the distance from the ports."""
    m = units.cluster_size
    levels = units.levels
    beside = np.zeros((m, m))
    beside[units.base[:, 0], units.base[:, 1]] = beside[units.base[:, 1], units.base[:, 0]] = 1.0
    across = np.full(m, 0.5 * sum(_LANE))
    for port, x in _PORT_SPOTS.items():
        across[port] = x
    for _ in range(12):  # sweeps: each level in the order of the means of its neighbours, spread evenly
        for level in range(1, int(levels.max()) + 1):
            members = np.flatnonzero(levels == level)
            mean = (beside[members] @ across) / beside[members].sum(axis=1)
            order = members[np.argsort(mean, kind="stable")]
            across[order] = _LANE[0] + (_LANE[1] - _LANE[0]) * (np.arange(len(order)) + 0.5) / len(order)
    rank = np.argsort(np.argsort(across, kind="stable"))
    up = levels + np.where(levels > 0, 0.3 * (rank % 3 - 1), 0.0)  # or edges of one level would lie on one line
    lane = np.stack([across, up], axis=1)
    mirrored = lane * np.array([-1.0, 1.0])
    shifts = [np.array([_UNIT * unit, 0.0]) for unit in range(units.n_units)]
    parts = [part + shift for shift in shifts for part in (lane, mirrored)]
    return np.concatenate([*parts, lane + np.array([_goal_shift(units), 0.0])])


def _handles(radius: int) -> list[Line2D]:
    def dot(face: str, edge: str, label: str) -> Line2D:
        return Line2D([], [], ls="", marker="o", mfc=face, mec=edge, ms=6.5, mew=0.6, label=label)

    dashes = (0, (3, 1.5))
    near = [dot(SKY, BLACK, f"state within {radius} of it: row in sight")] if radius else []
    return [
        Line2D([], [], color=ORANGE, lw=2.0, label="path (dashed: its rare steps)"),
        Line2D([], [], color=BLUE, lw=1.0, ls=dashes, label="other steps of probability ε"),
        dot(ORANGE, BLACK, "state on the path"),
        *near,
        Line2D([], [], color="#4a5a68", lw=0.9, label="easy step of a row in sight"),
        Line2D([], [], color="#b9c1c8", lw=0.9, label="easy step out of sight"),
        Line2D([], [], color=VERMILION, lw=0.9, label="crosses between the lanes"),
        dot("white", "#8c9aa6", "state out of sight"),
    ]
