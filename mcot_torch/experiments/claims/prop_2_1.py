"""Proposition 2.1: clusters are metastable: the metastability ratio is O(n_out/M) along ε = c/M.

The ratio is sup over x ∈ S_o, y ∉ S_o of P_x(τ̄_{S_o∖x} < τ̄_x) / P_y(τ̄_{S_o} < τ̄_y), S_o the entry states; it is solved
exactly. Three families of points: expander clusters along ε = c/M (falls as n_out/M), expander clusters at fixed ε
(constant in M), and cycle clusters along ε = c/M, the control: A1 fails there, and the ratio stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from mcot_torch.chains import metastability_ratio
from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary, judge
from mcot_torch.experiments.fits import power_laws, select, slope
from mcot_torch.experiments.plots import legend, log_axis, panels, reference, trend
from mcot_torch.graphs.families.clustered import clustered_graph

_JUMPS = (1, 2, -1, 3)


@dataclass
class Settings:
    """The grid."""

    cluster_sizes: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128, 256])
    """Values of M; slopes are fitted from 32."""
    n_outs: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    """Sources of hard steps a cluster; 3 is the default graph."""
    n_clusters: int = 10
    """K."""
    scale: float = 1.0
    """c of ε = c/M."""
    epsilon: float = 1e-3
    """ε of the points at fixed ε."""
    seeds: int = 5
    """Graphs of each kind."""


def points(settings: Settings) -> list[Point]:
    """Expanders for every n_out; fixed ε and cycles for three sources."""
    result: list[Point] = []
    for m in settings.cluster_sizes:
        along = 0.999 * settings.scale / m  # below the limit 1/W of the graph also at M = 1/c
        kinds = [("random_regular", "c/M", along, n) for n in settings.n_outs]
        kinds += [("random_regular", "fixed", settings.epsilon, 3), ("cycle", "c/M", along, 3)]
        result += [
            {"cluster": c, "law": law, "M": m, "K": settings.n_clusters, "epsilon": e, "n_out": n, "seed": seed}
            for c, law, e, n in kinds
            for seed in range(settings.seeds)
        ]
    return result


def measure(point: Point) -> Measurement:
    """The exact ratio."""
    jumps = _JUMPS[: point["n_out"]]
    graph = clustered_graph(
        point["K"], point["M"], point["epsilon"], jumps, cluster=point["cluster"], seed=point["seed"]
    )
    return {"ratio": metastability_ratio(graph.to_scipy(), graph.entries, graph.clusters)}


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Slopes in M from 32 on, the exponent of n_out, the control."""
    large = [r for r in rows if r["M"] >= 32]
    expander = select(large, cluster="random_regular", law="c/M", n_out=3)
    fixed = select(large, cluster="random_regular", law="fixed")
    cycle = select(large, cluster="cycle")
    numbers = [
        slope("exponent of M along ε = c/M, expanders", *_xy(expander), -1.0, 0.1),
        slope("exponent of M at fixed ε, expanders", *_xy(fixed), 0.0, 0.1),
        slope("exponent of M along ε = c/M, cycles (control)", *_xy(cycle), 0.0, 0.1),
    ]
    several = [r for r in select(large, cluster="random_regular", law="c/M")]
    if len({r["n_out"] for r in several}) > 1:
        columns = {"n": [r["n_out"] for r in several], "M": [r["M"] for r in several]}
        b, half = power_laws(columns, [r["ratio"] for r in several])["n"]
        numbers.append(
            Number("exponent of n_out, expanders", b, b - half, b + half, at_least=0.85, at_most=1.15, expected="1")
        )
    constant = [r["ratio"] * r["M"] / (settings.scale * r["n_out"]) for r in several]
    top = max(r["M"] for r in rows)
    numbers += [
        Number("largest ratio·M/(c·n_out), expanders", max(constant)),
        Number(f"smallest ratio of cycles at M = {top}", min(r["ratio"] for r in select(cycle, M=top)), expected="1.5"),
    ]
    why = (
        f"Along ε = {settings.scale:g}/M the ratio is at most {max(constant):.2f}·c·n_out/M on expander clusters from M = 32; on "
        "cycle clusters, where A1 fails, it does not fall."
    )
    return judge(numbers, why, constants=True)


def _xy(rows: list[Measurement]) -> tuple[list[float], list[float]]:
    return [r["M"] for r in rows], [r["ratio"] for r in rows]


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Ratio against M: the three kinds, and n_out."""
    fig, (left, right) = panels(2, height=3.4)
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("expanders, ε = c/M", {"cluster": "random_regular", "law": "c/M", "n_out": 3}),
        ("cycles, ε = c/M (A1 fails)", {"cluster": "cycle"}),
        (f"expanders, ε = {settings.epsilon:g}", {"law": "fixed"}),
    )
    for i, (label, where) in enumerate(kinds):
        trend(left, *_xy(select(rows, **where)), label, i)
    for i, n in enumerate(settings.n_outs):
        part = select(rows, cluster="random_regular", law="c/M", n_out=n)
        trend(right, [r["M"] for r in part], [r["ratio"] * r["M"] / n for r in part], f"n_out = {n}", i)
    ms = settings.cluster_sizes
    start = select(rows, M=max(ms), **kinds[0][1])[0]["ratio"]
    reference(left, [m for m in ms if m >= 32] or ms, -1, (max(ms), 0.7 * start), "slope −1")
    left.set(xlabel="M (states a cluster)", ylabel="metastability ratio", title=f"K = {settings.n_clusters}, n_out = 3")
    right.set(
        xlabel="M (states a cluster)", ylabel="ratio · M / n_out", title="expanders along ε = c/M", ylim=(0, None)
    )
    log_axis(left, "y")
    left.set_ylim(bottom=5e-4)
    for axis in (left, right):
        log_axis(axis, "x", ms)
        legend(axis, "lower left" if axis is left else "lower right")
    return fig


def quick() -> Settings:
    """Two graphs of each kind."""
    return Settings([16, 32, 64, 128], [1, 3], seeds=2)


EXPERIMENT = Experiment(
    "prop_2_1",
    "Proposition 2.1: clusters are metastable",
    "With dense clusters (A1) and ε = c/M the metastability ratio of the entry states is O(n_out/M): they are hard to leave "
    "for one another and easy to reach.",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
