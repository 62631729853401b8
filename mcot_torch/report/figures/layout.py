"""Where a graph's clusters and states lie in a picture, and how its hard steps bend; for PNG and HTML alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp
from scipy.sparse.csgraph import shortest_path

from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task
from mcot_torch.report.figures.style import Array

__all__ = ["Bent", "bent", "easy_pairs", "ring", "start_clusters", "state_spots"]


def ring(k: int) -> tuple[Array, float]:
    """(k, 2) centres on the unit circle, clockwise from the top (two side by side), and the radius of the blobs."""
    angle = np.pi / 2 - 2 * np.pi * np.arange(k) / k + (np.pi / 2 if k == 2 else 0.0)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1), min(0.6, 0.8 * float(np.sin(np.pi / k)))


def start_clusters(graph: MetastableGraph, task: Task | None) -> set[int]:
    """Clusters in which a task may start; none where it may start in all of them."""
    inside = set() if task is None else set(graph.clusters[task.start > 0].tolist())
    return inside if len(inside) < graph.n_clusters else set()


def easy_pairs(graph: MetastableGraph) -> NDArray[np.int64]:
    """(n, 2) pairs of different states that easy steps join, either way, each once."""
    easy = ~graph.hard & (graph.sources != graph.indices)
    return np.unique(np.sort(np.stack([graph.sources[easy], graph.indices[easy]], axis=1), axis=1), axis=0)


class Bent(NamedTuple):
    """n bent arrows: quadratic Bézier curves, drawn from `begin` to `neck`, their tips from there to `end`.

    Attributes:
        tails, control, heads: (n, 2) points of the curves.
        begin, neck, end: (n,) parameters in [0, 1].
    """

    tails: Array
    control: Array
    heads: Array
    begin: Array
    neck: Array
    end: Array

    def at(self, t: Array) -> Array:
        """(..., n, 2) points at the parameters t (..., n)."""
        t = t[..., None]
        return (1 - t) ** 2 * self.tails + 2 * t * (1 - t) * self.control + t**2 * self.heads

    def control_between(self, s: Array, t: Array) -> Array:
        """(n, 2) control points of the parts of the curves from s to t, which are Bézier curves as well."""
        s, t = s[:, None], t[:, None]
        return (1 - s) * (1 - t) * self.tails + (s + t - 2 * s * t) * self.control + s * t * self.heads


def bent(tails: Array, heads: Array, widths: Array, scale: float, gap: float) -> Bent:
    """Arrows between points; widths and the gap at both ends in points, `scale` points a unit.

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
    return Bent(tails, control, heads, begin, neck, end)


def state_spots(graph: MetastableGraph, centres: Array, radius: float, steps: NDArray[np.int64], inside: bool) -> Array:
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
