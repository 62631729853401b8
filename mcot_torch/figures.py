"""The figures of a run as PNG files: the graph with its hard steps, hitting times, kernels, survival, training curves.

Data in, picture out: `*_figure` returns a matplotlib `Figure` (no pyplot, no global state) and `save` writes it as a PNG.
A figure is 1,200 pixels wide and made to be read at 800. Models keep their colours from figure to figure, a palette
that colour-blind readers can tell apart (Okabe and Ito). The same data give the same bytes.

Nothing is computed here but layouts, empirical survival and the pair kernel q° beside the graph.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection, PolyCollection
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray
from scipy import sparse as sp
from scipy.sparse.csgraph import shortest_path

from mcot_torch.chains import pair_kernel
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task

__all__ = [
    "MODEL_COLOURS",
    "empirical_survival",
    "graph_figure",
    "hitting_time_figure",
    "kernel_figure",
    "model_colour",
    "save",
    "survival_figure",
    "training_figure",
]

Array = NDArray[np.float64]
Row = Mapping[str, Any]

BLACK, GREY, LIGHT = "#222222", "#6b6b6b", "#c4c4c4"
BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
MODEL_COLOURS = {"base": GREY, "pretrained": BLUE, "guided": ORANGE, "tuned": GREEN, "student": PURPLE}

_DPI = 150
_WIDTH = 8.0  # inches
_SMALL, _TEXT, _TITLE = 8, 9, 10  # points: 11, 12.5 and 14 pixels at 800
_FLOOR = 1e-6  # of the colours of a kernel
_CELLS = 320  # most cells of a row of kernels
_NUMBERED = 64  # most states that are numbered or named one by one
_MARKED = 4  # most start or target states that are marked one by one
_HATCH = {"exact": None, "lifted": "////", "averaged": "...."}  # of the bars
_LINE = 0.165  # inches, a line of the names
_DRAWN_EDGES = 6000  # most easy steps that are drawn


def model_colour(name: str) -> str:
    """The colour of a model in every figure; two spare ones for names that are not of the pipeline."""
    return MODEL_COLOURS.get(name, (SKY, VERMILION)[sum(map(ord, name)) % 2])


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG without metadata; the name appears only when the file is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a state name in a script that the font lacks
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
    temporary.replace(path)
    return path


# ---- the graph -----------------------------------------------------------------------------------------------------


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
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((0.0, (height - side - caption) / height, side / _WIDTH, side / height))
    meta_side = _WIDTH - side - 0.15
    meta = figure.add_axes(
        ((side + 0.1) / _WIDTH, (height - caption - meta_side) / height, meta_side / _WIDTH, meta_side / height)
    )

    centres, radius = _ring(k)
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
    spots = _state_spots(graph, centres, radius - 0.7 * dot / scale, steps, with_dots)

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
    _cluster_labels(axes, centres, 1.0 + radius + 0.1, _TEXT)

    largest = _draw_meta_chain(meta, graph, meta_side)
    _graph_legend(figure, graph, groups, task, (side + 0.15) / _WIDTH, (height - caption - meta_side) / height)
    title = f"{graph.n_states:,} states in {k} clusters, {len(hard):,} hard steps of ε = {graph.epsilon:.3g} a step"
    figure.text(0.015, 1 - 0.19 / height, title, size=_TITLE, va="center", weight="bold")
    if task is not None:
        line = _clip(f"Task: {_typeset(task.description)}", 66)
        figure.text(0.015, 1 - 0.41 / height, line, size=_TEXT, va="center", color=GREY, parse_math=False)
    foot = (height - caption - side + 0.1) / height
    figure.text((side + 0.25) / _WIDTH, foot, omitted, size=_SMALL, color=GREY)
    figure.text(
        (side + 0.1 + meta_side / 2) / _WIDTH,
        1 - 0.41 / height,
        f"meta-chain: arrow width is q°(l|k) ≤ {largest:.2g} a step",
        size=_SMALL,
        ha="center",
        va="center",
    )
    _draw_key(figure, key, height)
    return figure


def _ring(k: int) -> tuple[Array, float]:
    """(k, 2) centres on the unit circle, clockwise from the top (two side by side), and the radius of the blobs."""
    angle = np.pi / 2 - 2 * np.pi * np.arange(k) / k + (np.pi / 2 if k == 2 else 0.0)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1), min(0.6, 0.8 * float(np.sin(np.pi / k)))


def _frame(axes: Axes, limit: float) -> None:
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes.set_axis_off()


def _state_spots(
    graph: MetastableGraph, centres: Array, radius: float, steps: NDArray[np.int64], inside: bool
) -> Array:
    """(N, 2) where the states lie; without `inside` only the ends of `steps` are placed with care."""
    labels = graph.clusters
    spots = centres[labels].copy()
    towards = centres[labels[steps[:, ::-1]]] - centres[labels[steps]]  # (n, 2 ends, 2)
    towards /= np.maximum(np.linalg.norm(towards, axis=2, keepdims=True), 1e-9)
    if not inside:
        spots[steps[:, 0]] += 0.9 * radius * towards[:, 0]
        return spots
    for cluster in range(graph.n_clusters):
        members = graph.members(cluster)
        layout = _layout(graph, members)
        ends = labels[steps] == cluster
        local = layout[np.searchsorted(members, steps[ends])]
        spots[members] += radius * _turned(layout, local, towards[ends])
    return spots


def _layout(graph: MetastableGraph, members: NDArray[np.int64]) -> Array:
    """(m, 2) states of one cluster in the unit disc, by stress majorisation of their distances along easy steps."""
    m = len(members)
    if m == 1:
        return np.zeros((1, 2))
    angle = 2 * np.pi * np.arange(m) / m
    circle = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    block = graph.to_scipy()[members][:, members]
    distance = shortest_path(sp.csr_array(block > 0), directed=False, unweighted=True)
    distance = np.where(np.isfinite(distance), distance, m)
    if distance[~np.eye(m, dtype=bool)].max() == 1:  # complete: no distances to show
        return circle
    centred = distance**2 - (distance**2).mean(0) - (distance**2).mean(1, keepdims=True) + (distance**2).mean()
    values, vectors = np.linalg.eigh(-0.5 * centred)
    spots = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0.0)) + 1e-3 * circle
    for _ in range(60):  # SMACOF: the Guttman transform of de Leeuw
        apart = np.linalg.norm(spots[:, None] - spots[None], axis=2)
        pull = -distance / np.where(apart > 1e-9, apart, np.inf)
        np.fill_diagonal(pull, 0.0)
        np.fill_diagonal(pull, -pull.sum(1))
        spots = pull @ spots / m
    spots -= (spots.max(0) + spots.min(0)) / 2
    return spots / np.linalg.norm(spots, axis=1).max()


def _turned(layout: Array, ends: Array, towards: Array) -> Array:
    """The layout rotated, and mirrored if that helps, so that the ends of hard steps face where these go."""
    best, turned = -np.inf, layout
    for mirror in (np.array([1.0, 1.0]), np.array([-1.0, 1.0])):
        p = ends * mirror
        dot, cross = float((p * towards).sum()), float((p[:, 0] * towards[:, 1] - p[:, 1] * towards[:, 0]).sum())
        if np.hypot(dot, cross) > best + 1e-9:
            best, angle = np.hypot(dot, cross), np.arctan2(cross, dot)
            c, s = np.cos(angle), np.sin(angle)
            turned = layout * mirror @ np.array([[c, s], [-s, c]])
    return turned


def _draw_clusters(
    axes: Axes, graph: MetastableGraph, spots: Array, centres: Array, radius: float, dot: float, task: Task | None
) -> str:
    """Blobs, easy steps and states; returns what the caption must say about what was left out."""
    starts = _start_clusters(graph, task)
    faces = ["#fbe8c3" if k in starts else "#eef2f5" for k in range(graph.n_clusters)]
    rims = [ORANGE if k in starts else LIGHT for k in range(graph.n_clusters)]
    blobs = [Circle((x, y), radius) for x, y in centres]
    axes.add_collection(PatchCollection(blobs, facecolors=faces, edgecolors=rims, linewidths=1.2, zorder=1))
    easy = ~graph.hard & (graph.sources != graph.indices)
    pairs = np.unique(np.sort(np.stack([graph.sources[easy], graph.indices[easy]], axis=1), axis=1), axis=0)
    if dot < 1.2:
        return f"Not drawn: {graph.n_states:,} states and their easy steps."
    options: dict[str, Any] = {"linewidths": 0.6, "edgecolors": GREY, "zorder": 5}
    axes.scatter(spots[:, 0], spots[:, 1], s=dot**2, c="white" if dot > 8 else "#8c9aa6", **options)
    if dot < 2.0 or len(pairs) > _DRAWN_EDGES:
        return "Easy steps are not drawn."
    axes.add_collection(LineCollection(list(spots[pairs]), linewidths=0.5, colors="#a9b2ba", zorder=3))
    return ""


def _start_clusters(graph: MetastableGraph, task: Task | None) -> set[int]:
    """Clusters in which a task may start; none where it may start in all of them."""
    inside = set() if task is None else set(graph.clusters[task.start > 0].tolist())
    return inside if len(inside) < graph.n_clusters else set()


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
    """Bent arrows as two collections; widths and the gap at both ends in points, `scale` points a unit.

    Clockwise steps bend into the ring of clusters and the others out of it, short ones more: so they keep apart.
    """
    span = heads - tails
    length = np.maximum(np.linalg.norm(span, axis=1), 1e-9) * scale  # points
    bend = 0.16 + 0.8 * np.maximum(0.0, 1.0 - 2.5 * length[:, None] / scale)
    control = (tails + heads) / 2 + bend * np.stack([span[:, 1], -span[:, 0]], axis=1)
    tip_size = np.minimum(2.5 + 1.9 * widths, 0.4 * length)
    end = 1 - np.minimum(gap / length, 0.25)
    begin = 1 - end
    neck = np.maximum(end - tip_size / length, begin)

    def at(t: Array) -> Array:
        t = t[..., None]
        return (1 - t) ** 2 * tails + 2 * t * (1 - t) * control + t**2 * heads

    curve = at(begin + np.linspace(0, 1, 20)[:, None] * (neck - begin)).transpose(1, 0, 2)  # (n, 20, 2)
    tip, base = at(end), at(neck)
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
    centres, radius = _ring(k)
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
            axes.text(x, y, str(i), size=_SMALL, ha="center", va="center_baseline", zorder=9)
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
        if _start_clusters(graph, task):
            handles.append(marker("o", "#fbe8c3", "start cluster", 10, ORANGE))
        if np.count_nonzero(task.start) <= _MARKED:
            handles.append(marker("o" if graph.n_states <= _NUMBERED else "^", ORANGE, "start state", 7))
        many = len(task.target) > _MARKED
        handles.append(marker("*", GREEN, "target: any state of the cluster" if many else "target state", 11))
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(left, top), fontsize=_SMALL + 0.5, frameon=False)


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
            if sum(inches) + 0.12 * len(group) <= _WIDTH - 0.12:
                break
        gap = (_WIDTH - 0.12 - sum(inches)) / max(len(group), 4)
        x = 0.12
        for column, width in zip(cut, inches, strict=True):
            for i, text in enumerate(column):
                at = (x / _WIDTH, (y - _LINE * (i + 0.5)) / height)
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


# ---- hitting times -------------------------------------------------------------------------------------------------


def hitting_time_figure(models: Mapping[str, Row]) -> Figure:
    """Expected hitting time of X_out: exact as a bar with its number, raw as a tick, sampled mean with its 95 % interval.

    Args:
        models: model -> row of evaluation.json: `unit`, `hitting_time_exact`, `hitting_time_exact_raw`,
            `hitting_time_sampled` {mean, low, high, n, censored, horizon} and, for the student, `lifted_steps` with
            `lifted_steps_low` and `lifted_steps_high`. Each may be missing or None. Where walks were censored the mean
            is a restricted one: hollow. Where `exact` is None, `hitting_time_context_averaged` is the bar.
    """
    bars: list[tuple[str, str, str, Row]] = []  # label, colour, unit, row
    for name, row in models.items():
        bars.append((name, model_colour(name), str(row.get("unit") or "steps"), row))
        lifted = row.get("lifted_steps")
        if lifted is not None:
            ends = {key: row.get(f"lifted_steps_{key}") for key in ("low", "high")}
            sample = None if None in ends.values() else {"mean": lifted, **ends}
            both = {"hitting_time_exact": lifted, "hitting_time_sampled": sample, "lifted": True}
            bars.append((f"{name}, lifted", model_colour(name), "steps", both))
    figure = Figure(figsize=(_WIDTH, 1.35 + 0.46 * max(len(bars), 1)), layout="constrained")
    axes = figure.add_subplot()
    seen: set[str] = set()
    numbers = [v for *_, row in bars for v in _row_numbers(row)]
    low, high = min([1.0, *(0.5 * v for v in numbers)]), max([10.0, *numbers])
    for y, (_, colour, unit, row) in enumerate(bars):
        exact, raw = row.get("hitting_time_exact"), row.get("hitting_time_exact_raw")
        sample = row.get("hitting_time_sampled") or {}
        mean, cut = sample.get("mean"), sample.get("censored") or 0
        averaged = row.get("hitting_time_context_averaged") if exact is None else None
        bar = exact if exact is not None else averaged
        if bar is not None:
            kind = "lifted" if row.get("lifted") else "exact" if exact is not None else "averaged"
            style: dict[str, Any] = {"color": colour, "alpha": 0.55, "hatch": _HATCH[kind], "edgecolor": "white"}
            axes.barh(y, bar - low, left=low, height=0.62, **style)
            seen.add(kind)
        if raw is not None:
            axes.plot([raw, raw], [y - 0.38, y + 0.38], color=BLACK, lw=1.4, ls=(0, (2, 1)), label="raw")
            seen.add("raw")
        if mean is not None:
            span = [sample.get("low", mean), sample.get("high", mean)]
            error = np.array([[mean - span[0]], [span[1] - mean]])
            face = "white" if cut else colour
            axes.errorbar(
                mean, y, xerr=np.maximum(error, 0), fmt="o", ms=5.5, mfc=face, mec=BLACK, ecolor=BLACK, capsize=4
            )
            seen.add("cut" if cut else "sampled")
        shown = bar if bar is not None else mean
        if shown is not None:
            source = "" if exact is not None else " (averaged)" if averaged is not None else " (sampled)"
            text = f"{_number(shown)} {unit}{source}"
            if cut:
                text += f"\n{cut:,} of {sample.get('n', 0):,} walks cut at {_number(sample.get('horizon') or 0)}"
            edge = max(_row_numbers(row))
            axes.annotate(text, (edge, y), (9, 0), textcoords="offset points", va="center", size=_TEXT)
        else:
            axes.annotate("no value", (low, y), (6, 0), textcoords="offset points", va="center", size=_TEXT, color=GREY)
    axes.set_xscale("log")
    axes.set_xlim(low, high * (high / low) ** 0.28)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=_TITLE)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _number(v)))
    hops = any(unit == "hops" for _, _, unit, _ in bars)
    axes.set_xlabel(
        "expected hitting time of the target X_out (" + ("steps; of the student: hops)" if hops else "steps)")
    )
    _plain(axes, grid="x")
    handles = {
        "exact": Patch(fc=GREY, alpha=0.55, label="exact, cut to the support"),
        "lifted": Patch(fc=GREY, alpha=0.55, hatch="////", ec="white", label="path lifted to steps"),
        "averaged": Patch(fc=GREY, alpha=0.55, hatch="....", ec="white", label="chain averaged over contexts"),
        "raw": Line2D([], [], color=BLACK, lw=1.4, ls=(0, (2, 1)), label="exact, raw softmax"),
        "sampled": Line2D([], [], marker="o", mfc=GREY, mec=BLACK, color=BLACK, label="sampled mean, 95 % interval"),
        "cut": Line2D(
            [], [], marker="o", mfc="white", mec=BLACK, color=BLACK, label="sampled, mean of min(τ, horizon)"
        ),
    }
    shown_handles = [h for k, h in handles.items() if k in seen]
    if shown_handles:
        figure.legend(handles=shown_handles, loc="outside lower center", ncols=3, fontsize=_SMALL, frameon=False)
    return figure


def _row_numbers(row: Row) -> list[float]:
    """Every time in a row, those of its sample included."""
    sample = row.get("hitting_time_sampled") or {}
    values = [row.get(f"hitting_time_{key}") for key in ("exact", "exact_raw", "context_averaged")]
    values += [sample.get(key) for key in ("mean", "low", "high")]
    return [float(v) for v in values if v is not None and v > 0]


def _number(value: float) -> str:
    """55,555 or 14.1 or 0.5: three digits at least, all digits of whole thousands."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def _plain(axes: Axes, grid: str = "both") -> None:
    """Light grid, no box, text of one size."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e4e4e4", lw=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=max(_SMALL, 8))


# ---- kernels -------------------------------------------------------------------------------------------------------


def kernel_figure(kernels: Mapping[str, ArrayLike], clusters: ArrayLike) -> Figure:
    """Heat maps of kernels (N, N) over the same states, in order of their clusters, on one logarithmic scale.

    A map has at most 160 cells a side, 106 where three stand side by side; a cell shows the largest probability of the
    states that it pools, so that single hard steps stay visible. Zeros are white; what lies below 1e-6 has the lightest colour.
    """
    labels = np.asarray(clusters)
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    bounds, n = np.cumsum(sizes)[:-1], len(labels)
    columns = 2 if len(kernels) == 4 else max(1, min(3, len(kernels)))
    rows = max(1, -(-len(kernels) // columns))
    side = {1: 5.0, 2: 3.35, 3: 2.45}[columns]
    figure = Figure(figsize=(_WIDTH, 0.5 + rows * side), layout=ConstrainedLayoutEngine(h_pad=0.07, compress=True))
    grid = figure.subplots(rows, columns, squeeze=False)
    colours = _heat()
    image = None
    every = -(-len(sizes) // (24 // columns))
    thin = min(0.4, 8 / len(sizes))
    middles = (np.cumsum(sizes) - sizes / 2)[::every]
    for i, axes in enumerate(grid.flat):
        if i >= len(kernels):
            axes.set_axis_off()
            continue
        name, kernel = list(kernels.items())[i]
        matrix = np.asarray(kernel)
        if matrix.shape != (n, n):
            raise ValueError(f"kernel {name!r} has shape {matrix.shape}; {n} cluster labels need ({n}, {n})")
        cells, width = _pool(matrix, order, _CELLS // max(columns, 2))
        shown = np.ma.masked_where(~(cells > 0), np.maximum(cells, _FLOOR))
        far = len(cells) * width
        image = axes.imshow(
            shown, cmap=colours, norm=LogNorm(_FLOOR, 1.0), extent=(0, far, far, 0), interpolation="nearest"
        )
        for bound in bounds:
            axes.axhline(bound, color="#9db4c0", lw=thin)
            axes.axvline(bound, color="#9db4c0", lw=thin)
        axes.set(xlim=(0, n), ylim=(n, 0))
        ticks = [str(k) for k in range(0, len(sizes), every)]
        axes.set_xticks(middles, ticks, fontsize=_SMALL)
        axes.set_yticks(middles, ticks, fontsize=_SMALL)
        axes.tick_params(length=0, pad=2)
        axes.set_title(name, fontsize=_TITLE, color=BLACK)
        axes.set_xlabel("to states of cluster", fontsize=_TEXT)
        if i % columns == 0:
            axes.set_ylabel("from states of cluster", fontsize=_TEXT)
    if image is not None:
        bar = figure.colorbar(image, ax=list(grid.flat), shrink=0.85, pad=0.01, aspect=25)
        bar.set_label("probability a step (white: 0)", fontsize=_TEXT)
        bar.ax.tick_params(labelsize=_SMALL)
        bar.ax.set_yticks(
            [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["≤10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"]
        )
    return figure


def _heat() -> Colormap:
    from matplotlib import colormaps

    return colormaps["magma_r"].with_extremes(bad="white")


def _pool(matrix: NDArray[Any], order: NDArray[np.int64], limit: int) -> tuple[Array, int]:
    """At most (limit, limit) cells, each the maximum of `width` by `width` states in `order`; and that width."""
    width = max(1, -(-len(order) // limit))
    starts = np.arange(0, len(order), width)
    rows = np.stack([matrix[order[s : s + width]].max(0) for s in starts])
    return np.maximum.reduceat(rows[:, order], starts, axis=1).astype(np.float64), width


# ---- survival ------------------------------------------------------------------------------------------------------


def survival_figure(curves: Mapping[str, Row]) -> Figure:
    """P(τ > t): exact as a line, sampled as steps with a 95 % band (Dvoretzky, Kiefer and Wolfowitz).

    Args:
        curves: model -> `times` and `exact` (same length), `sampled` hitting times (n,) with their `horizon`, `unit`
            (steps; hops for a student). Each may be missing or None. Walks that are not finite, negative or beyond the
            horizon count as censored there.
    """
    figure = Figure(figsize=(_WIDTH, 4.0), layout="constrained")
    axes = figure.add_subplot()
    handles: list[Any] = []
    hops, latest = False, 10.0
    for name, row in curves.items():
        colour = model_colour(name)
        unit = row.get("unit") or ("hops" if name.startswith("student") else "steps")
        hops |= unit == "hops"
        if row.get("exact") is not None and row.get("times") is not None:
            times, exact = np.asarray(row["times"], float), np.asarray(row["exact"], float)
            keep = times >= 1
            axes.plot(*_stairs(times[keep], exact[keep]), color=colour, lw=2.0, zorder=3, label=name)
            latest = max(latest, float(times.max(initial=1)))
        if row.get("sampled") is not None and len(row["sampled"]):
            t, alive, half = empirical_survival(row["sampled"], row.get("horizon"))
            axes.step(t, alive, where="post", color=BLACK, lw=0.8, zorder=4, label=f"{name} sampled")
            low, high = np.maximum(alive - half, 0), np.minimum(alive + half, 1)
            axes.fill_between(t, low, high, step="post", color=colour, alpha=0.22, lw=0, zorder=2)
            latest = max(latest, float(t[-1]))
        handles.append(Line2D([], [], color=colour, lw=2.5, label=f"{name} (hops)" if unit == "hops" else name))
    handles.append(Line2D([], [], color=BLACK, lw=0.8, label="sampled"))
    handles.append(Patch(fc=GREY, alpha=0.3, label="95 % band"))
    axes.set_xscale("log")
    axes.set(xlim=(1, latest * 1.05), ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _number(v)))
    axes.set_xlabel("t (steps; of the student: hops)" if hops else "t (steps)", fontsize=_TITLE)
    axes.set_ylabel("P(τ > t), X_out not yet reached", fontsize=_TITLE)
    _plain(axes)
    figure.legend(
        handles=handles, loc="outside upper center", ncols=4 if len(handles) > 4 else 7, fontsize=_TEXT, frameon=False
    )
    return figure


def _stairs(times: Array, values: Array) -> tuple[Array, Array]:
    """Steps where the times are consecutive, a line where they are not."""
    i = np.flatnonzero(np.diff(times) == 1)
    return np.insert(times, i + 1, times[i + 1]), np.insert(values, i + 1, values[i])


def empirical_survival(sampled: ArrayLike, horizon: float | None = None) -> tuple[Array, Array, float]:
    """Times t (m,), the share of walks with τ > t from each on (m,), and half the width of the DKW 95 % band.

    The curve begins at t = 0 and ends at the horizon, where walks are censored; without one, at the last hit.
    """
    tau = np.asarray(sampled, dtype=np.float64)
    tau = np.where(np.isfinite(tau) & (tau >= 0), tau, np.inf)
    finite = tau[np.isfinite(tau)]
    last = float(finite.max(initial=1.0)) if horizon is None else float(horizon)
    jumps = np.unique(np.concatenate([[0.0], finite[finite < last]]))
    alive = 1.0 - np.searchsorted(np.sort(tau), jumps, side="right") / len(tau)
    end = alive[-1] if horizon is not None else float(np.mean(tau > last))
    return np.append(jumps, last), np.append(alive, end), float(np.sqrt(np.log(2 / 0.05) / (2 * len(tau))))


# ---- training ------------------------------------------------------------------------------------------------------


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
    histories: Mapping[str, Sequence[Row]], epsilon: float | None = None, epsilon_max: float | None = None
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
    figure = Figure(figsize=(_WIDTH, 2.35 * rows + 0.15), layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.06))
    if not filled:
        figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center", size=_TITLE)
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


def _series(lines: Sequence[Row], panel: _Panel, metric: str) -> Array:
    """(n, 2) finite values of one metric over the panel's x; only positive ones for a logarithmic panel."""
    points = [(line[panel.x], line[metric]) for line in lines if None not in (line.get(panel.x), line.get(metric))]
    xy = np.array(points, dtype=np.float64).reshape(-1, 2)
    return xy[np.isfinite(xy).all(1) & ((xy[:, 1] > 0) | (not panel.log))]


def _finish_panel(axes: Axes, panel: _Panel, xy: Array) -> None:
    axes.set_title(panel.title, fontsize=_TEXT, loc="left", weight="bold")
    axes.set_xlabel(panel.xlabel, fontsize=_SMALL)
    axes.set_ylabel(panel.ylabel, fontsize=_SMALL)
    _plain(axes)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    if panel.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 50:  # few decades: ticks within them
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif panel.ylabel.startswith("share"):
        axes.set_ylim(min(0.0, xy[:, 1].min()), 1.05)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    if len(axes.lines) > 1:
        axes.legend(fontsize=7, framealpha=0.85, edgecolor="none", borderpad=0.2, handlelength=1.4, labelspacing=0.25)


def _thousands(value: float, _: Any) -> str:
    """1500000 as 1.5M, 2000 as 2k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
