"""The state graph as SVG: clusters on a circle, hard steps found, missed and false, a text on hover for each part.

Plain SVG rather than a plotly figure: it prints, follows light and dark by its classes, and the player draws on it.
Where there are too many states to draw, a cluster is a dot and the hard steps between two clusters are one arrow.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task
from mcot_torch.report.figures.layout import bent, easy_pairs, ring, start_clusters, state_spots
from mcot_torch.report.text import escape, number, plural

__all__ = ["SIZE", "Picture"]

SIZE = 760  # units of the picture's side
_MOST_STATES = 1500  # more are drawn as clusters
_MOST_EASY = 6000
_MOST_MARKED = 4  # targets that are marked one by one
_TOLD = 4  # likeliest easy steps in a state's text

Array = NDArray[np.float64]
Edge = tuple[int, int]


@dataclass
class Picture:
    """Where everything lies, and the drawing itself.

    Attributes:
        graph: N states in K clusters.
        task: where a chain of thought starts and ends.
        found: (n, 2) steps that search took for hard; None where it has not run.
        kernels: name of a model -> (N, N) its kernel, told on hover.
    """

    graph: MetastableGraph
    task: Task
    found: NDArray[np.int64] | None
    kernels: dict[str, Array]
    with_states: bool = field(init=False)
    centres: Array = field(init=False)
    spots: Array = field(init=False)

    def __post_init__(self) -> None:
        graph = self.graph
        hard = {(int(x), int(y)) for x, y in graph.sparse_edges}
        taken = hard if self.found is None else {(int(x), int(y)) for x, y in self.found}
        self.kinds: dict[str, list[Edge]] = {
            "found": sorted(hard & taken),
            "missed": sorted(hard - taken),
            "false": sorted(taken - hard),
        }
        self.with_states = graph.n_states <= _MOST_STATES
        centres, radius = ring(graph.n_clusters)
        self.scale = SIZE / (2 * (1.0 + radius + 0.17))
        self.dot = min(11.0, 1.1 * radius * self.scale / graph.cluster_size**0.5)
        steps = np.array(list(chain(*self.kinds.values())), dtype=np.int64).reshape(-1, 2)
        spots = state_spots(graph, centres, radius - 0.7 * self.dot / self.scale, steps, self.with_states)
        self.radius = radius * self.scale
        self._units = {"centres": centres, "spots": spots}
        self.centres, self.spots = self._pixels(centres), self._pixels(spots)

    def _pixels(self, points: Array) -> Array:
        return SIZE / 2 + self.scale * points * np.array([1.0, -1.0])

    # ---- drawing ------------------------------------------------------------------------------------------------

    def svg(self) -> str:
        """The inside of an <svg> of SIZE by SIZE."""
        parts = [self._clusters(), self._arrows(), *([self._states()] if self.with_states else []), self._labels()]
        return "\n".join([*parts, self._task_marks()])

    def _clusters(self) -> str:
        starts = start_clusters(self.graph, self.task)
        out = []
        for k, (x, y) in enumerate(self.centres):
            kind = "blob start" if k in starts else "blob"
            told = f"C_{k}: {plural(int(self.graph.cluster_sizes[k]), 'state')}"
            if self.graph.entries[k] >= 0:
                told += f"\nentry: {self.graph.name(int(self.graph.entries[k]))}"
            out.append(
                f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{self.radius:.1f}" data-t="{escape(told)}"/>'
            )
        return "".join(out)

    def _states(self) -> str:
        pairs = easy_pairs(self.graph)
        lines = ""
        if len(pairs) <= _MOST_EASY:
            ends = self.spots[pairs]
            d = "".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for (a, b), (c, d) in ends)
            lines = f'<path class="easy" d="{d}"/>'
        entries = set(self.graph.entries.tolist())
        dots = []
        for state, (x, y) in enumerate(self.spots):
            r = self.dot * (0.62 if state in entries else 0.5)
            kind = "state entry" if state in entries else "state"
            dots.append(
                f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r:.2f}" data-t="{escape(self._told(state))}"/>'
            )
        return lines + "".join(dots)

    def _told(self, state: int) -> str:
        """What hovering over a state shows."""
        graph = self.graph
        row = slice(graph.indptr[state], graph.indptr[state + 1])
        heads, p, hard = graph.indices[row], graph.probabilities[row], graph.hard[row]
        role = ", entry" if state in graph.entries else ""
        role += ", target" if state in self.task.target else ""
        lines = [f"{graph.name(state)}  (C_{graph.clusters[state]}{role})"]
        order = np.argsort(-p[~hard], kind="stable")
        easy = [f"{graph.name(int(heads[~hard][i]))} {p[~hard][i]:.3g}" for i in order[:_TOLD]]
        more = f" and {len(order) - _TOLD} more" if len(order) > _TOLD else ""
        lines.append(f"easy: {', '.join(easy)}{more}")
        if hard.any():
            lines.append(
                "hard: " + ", ".join(f"{graph.name(int(y))} {q:.3g}" for y, q in zip(heads[hard], p[hard], strict=True))
            )
        return "\n".join(lines)

    def _arrows(self) -> str:
        arrows: list[tuple[str, int, int, str]] = []  # kind, tail, head, text
        if self.with_states:
            for kind, edges in self.kinds.items():
                for x, y in edges:
                    arrows.append((kind, x, y, self._told_edge(kind, x, y)))
        else:
            together: dict[Edge, dict[str, int]] = defaultdict(lambda: {"found": 0, "missed": 0, "false": 0})
            for kind, edges in self.kinds.items():
                for x, y in edges:
                    pair = (int(self.graph.clusters[x]), int(self.graph.clusters[y]))
                    if pair[0] != pair[1]:
                        together[pair][kind] += 1
            for (k, other), count in sorted(together.items()):
                kind = "missed" if count["missed"] else "found" if count["found"] else "false"
                told = ", ".join(f"{n} {name}" for name, n in count.items() if n)
                arrows.append((kind, k, other, f"C_{k} → C_{other}\n{told}"))
        if not arrows:
            return ""
        n = len(arrows)
        ends = self._units["spots" if self.with_states else "centres"][[(a[1], a[2]) for a in arrows]]  # (n, 2, 2)
        widths = np.full(n, float(np.clip(26 / self.graph.n_clusters, 0.7, 1.8)) * min(1.0, (400 / n) ** 0.5))
        gap = 0.6 * self.dot if self.with_states else self.radius
        curves = bent(ends[:, 0], ends[:, 1], widths, self.scale, gap)
        start, neck, tip = (self._pixels(curves.at(t)) for t in (curves.begin, curves.neck, curves.end))
        control = self._pixels(curves.control_between(curves.begin, curves.neck))
        across = np.stack([neck[:, 1] - tip[:, 1], tip[:, 0] - neck[:, 0]], axis=1) * 0.45
        left, right = neck + across, neck - across
        faint = float(np.clip(500 / n, 0.35, 1.0))
        out = [f'<g opacity="{faint:.2f}">']
        for i, (kind, _, _, told) in enumerate(arrows):
            line = f"M{_xy(start[i])}Q{_xy(control[i])} {_xy(neck[i])}"
            head = f"M{_xy(tip[i])}L{_xy(left[i])}L{_xy(right[i])}Z"
            out.append(
                f'<g class="arrow {kind}" data-t="{escape(told)}"><path class="hit" d="{line}"/>'
                f'<path class="line" stroke-width="{widths[i]:.2f}" d="{line}"/><path class="tip" d="{head}"/></g>'
            )
        return "".join([*out, "</g>"])

    def _told_edge(self, kind: str, x: int, y: int) -> str:
        graph = self.graph
        verdict = {"found": "hard step, found", "missed": "hard step, missed", "false": "not hard: taken for it"}[kind]
        if self.found is None:
            verdict = "hard step"
        told = [f"{name} {number(float(kernel[x, y]))}" for name, kernel in self.kernels.items()]
        ends = f"{graph.name(x)} → {graph.name(y)}  (C_{graph.clusters[x]} → C_{graph.clusters[y]})"
        return "\n".join([ends, verdict, "probability a step: " + ", ".join(told)])

    def _labels(self) -> str:
        middle = SIZE / 2
        every = -(-self.graph.n_clusters // 32)
        out = []
        for k, (x, y) in enumerate(self.centres):
            if k % every == 0:
                away = np.array([x, y]) - middle
                at = np.array([x, y]) + away / max(1e-9, float(np.hypot(*away))) * (self.radius + 17)
                out.append(
                    f'<text class="name" x="{at[0]:.1f}" y="{at[1] + 5:.1f}">C<tspan dy="4" class="sub">{k}</tspan></text>'
                )
        return "".join(out)

    def _task_marks(self) -> str:
        targets = self.task.target
        one_by_one = self.with_states and len(targets) <= _MOST_MARKED
        at = self.spots[targets] if one_by_one else self.centres[np.unique(self.graph.clusters[targets])]
        size = max(9.0, 1.1 * self.dot)
        return "".join(f'<path class="target" d="{_star(x, y, size)}"/>' for x, y in at)


def _xy(point: Array) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _star(x: float, y: float, size: float) -> str:
    angle = np.pi * np.arange(10) / 5
    r = np.where(np.arange(10) % 2 == 0, size, 0.45 * size)
    points = np.stack([x + r * np.sin(angle), y - r * np.cos(angle)], axis=1)
    return "M" + "L".join(_xy(p) for p in points) + "Z"
