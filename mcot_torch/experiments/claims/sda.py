"""Theorem 5.3: with local access exponentially many concepts look alike; with global search none do.

The construction is `LiftedUnits` (specification, "Construction with hidden bits",
docs/specification.md#construction-with-hidden-bits): 2^K concepts p on the same states.
For every p the graph is really built.
Its local views are digests of rows to the last bit: on the path, in the ball of radius ρ around it, in the ball of radius
ρ + 1, and of all states. Views that must agree are taken along the longest path (all detours), whose ball contains those
of all others; views that must differ along the shortest, whose ball is contained in them. The values of sampled
paths are computed step by step on each graph and held against Π (−1)^{p_k x_k}; all pairs of concepts are correlated over
all 2^K paths in whole numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary, judge
from mcot_torch.experiments.fits import select, straight_line
from mcot_torch.experiments.plots import COLOURS, GREY, legend, panels

_MOST_UNITS = 12
_FIGURES = {0: "Figure 2", 1: "Figure 3"}
_LOOK: dict[str, dict[str, Any]] = {  # the lines lie on one another: hollow, and of different size
    "none": {"color": COLOURS[0], "marker": "o", "ms": 11},
    "path": {"color": COLOURS[1], "marker": "s", "ms": 7},
    "ball": {"color": COLOURS[2], "marker": "^", "ms": 3.5},
    "beyond": {"color": COLOURS[3], "marker": "v", "ms": 9},
    "global": {"color": COLOURS[6], "marker": "D", "ms": 3.5},
}


@dataclass
class Settings:
    """The constructions."""

    n_units: list[int] = field(default_factory=lambda: list(range(1, _MOST_UNITS + 1)))
    """Values of K, at most 12: all 2^K concepts are built."""
    cluster_size: int = 64
    """M, vertices of the base graph."""
    epsilon: float = 0.002
    """ε."""
    radii: list[int] = field(default_factory=lambda: [0, 1])
    """ρ, how far from the path rows tell nothing: 0 is Figure 2, 1 is Figure 3."""
    tau: float = 0.0
    """τ, the largest correlation that counts as low."""
    walked: int = 256
    """Most paths whose value is computed step by step on each graph."""
    seeds: int = 2
    """Constructions of each size."""


def points(settings: Settings) -> list[Point]:
    """A construction each, the longest first."""
    from mcot_torch.errors import InputError

    if wrong := [k for k in settings.n_units if not 1 <= k <= _MOST_UNITS]:
        raise InputError(f"settings.n_units holds {wrong[0]}; all 2^K concepts are built for K = 1 .. {_MOST_UNITS}")
    shared = {"M": settings.cluster_size, "epsilon": settings.epsilon, "tau": settings.tau, "walked": settings.walked}
    return [
        {"K": k, "rho": rho, "seed": seed, **shared}
        for k in sorted(settings.n_units, reverse=True)
        for rho in settings.radii
        for seed in range(settings.seeds)
    ]


def measure(point: Point) -> Measurement:
    """Every concept's graph, views and values; SDA at each access."""
    import torch

    from mcot_torch.graphs.families.lifts import LiftedUnits
    from mcot_torch.logic import ConceptClass, all_bits, concept_actions, local_view, parity_values, sda, task_paths
    from mcot_torch.system.randomness import generator

    k, rho = point["K"], point["rho"]
    units = LiftedUnits(k, point["M"], point["epsilon"], rho, point["seed"])
    bits = all_bits(k)
    paths = task_paths(units, bits)
    shortest, longest = paths[0].numpy(), paths[-1].numpy()
    walked = torch.randperm(len(bits), generator=generator(point["seed"], "sda", k))[: point["walked"]]
    values = parity_values(bits, bits)
    views: dict[str, list[str]] = {"none": [], "path": [], "ball": [], "beyond": [], "global": []}
    invalid = wrong = 0
    for p, expected in zip(bits.numpy(), values, strict=True):
        graph = units.graph(p)
        actions = concept_actions(units, graph)
        invalid += int((~actions.valid(paths[walked])).sum())
        wrong += int(((1 - 2 * actions.values(paths[walked])).numpy() != expected[walked]).sum())
        views["none"].append("")
        views["path"].append(local_view(graph, longest, 0))
        views["ball"].append(local_view(graph, longest, rho) if rho else views["path"][-1])
        views["beyond"].append(local_view(graph, shortest, rho + 1))
        views["global"].append(local_view(graph, shortest, math.inf))
    concepts = ConceptClass(values, views)
    return {
        "concepts": len(bits),
        "states": units.n_states,
        "paths_walked": len(walked) * len(bits),
        "invalid": invalid,
        "wrong": wrong,
        "correlation": concepts.largest_correlation(),
        **{f"views_{access}": len(set(seen)) for access, seen in views.items()},
        **{f"sda_{access}": sda(concepts, access, point["tau"]) for access in views},
    }


