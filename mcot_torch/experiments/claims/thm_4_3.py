"""Theorem 4.3: the distilled student solves the task in O(K) hops, whatever ε and M.

Exactly: q° of the graph, rescaled by β = log(M/ε), is the student that infinitely many transitions give; its E[τ⁺] is
solved. Distilled: students learned from 10^9 transitions of the exact reasoner, labels found by walking, on a subset.
Hops, not steps: one draw of the student, stays included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from mcot_torch.chains import hitting_time, pair_kernel, rescale
from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary, judge
from mcot_torch.experiments.fits import power_laws, select
from mcot_torch.experiments.plots import log_axis, panels, reference, trend
from mcot_torch.experiments.support import exact_reasoner, synthetic
from mcot_torch.graphs.graph import MetastableGraph

NAMES = {"circulant": "circulant", "ring": "ring", "bidirectional_ring": "bidirectional ring (A4 fails)"}


@dataclass
class Settings:
    """Grids."""

    families: list[str] = field(default_factory=lambda: list(NAMES))
    """How clusters are joined; the circulant decides."""
    epsilons: list[float] = field(default_factory=lambda: [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    """Values of ε."""
    cluster_sizes: list[int] = field(default_factory=lambda: [16, 32, 64])
    """Values of M."""
    n_clusters: list[int] = field(default_factory=lambda: [8, 16, 32, 64])
    """Values of K."""
    distilled_clusters: list[int] = field(default_factory=lambda: [8, 16, 32])
    """K of the students that are distilled; M is 16 and 32."""
    distilled_epsilons: list[float] = field(default_factory=lambda: [0.002, 0.01, 0.03])
    """ε of the teachers of those."""
    seeds: int = 3
    """Graphs of each kind."""


def points(settings: Settings) -> list[Point]:
    """The exact grid, then the distilled subset."""
    seeds = range(settings.seeds)
    grid = product(settings.families, settings.n_clusters, settings.cluster_sizes, seeds, settings.epsilons)
    exact = [{"student": "exact", "family": f, "K": k, "M": m, "epsilon": e, "seed": s} for f, k, m, s, e in grid]
    subset = product(settings.distilled_clusters, settings.cluster_sizes[:2], seeds, settings.distilled_epsilons)
    learned = [
        {"student": "distilled", "family": "circulant", "K": k, "M": m, "epsilon": e, "seed": s}
        for k, m, s, e in subset
    ]
    return exact + learned


def measure(point: Point) -> Measurement:
    """E[τ⁺] in hops of the exact student and, where asked for, of a distilled one."""
    graph = synthetic(point["family"], point["K"], point["M"], point["epsilon"], point["seed"])
    q = pair_kernel(graph.to_scipy(), graph.clusters, graph.n_clusters)
    target = graph.n_clusters // 2
    exact = rescale(q, math.log(graph.cluster_size / graph.epsilon))
    hops = hitting_time(exact, 0, [target])
    edge = (q > 0) & ~np.eye(len(q), dtype=bool)
    smallest = float(exact[edge].min())
    if point["student"] == "exact":
        return {"hops": hops, "smallest_hop": smallest, "ratio": 1.0}
    learned = _distilled(graph, point["seed"], target)
    return {"hops": learned, "smallest_hop": smallest, "ratio": None if learned is None else learned / hops}


def _distilled(graph: MetastableGraph, seed: int, target: int) -> float | None:
    """E[τ⁺] of a student distilled from the exact reasoner; None where it lacks a cluster."""
    from mcot_torch.algorithms.distill import distill
    from mcot_torch.algorithms.prm import PRM
    from mcot_torch.graphs.scales import Scales
    from mcot_torch.training.loop import Context

    scales = Scales.of(graph, graph.epsilon)
    student = distill(exact_reasoner(graph), PRM.simulated(graph), scales, context=Context(seed)).model
    labels = student.labels.numpy()
    start, end = labels[graph.entries[0]], labels[graph.entries[target]]
    if student.n_states != graph.n_clusters or start == end:
        return None
    return hitting_time(student.kernel().numpy(), int(start), [int(end)])


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Exponents of the hops in ε, M and K, exact and distilled."""
    numbers = []
    bounds = {"ε": (0.0, 0.02), "M": (0.0, 0.02), "K": (1.0, 0.1)}
    for student, family in [("exact", f) for f in settings.families] + [("distilled", "circulant")]:
        part = [r for r in select(rows, student=student, family=family) if r["hops"] is not None]
        columns = {"ε": [r["epsilon"] for r in part], "M": [r["M"] for r in part], "K": [r["K"] for r in part]}
        columns = {letter: x for letter, x in columns.items() if len(set(x)) > 1}
        for letter, (b, half) in power_laws(columns, [r["hops"] for r in part]).items():
            theory, tolerance = bounds[letter]
            decides = {"at_least": theory - tolerance, "at_most": theory + tolerance} if family == "circulant" else {}
            if family == "bidirectional_ring" and letter == "K":
                theory = 2.0
            name = f"exponent of {letter}, {student}, {NAMES[family]}"
            numbers.append(Number(name, b, b - half, b + half, expected=f"{theory:g}", **decides))
    per = [r["hops"] / r["K"] for r in select(rows, student="exact", family="circulant")]
    numbers += [
        Number("smallest E[τ⁺]/K, circulant", min(per)),
        Number("largest E[τ⁺]/K, circulant", max(per)),
        Number(
            "smallest probability of a hop with a hard step, circulant",
            min(r["smallest_hop"] for r in select(rows, student="exact", family="circulant")),
            at_least=0.05,
            expected="Θ(1)",
        ),
    ]
    learned = select(rows, student="distilled")
    away = [abs(r["ratio"] - 1) if r["ratio"] is not None else math.inf for r in learned]
    worst = max(away) if math.isfinite(max(away)) else None
    numbers.append(Number("largest |distilled / exact − 1|", worst, at_most=0.05, expected="0"))
    why = (
        f"E[τ⁺] is between {min(per):.2f}·K and {max(per):.2f}·K hops on the circulant at every ε and M, and distilled students agree "
        f"within {100 * (worst or 0):.1f} %."
    )
    return judge(numbers, why, constants=True)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Hops against ε, M and K."""
    fig, axes = panels(3, height=3.5)
    k, m = (
        settings.n_clusters[len(settings.n_clusters) // 2],
        settings.cluster_sizes[min(1, len(settings.cluster_sizes) - 1)],
    )
    epsilon = settings.epsilons[-2]
    views: tuple[tuple[str, str, dict[str, float]], ...] = (
        ("epsilon", "ε (probability a step)", {"K": k, "M": m}),
        ("M", "M (states a cluster)", {"K": k, "epsilon": epsilon}),
        ("K", "K (clusters)", {"M": m, "epsilon": epsilon}),
    )
    for axis, (key, label, others) in zip(axes, views, strict=True):
        for i, family in enumerate(settings.families):
            part = select(rows, student="exact", family=family, **others)
            trend(axis, [r[key] for r in part], [r["hops"] for r in part], NAMES[family], i)
        learned = [r for r in select(rows, student="distilled", **_near(others, settings)) if r["hops"] is not None]
        if learned:
            axis.plot(
                [r[key] for r in learned], [r["hops"] for r in learned], "x", color="black", ms=6, label="distilled"
            )
        title = ", ".join(f"{'ε' if n == 'epsilon' else n} = {v:g}" for n, v in others.items())
        axis.set(xlabel=label, title=title)
        log_axis(axis, "y")
        log_axis(axis, "x", None if key == "epsilon" else sorted({r[key] for r in rows}))
    ks = settings.n_clusters
    first = select(rows, student="exact", family=settings.families[0], M=m, epsilon=epsilon, K=min(ks))[0]["hops"]
    reference(axes[2], ks, 1, (min(ks), 0.6 * first), "slope 1")
    low, high = (f(ax.get_ylim()[i] for ax in axes) for i, f in ((0, min), (1, max)))
    for axis in axes:
        axis.set_ylim(low, high)
    axes[0].set_ylabel("E[τ⁺] (hops)")
    handles, names = axes[2].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return fig


def _near(others: dict[str, float], settings: Settings) -> dict[str, float]:
    """The distilled students' own ε where the panel fixes one: they do not depend on it."""
    return {key: settings.distilled_epsilons[0] if key == "epsilon" else value for key, value in others.items()}


def quick() -> Settings:
    """A corner of the grids."""
    return Settings(["circulant", "ring"], [1e-4, 1e-2], [16, 32], [8, 16, 32], [8], [0.03], seeds=1)


EXPERIMENT = Experiment(
    "thm_4_3",
    "Theorem 4.3: the student needs O(K) hops",
    "After distillation and rescaling of time the expected number of hops is O(K), free of ε and M.",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
