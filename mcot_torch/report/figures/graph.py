"""The graph with its hard steps, in the manner of the paper's Figure 1, and the meta-chain beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from numpy.typing import ArrayLike

from mcot_torch.chains import pair_kernel
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task
from mcot_torch.report.figures.layout import bent, easy_pairs, ring, start_clusters, state_spots
from mcot_torch.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    SMALL,
    TEXT,
    TITLE,
    VERMILION,
    WIDTH,
    Array,
)

__all__ = ["graph_figure"]

_NUMBERED = 64  # most states that are numbered or named one by one
_MARKED = 4  # most start or target states that are marked one by one
_LINE = 0.165  # inches, a line of the names
_DRAWN_EDGES = 6000  # most easy steps that are drawn


class _Kind(NamedTuple):
    """How one kind of hard step is drawn."""

    name: str
    colour: str
    style: Any


_HARD = _Kind("hard step", BLUE, "-")
_FOUND = _Kind("hard step, found", BLUE, "-")
_MISSED = _Kind("hard step, missed", VERMILION, (0, (3.0, 1.6)))
_FALSE = _Kind("false: no hard step", BLACK, (0, (1.0, 1.2)))


def graph_figure(graph: MetastableGraph, found_edges: ArrayLike | None = None, task: Task | None = None) -> Figure:
    """Clusters on a circle, clockwise from C_0 at the top, with their hard steps, and beside them the meta-chain q°.

    Large graphs show less, and the caption says what was left out: states first lose their easy steps, then their dots.
    Up to 64 states are numbered; their names, if they have any, stand below.

    Args:
        graph: N states in K clusters.
        found_edges: (n, 2) steps that search took for hard ones; None draws all hard steps alike.
        task: marks where a chain of thought starts and what it must reach.
    """
    k = graph.n_clusters
    numbered = graph.n_states <= _NUMBERED
    key = _name_key(graph)
    side, caption = 4.75, 0.5
    height = side + caption + sum(max(map(len, group)) for group in key) * _LINE + 0.1 * bool(key)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.0, (height - side - caption) / height, side / WIDTH, side / height))
    meta_side = WIDTH - side - 0.15
    meta = figure.add_axes(
        ((side + 0.1) / WIDTH, (height - caption - meta_side) / height, meta_side / WIDTH, meta_side / height)
    )

    centres, radius = ring(k)
    limit = 1.0 + radius + 0.2
    scale = side * 72 / (2 * limit)  # points a unit
    dot = min(13.0 if numbered else 4.5, 1.1 * radius * scale / graph.cluster_size**0.5)
    hard = {(int(x), int(y)) for x, y in graph.sparse_edges}
    if found_edges is None:
        groups = {_HARD: sorted(hard)}
    else:
        found = {(int(x), int(y)) for x, y in np.asarray(found_edges).reshape(-1, 2)}
        groups = {_FOUND: sorted(hard & found), _MISSED: sorted(hard - found), _FALSE: sorted(found - hard)}
    steps = np.array(sorted(set().union(*groups.values())), dtype=np.int64).reshape(-1, 2)
    with_dots = dot >= 1.2
    spots = state_spots(graph, centres, radius - 0.7 * dot / scale, steps, with_dots)

    omitted = _draw_clusters(axes, graph, spots, centres, radius, dot, task)
    width = float(np.clip(20 / k, 0.5, 1.4)) * min(1.0, (400 / max(len(steps), 1)) ** 0.5)
    gap = 0.5 * dot if with_dots else 0.5
    for kind, edges in groups.items():
        if edges:
            ends = np.array(edges)
            _arrows(axes, spots[ends[:, 0]], spots[ends[:, 1]], np.full(len(ends), width), kind, scale, gap)
    _mark_states(axes, graph, spots, centres, dot, task)
    if numbered and dot > 8:
        short = graph.names is not None and not key
        goals = set() if task is None or len(task.target) > _MARKED else set(task.target.tolist())
        for x, (a, b) in enumerate(spots):
            text, colour = graph.name(x) if short else str(x), "white" if x in goals else BLACK
            at: dict[str, Any] = {"ha": "center", "va": "center_baseline", "zorder": 9}
            axes.text(a, b, text, size=7, color=colour, parse_math=False, **at)
    _frame(axes, limit)
    _cluster_labels(axes, centres, 1.0 + radius + 0.1, TEXT)

    largest = _draw_meta_chain(meta, graph, meta_side)
    _graph_legend(figure, graph, groups, task, (side + 0.15) / WIDTH, (height - caption - meta_side) / height)
    title = f"{graph.n_states:,} states in {k} clusters, {len(hard):,} hard steps of ε = {graph.epsilon:.3g} a step"
    figure.text(0.015, 1 - 0.19 / height, title, size=TITLE, va="center", weight="bold")
    if task is not None:
        line = _clip(f"Task: {_typeset(task.description)}", 66)
        figure.text(0.015, 1 - 0.41 / height, line, size=TEXT, va="center", color=GREY, parse_math=False)
    foot = (height - caption - side + 0.1) / height
    figure.text((side + 0.25) / WIDTH, foot, omitted, size=SMALL, color=GREY)
    figure.text(
        (side + 0.1 + meta_side / 2) / WIDTH,
        1 - 0.41 / height,
        f"meta-chain: arrow width is q°(l|k) ≤ {largest:.2g} a step",
        size=SMALL,
        ha="center",
        va="center",
    )
    _draw_key(figure, key, height)
    return figure


def _frame(axes: Axes, limit: float) -> None:
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes.set_axis_off()


def _draw_clusters(
    axes: Axes, graph: MetastableGraph, spots: Array, centres: Array, radius: float, dot: float, task: Task | None
) -> str:
    """Blobs, easy steps and states; returns what the caption must say about what was left out."""
    starts = start_clusters(graph, task)
    faces = ["#fbe8c3" if k in starts else "#eef2f5" for k in range(graph.n_clusters)]
    rims = [ORANGE if k in starts else LIGHT for k in range(graph.n_clusters)]
    blobs = [Circle((x, y), radius) for x, y in centres]
    axes.add_collection(PatchCollection(blobs, facecolors=faces, edgecolors=rims, linewidths=1.2, zorder=1))
    pairs = easy_pairs(graph)
    if dot < 1.2:
        return f"Not drawn: {graph.n_states:,} states and their easy steps."
    options: dict[str, Any] = {"linewidths": 0.6, "edgecolors": GREY, "zorder": 5}
    axes.scatter(spots[:, 0], spots[:, 1], s=dot**2, c="white" if dot > 8 else "#8c9aa6", **options)
    if dot < 2.0 or len(pairs) > _DRAWN_EDGES:
        return "Easy steps are not drawn."
    axes.add_collection(LineCollection(list(spots[pairs]), linewidths=0.5, colors="#a9b2ba", zorder=3))
    return ""


def _mark_states(
    axes: Axes, graph: MetastableGraph, spots: Array, centres: Array, dot: float, task: Task | None
) -> None:
    """Entry states as diamonds, the start as a triangle where it is a state, the target as a star."""
    size, numbered = max(dot, 3.0), dot > 8  # a number must fit on a marker

    def mark(at: Array, diameter: float, shape: str, face: str, zorder: int) -> None:
        edge: dict[str, Any] = {"edgecolors": BLACK, "linewidths": 0.8}
        axes.scatter(at[:, 0], at[:, 1], s=diameter**2, marker=shape, c=face, zorder=zorder, **edge)

    mark(spots[graph.entries[graph.entries >= 0]], 1.15 * size, "D", "white", 6)
    if task is None:
        return
    starts = np.flatnonzero(task.start)
    if len(starts) <= _MARKED:
        mark(spots[starts], size if numbered else 1.9 * size, "o" if numbered else "^", ORANGE, 7)
    many = len(task.target) > _MARKED
    stars = centres[np.unique(graph.clusters[task.target])] if many else spots[task.target]
    mark(stars, max(12.0, 2.0 * size), "*", GREEN, 7)


def _arrows(axes: Axes, tails: Array, heads: Array, widths: Array, kind: _Kind, scale: float, gap: float) -> None:
    """Bent arrows as two collections; widths and the gap at both ends in points, `scale` points a unit."""
    arrows = bent(tails, heads, widths, scale, gap)
    begin, neck = arrows.begin, arrows.neck
    curve = arrows.at(begin + np.linspace(0, 1, 20)[:, None] * (neck - begin)).transpose(1, 0, 2)  # (n, 20, 2)
    tip, base = arrows.at(arrows.end), arrows.at(neck)
    across = np.stack([base[:, 1] - tip[:, 1], tip[:, 0] - base[:, 0]], axis=1) * 0.42
    options = {"linewidths": widths, "colors": kind.colour, "linestyles": [kind.style], "capstyle": "butt"}
    alpha = float(np.clip(400 / len(tails), 0.25, 1.0))
    axes.add_collection(LineCollection(list(curve), alpha=alpha, label=kind.name, zorder=4, **options))
    triangles = np.stack([tip, base + across, base - across], axis=1)
    axes.add_collection(
        PolyCollection(list(triangles), facecolors=kind.colour, edgecolors="none", alpha=alpha, zorder=8)
    )


def _cluster_labels(axes: Axes, centres: Array, distance: float, size: float) -> None:
    every = -(-len(centres) // 32)
    for k, (x, y) in enumerate(centres):
        if k % every == 0:
            text = _typeset(f"C_{k}")
            axes.text(distance * x, distance * y, text, size=size, ha="center", va="center", color=BLACK)


def _draw_meta_chain(axes: Axes, graph: MetastableGraph, side: float) -> float:
    """K nodes and q° as arrows; returns the largest hop probability."""
    k = graph.n_clusters
    q = pair_kernel(graph.to_scipy(), graph.clusters, k)
    np.fill_diagonal(q, 0.0)
    largest = float(q.max())
    pairs = np.argwhere(q > 0)
    centres, radius = ring(k)
    radius = min(0.5 * radius, 0.16)
    limit = 1.0 + (radius + 0.06 if k <= 16 else 0.25)
    scale = side * 72 / (2 * limit)
    widest = float(np.clip(22 / k, 0.7, 3.0))
    widths = np.maximum(widest * q[pairs[:, 0], pairs[:, 1]] / largest, 0.25)
    kind = _Kind("q°(l|k)", BLUE, "-")
    _arrows(axes, centres[pairs[:, 0]], centres[pairs[:, 1]], widths, kind, scale, radius * scale + 0.5)
    blobs = [Circle((x, y), radius) for x, y in centres]
    axes.add_collection(PatchCollection(blobs, facecolors="#eef2f5", edgecolors=GREY, linewidths=0.8, zorder=5))
    if k <= 16:
        for i, (x, y) in enumerate(centres):
            axes.text(x, y, str(i), size=SMALL, ha="center", va="center_baseline", zorder=9)
    else:
        _cluster_labels(axes, centres, 1.14, 7)
    _frame(axes, limit)
    return largest


def _graph_legend(
    figure: Figure,
    graph: MetastableGraph,
    groups: Mapping[_Kind, Sequence[Any]],
    task: Task | None,
    left: float,
    top: float,
) -> None:
    def marker(symbol: str, face: str, label: str, size: float = 6, edge: str = BLACK) -> Line2D:
        return Line2D([], [], ls="", marker=symbol, mfc=face, mec=edge, ms=size, mew=0.8, label=label)

    handles: list[Any] = [
        Line2D([], [], color=kind.colour, ls=kind.style, lw=1.6, label=f"{kind.name} ({len(edges):,})")
        for kind, edges in groups.items()
    ]
    if (graph.entries >= 0).any():
        handles.append(marker("D", "white", "entry state of a cluster"))
    if task is not None:
        if start_clusters(graph, task):
            handles.append(marker("o", "#fbe8c3", "start cluster", 10, ORANGE))
        if np.count_nonzero(task.start) <= _MARKED:
            handles.append(marker("o" if graph.n_states <= _NUMBERED else "^", ORANGE, "start state", 7))
        many = len(task.target) > _MARKED
        handles.append(marker("*", GREEN, "target: any state of the cluster" if many else "target state", 11))
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(left, top), fontsize=SMALL + 0.5, frameon=False)


def _name_key(graph: MetastableGraph) -> list[list[list[str]]]:
    """Names by number, for graphs whose states are numbered: groups of five columns, each the lines of a cluster."""
    if graph.names is None or graph.n_states > _NUMBERED or max(map(len, graph.names)) <= 3:
        return []
    columns = [
        [_typeset(f"C_{k}"), *(f"{x}  {graph.name(int(x))}" for x in graph.members(k))] for k in range(graph.n_clusters)
    ]
    return [columns[i : i + 5] for i in range(0, len(columns), 5)]


def _draw_key(figure: Figure, key: list[list[list[str]]], height: float) -> None:
    """The names at the foot of a figure of `height` inches, columns as wide as their names, which are cut to fit."""
    font, renderer = FontProperties(size=7), FigureCanvasAgg(figure).get_renderer()
    y = sum(max(map(len, group)) for group in key) * _LINE + 0.06
    for group in key:
        for length in range(60, 5, -1):
            cut = [[_clip(text, length) for text in column] for column in group]
            inches = [
                max(renderer.get_text_width_height_descent(text, font, ismath=False)[0] for text in column) / figure.dpi
                for column in cut
            ]
            if sum(inches) + 0.12 * len(group) <= WIDTH - 0.12:
                break
        gap = (WIDTH - 0.12 - sum(inches)) / max(len(group), 4)
        x = 0.12
        for column, width in zip(cut, inches, strict=True):
            for i, text in enumerate(column):
                at = (x / WIDTH, (y - _LINE * (i + 0.5)) / height)
                weight = "normal" if i else "bold"
                figure.text(*at, text, size=7, va="center", weight=weight, color=BLACK, parse_math=False)
            x += width + gap
        y -= max(map(len, group)) * _LINE


def _typeset(text: str) -> str:
    """C_12 with its index below the line, and a proper arrow."""
    low = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    return re.sub(r"\bC_(\d+)", lambda m: "C" + m[1].translate(low), text).replace(" -> ", " → ")


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