def _accesses(rho: int) -> dict[str, str]:
    """Access -> what to call it; the path is the ball of radius 0."""
    ball = {"ball": f"ball of radius {rho}"} if rho else {}
    return {"none": "none", "path": "path", **ball, "beyond": f"ball of radius {rho + 1}", "global": "global"}


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Exponents of 2 in K, and whether views and values are what the construction promises."""
    wrong = sum(r["wrong"] for r in rows)
    numbers = [
        Number("largest |<h_p1, h_p2>|, all pairs", max(r["correlation"] for r in rows), at_most=0.0, expected="0"),
        Number(
            "values of walked paths that differ from Π (−1)^{p_k x_k}",
            sum(r["wrong"] for r in rows),
            at_most=0,
            expected="0",
        ),
        Number("paths that are invalid on some graph", sum(r["invalid"] for r in rows), at_most=0, expected="0"),
    ]
    slopes = [
        _slope(f"slope of log2 SDA in K, {name}, {_name(rho)}", select(rows, rho=rho), access)
        for rho in settings.radii
        for access, name in _accesses(rho).items()
    ]
    most = max(settings.n_units)
    largest = max(r["concepts"] for r in rows)
    walked = sum(r["paths_walked"] for r in rows)
    why = (
        f"Up to K = {most} all 2^K concepts agree, to the last bit, on every row that can be seen from a path or within ρ of it, and no "
        "two are correlated: SDA is 2^K. One step farther out, or with all rows, it is 1."
    )
    notes = [
        f"Nothing is sampled but paths: all {largest:,} graphs of K = {most} were built and compared ({settings.seeds} construction(s) of each "
        f"size and ρ, M = {settings.cluster_size}); {walked:,} values were computed step by step ({wrong} differ from the closed form); the "
        "correlations are over all 2^K paths.",
        "The constant of exp(Ω(K)) is ln 2 per unit; a unit holds 2M states, so SDA is exponential in the number of clusters.",
        "By Theorem 5.2 the loss behind a corrupted gradient oracle stays, for the queries that it covers, at least 1 − 1/SDA: "
        f"{1 - 0.5**most:.6g} at K = {most}. It says nothing about SGD on samples, which learns parities of this size.",
    ]
    summary = judge([*numbers, *slopes], why, constants=True, notes=notes)
    summary.table = _table(settings, rows, slopes)
    return summary


def _name(rho: int) -> str:
    return f"ρ = {rho}" + (f" ({_FIGURES[rho]})" if rho in _FIGURES else "")


def _slope(name: str, rows: list[Measurement], access: str) -> Number:
    """Slope of log2 SDA against K; without an interval where it is exact, the same value at every K."""
    expected = 0.0 if access in ("beyond", "global") else 1.0
    text, bounds = f"{expected:g}", {"at_least": expected - 1e-9, "at_most": expected + 1e-9}
    if len({r["K"] for r in rows}) < 2:
        return Number(name, None, expected=text, **bounds)
    ks, logs = [r["K"] for r in rows], [math.log2(r[f"sda_{access}"]) for r in rows]
    b, half, _, _ = straight_line(ks, logs)
    if all(log == expected * k for k, log in zip(ks, logs, strict=True)):
        return Number(name, b, expected=text, **bounds)
    return Number(name, b, b - half, b + half, expected=text, **bounds)


def _table(settings: Settings, rows: list[Measurement], slopes: list[Number]) -> list[list[str]]:
    """SDA for each K at each access of each radius, one value for all seeds or all there are; the slopes below."""
    columns = [(rho, access) for rho in settings.radii for access in _accesses(rho)]
    heads = [f"{_accesses(rho)[access]} (ρ = {rho})" for rho, access in columns]
    table = [["K", *heads, "graphs built", "largest correlation"]]
    for k in sorted(settings.n_units):
        part = select(rows, K=k)
        cells = [" or ".join(sorted({f"{r[f'sda_{a}']:,}" for r in select(part, rho=rho)})) for rho, a in columns]
        built, correlation = sum(r["concepts"] for r in part), max(r["correlation"] for r in part)
        table.append([str(k), *cells, f"{built:,}", f"{correlation:g}"])
    return [*table, ["slope of log2", *map(str, slopes), "", ""]]


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """SDA against K on a logarithmic axis, a panel a radius."""
    fig, axes = panels(len(settings.radii), height=3.4)
    for axis, rho in zip(axes, settings.radii, strict=True):
        part = select(rows, rho=rho)
        grid = sorted({r["K"] for r in part})
        for access, name in _accesses(rho).items():
            means = [sum(r[f"sda_{access}"] for r in select(part, K=k)) / len(select(part, K=k)) for k in grid]
            axis.plot(grid, means, **_LOOK[access], ls="-", lw=1.0, mfc="none", mew=1.5, label=name)
        rows_seen = f"within {rho} of the path" if rho else "on the path"
        axis.set(xlabel="K (units)", ylabel="SDA (concepts)", title=f"{_name(rho)}: rows {rows_seen} tell nothing")
        axis.set_yscale("log", base=2)
        axis.set_xticks(grid)
        for y, text in ((0.1, "SDA = 1"), (0.55, "SDA = $2^K$")):
            axis.text(0.97, y, text, transform=axis.transAxes, ha="right", fontsize=8, color=GREY)
        legend(axis, "upper left")
    return fig


def quick() -> Settings:
    """Up to 64 concepts on a small base graph."""
    return Settings(n_units=[1, 2, 3, 4, 5, 6], cluster_size=24, walked=64, seeds=1)


EXPERIMENT = Experiment(
    "sda",
    "Theorem 5.3: with local access, exponentially many concepts look alike",
    "SDA(P; P) = 1, and SDA(P; ∅) ≥ SDA(P; M) ≥ SDA(P; nbd(M)) ≥ exp(Ω(K)): without global search the hard steps that a path takes "
    "do not tell what they compute.",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
