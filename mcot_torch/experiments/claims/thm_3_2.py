"""Theorem 3.2: the expected hitting time is Θ̃(KM/ε). Exact E[τ] on grids of ε, M and K, families side by side.

The task is C_0 -> the cluster C_{K/2}. The bidirectional ring is the negative control: A4 fails there, a walk between
clusters diffuses, and E[τ] grows as K². On the complete family every cluster is one hop away, n_out grows with K, and
the upper bound is not tight in K: expected exponent 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

from matplotlib.figure import Figure

from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary, judge
from mcot_torch.experiments.fits import power_laws, select
from mcot_torch.experiments.plots import log_axis, panels, reference, trend
from mcot_torch.experiments.support import cluster_hitting_time, synthetic

FAMILIES = ["circulant", "ring", "random_regular", "complete", "bidirectional_ring"]
NAMES = {name: name.replace("_", " ") for name in FAMILIES} | {"random_regular": "random 3-regular"}
_LARGEST_COMPLETE = 32  # K of the complete family, which has K - 1 hard steps a cluster


@dataclass
class Settings:
    """The grid."""

    families: list[str] = field(default_factory=lambda: list(FAMILIES))
    """How clusters are joined."""
    epsilons: list[float] = field(default_factory=lambda: [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    """Values of ε."""
    cluster_sizes: list[int] = field(default_factory=lambda: [16, 32, 64])
    """Values of M."""
    n_clusters: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    """Values of K; the complete family stops at 32."""
    seeds: int = 3
    """Graphs of each kind."""


def points(settings: Settings) -> list[Point]:
    """The full grid of each family."""
    seeds = range(settings.seeds)
    grid = product(settings.families, settings.n_clusters, settings.cluster_sizes, seeds, settings.epsilons)
    return [
        {"family": family, "K": k, "M": m, "epsilon": epsilon, "seed": seed}
        for family, k, m, seed, epsilon in grid
        if family != "complete" or k <= _LARGEST_COMPLETE
    ]


def measure(point: Point) -> Measurement:
    """Exact E[τ] in steps, and in units of KM/ε."""
    graph = synthetic(point["family"], point["K"], point["M"], point["epsilon"], point["seed"])
    time = cluster_hitting_time(graph)
    return {"hitting_time": time, "constant": time * point["epsilon"] / (point["K"] * point["M"])}


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Exponents of E[τ] in ε, M and K by one regression a family."""
    numbers: list[Number] = []
    expected = {"ε": (-1.0, 0.01), "M": (1.0, 0.02), "K": (1.0, 0.05)}
    for family in settings.families:
        part = select(rows, family=family)
        columns = {"ε": [r["epsilon"] for r in part], "M": [r["M"] for r in part], "K": [r["K"] for r in part]}
        for letter, (b, half) in power_laws(columns, [r["hitting_time"] for r in part]).items():
            theory, tolerance = expected[letter]
            if letter == "K" and family == "bidirectional_ring":
                theory, tolerance = 2.0, 0.1
            bounds = {}
            if family == "circulant" or (family == "bidirectional_ring" and letter == "K"):
                bounds = {"at_least": theory - tolerance, "at_most": theory + tolerance}
            if letter == "K" and family == "complete":
                theory = 0.0
            name = f"exponent of {letter}, {NAMES[family]}"
            numbers.append(Number(name, b, b - half, b + half, expected=f"{theory:g}", **bounds))
    constants = [r["constant"] for r in select(rows, family="circulant")]
    numbers.append(Number("smallest E[τ]·ε/(KM), circulant", min(constants)))
    numbers.append(Number("largest E[τ]·ε/(KM), circulant", max(constants)))
    why = (
        f"E[τ] = c·KM/ε on the circulant with c between {min(constants):.3f} and {max(constants):.3f}, and the control grows as "
        "K² as it must where A4 fails."
    )
    notes = []
    if "complete" in settings.families:
        notes.append("Complete: one hop reaches any cluster and n_out grows with K, so the bound is not tight in K.")
    if spread := [r["constant"] for r in select(rows, family="random_regular")]:
        notes.append(
            f"Random 3-regular: E[τ]·ε/(KM) differs from graph to graph, {min(spread):.2f} to {max(spread):.2f} with how near the "
            "target happens to lie, and that, not the size, tilts its exponent of K."
        )
    return judge(numbers, why, constants=True, notes=notes)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """E[τ] along each axis, the others at their middle values."""
    fig, axes = panels(3, height=3.6)
    middle = {
        key: sorted(values)[len(values) // 2]
        for key, values in (
            ("epsilon", settings.epsilons),
            ("M", settings.cluster_sizes),
            ("K", [k for k in settings.n_clusters if k <= _LARGEST_COMPLETE]),
        )
    }
    labels = {"epsilon": "ε (probability a step)", "M": "M (states a cluster)", "K": "K (clusters)"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        others = {k: v for k, v in middle.items() if k != key}
        for i, family in enumerate(settings.families):
            part = select(rows, family=family, **others)
            trend(axis, [r[key] for r in part], [r["hitting_time"] for r in part], NAMES[family], i)
        title = ", ".join(f"{'ε' if k == 'epsilon' else k} = {v:g}" for k, v in others.items())
        axis.set(xlabel=label, title=title)
        log_axis(axis, "y")
        log_axis(axis, "x", None if key == "epsilon" else sorted({r[key] for r in rows}))
    part = select(rows, family="circulant", epsilon=middle["epsilon"], M=middle["M"])
    ks = [r["K"] for r in part]
    for exponent, text in ((1, "slope 1"), (2, "slope 2")):
        family = "circulant" if exponent == 1 else "bidirectional_ring"
        match = select(rows, family=family, epsilon=middle["epsilon"], M=middle["M"], K=min(ks))
        if match:
            reference(axes[2], ks, exponent, (min(ks), 0.75 * match[0]["hitting_time"]), text)
    axes[0].set_ylabel("E[τ] (steps)")
    handles, names = axes[2].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig


def quick() -> Settings:
    """Two values an axis."""
    return Settings(["circulant", "bidirectional_ring"], [1e-4, 1e-2], [16, 32], [16, 32], seeds=1)


EXPERIMENT = Experiment(
    "thm_3_2",
    "Theorem 3.2: hitting times scale as KM/ε",
    "From X_in the expected time to reach X_out is Θ̃(KM/ε) steps: exponents −1 in ε, 1 in M, 1 in K.",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
