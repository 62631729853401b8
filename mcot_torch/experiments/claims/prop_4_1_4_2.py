"""Propositions 4.1 and 4.2: the distilled kernel keeps the escape probabilities q*, and few transitions suffice.

Proposition 4.1, exactly: q° is the law of the next cluster given this one in equilibrium, what Algorithm 4 learns from
infinitely many pairs. Its escape probabilities P_k(τ̄_l < τ̄_k) over clusters are held against q*(C_l|C_k) of the states.
Proposition 4.2, by distilling: a student learns from T_dist transitions of the exact reasoner; its error is the
root mean square of the relative ones over the hops that exist, against q°.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from mcot_torch.algorithms.config import DistillConfig
from mcot_torch.chains import escape_probabilities, meta_chain, pair_kernel
from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary, judge
from mcot_torch.experiments.fits import select, slope
from mcot_torch.experiments.plots import GREY, last_value, legend, log_axis, panels, reference, trend
from mcot_torch.experiments.support import exact_reasoner, synthetic


@dataclass
class Settings:
    """Grids of both parts."""

    epsilons: list[float] = field(default_factory=lambda: [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    """ε of the escape-probability ratio."""
    n_clusters: list[int] = field(default_factory=lambda: [4, 10, 16])
    """K of the ratio; distillation uses `distil_clusters`."""
    cluster_sizes: list[int] = field(default_factory=lambda: [32, 64])
    """M of the ratio."""
    transitions: list[float] = field(default_factory=lambda: [3e6, 1e7, 3e7, 1e8, 3e8, 1e9])
    """T_dist."""
    distil_clusters: int = 10
    """K of distillation; M is 32."""
    distil_epsilons: list[float] = field(default_factory=lambda: [0.002, 0.03])
    """ε of distillation: before and after tuning."""
    seeds: int = 5
    """Graphs, and samples, of each kind."""


def points(settings: Settings) -> list[Point]:
    """Ratios, then distilled students."""
    result: list[Point] = [
        {"part": "ratio", "K": k, "M": m, "epsilon": epsilon, "seed": seed, "T": None}
        for k in settings.n_clusters
        for m in settings.cluster_sizes
        for seed in range(min(settings.seeds, 3))
        for epsilon in settings.epsilons
    ]
    return result + [
        {"part": "error", "K": settings.distil_clusters, "M": 32, "epsilon": epsilon, "seed": seed, "T": t}
        for epsilon in settings.distil_epsilons
        for t in settings.transitions
        for seed in range(settings.seeds)
    ]


def measure(point: Point) -> Measurement:
    """Extremes of the ratio, or the student's errors."""
    graph = synthetic("circulant", point["K"], point["M"], point["epsilon"], point["seed"])
    q = pair_kernel(graph.to_scipy(), graph.clusters, graph.n_clusters)
    off = ~np.eye(graph.n_clusters, dtype=bool)
    if point["part"] == "ratio":
        escape = np.stack([np.nan_to_num(escape_probabilities(q, [k])) for k in range(graph.n_clusters)], axis=1)
        ratio = (escape / meta_chain(graph))[off]
        return {"ratio_min": ratio.min(), "ratio_max": ratio.max()}
    from mcot_torch.algorithms.distill import distill
    from mcot_torch.algorithms.prm import PRM
    from mcot_torch.graphs.scales import Scales
    from mcot_torch.training.loop import Context

    config = DistillConfig(transitions=int(point["T"]), beta=0.0)  # time as it is
    scales = Scales.of(graph, graph.epsilon)
    student = distill(exact_reasoner(graph), PRM.simulated(graph), scales, config, Context(point["seed"])).model
    learned = student.kernel().numpy()
    edges = off & (q > 0)
    wrong = int((student.labels.numpy() != graph.clusters).sum())
    if learned.shape != q.shape:
        return {"error": None, "error_max": None, "support_exact": False, "wrong_labels": wrong}
    relative = (learned / np.where(edges, q, 1.0) - 1.0)[edges]
    support = bool(((student.support.mask.numpy() & off) == edges).all())
    errors = {"error": np.sqrt((relative**2).mean()), "error_max": np.abs(relative).max()}
    return {**errors, "support_exact": support, "wrong_labels": wrong}


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """How far the ratio is from 1 at the smallest and the largest ε; slopes of the error."""
    ratios = select(rows, part="ratio")
    numbers = []
    for epsilon, most in ((min(settings.epsilons), 1.001), (max(settings.epsilons), 1.05)):
        part = select(ratios, epsilon=epsilon)
        numbers.append(
            Number(
                f"largest ratio at ε = {epsilon:g}",
                max(r["ratio_max"] for r in part),
                at_most=most,
                expected="1 + o(1)",
            )
        )
        numbers.append(
            Number(
                f"smallest ratio at ε = {epsilon:g}",
                min(r["ratio_min"] for r in part),
                at_least=0.999,
                expected="1 + o(1)",
            )
        )
    numbers.append(
        slope("exponent of ε in ratio − 1", [r["epsilon"] for r in ratios], [r["ratio_max"] - 1.0 for r in ratios])
    )
    for epsilon in settings.distil_epsilons:
        part = [r for r in select(rows, part="error", epsilon=epsilon) if r["error"] is not None and r["support_exact"]]
        numbers.append(
            slope(
                f"exponent of T_dist in the error at ε = {epsilon:g}",
                [r["T"] for r in part],
                [r["error"] for r in part],
                -0.5,
                0.1,
            )
        )
    drawn = select(rows, part="error")
    scaled = [r["error"] * (r["T"] * r["epsilon"] / (r["K"] * r["M"])) ** 0.5 for r in drawn if r["error"] is not None]
    numbers.append(Number("largest rms error · sqrt(T_dist·ε/(KM))", max(scaled)))
    numbers.append(Number("states labelled wrongly, of all", float(sum(r["wrong_labels"] for r in drawn)), at_most=0.0))
    why = (
        f"The ratio is within {numbers[0].value - 1:.0e} of 1 at ε = {min(settings.epsilons):g} and within "  # type: ignore[operator]
        f"{numbers[2].value - 1:.2f} at {max(settings.epsilons):g}; the student's error falls as T_dist^-1/2."  # type: ignore[operator]
    )
    notes = ["The ratio exceeds 1 by a constant times ε: q° counts the mass that the hard steps take from μ_k."]
    return judge(numbers, why, notes=notes)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Ratio − 1 against ε; error against T_dist."""
    fig, (left, right) = panels(2, height=3.3)
    for i, (k, m) in enumerate((k, m) for k in settings.n_clusters for m in settings.cluster_sizes):
        part = select(rows, part="ratio", K=k, M=m)
        trend(left, [r["epsilon"] for r in part], [r["ratio_max"] - 1 for r in part], f"K = {k}, M = {m}", i)
    for i, epsilon in enumerate(settings.distil_epsilons):
        part = [r for r in select(rows, part="error", epsilon=epsilon) if r["error"] is not None]
        trend(right, [r["T"] for r in part], [r["error"] for r in part], f"ε = {epsilon:g}", i)
        mark = (32 / epsilon) ** 2
        if settings.transitions[0] <= mark <= settings.transitions[-1]:
            right.axvline(mark, color=GREY, ls=":", lw=1)
            right.text(mark, 0.97, " M²/ε²", color=GREY, fontsize=8, va="top", transform=right.get_xaxis_transform())
    ts = settings.transitions
    reference(right, ts, -0.5, (max(ts), 0.6 * last_value(right)), "slope −1/2")
    left.set(xlabel="ε (probability a step)", ylabel="largest escape ratio − 1", title="Prop. 4.1: escape of q° / q*")
    right.set(
        xlabel="T_dist (transitions)",
        ylabel="rms relative error of q̂",
        title=f"Prop. 4.2: K = {settings.distil_clusters}, M = 32",
    )
    for axis in (left, right):
        log_axis(axis)
        legend(axis, "upper left" if axis is left else "lower left")
    return fig


def quick() -> Settings:
    """A corner of both grids."""
    return Settings([1e-5, 1e-3, 1e-2], [4], [32], [1e7, 1e9], 6, [0.03], seeds=2)


EXPERIMENT = Experiment(
    "prop_4_1_4_2",
    "Propositions 4.1 and 4.2: the distilled kernel keeps the escape probabilities",
    "Escape probabilities of the distilled kernel are (1 + o(1)) times q*, and T_dist = Õ(M²/ε²) transitions suffice to "
    "learn it.",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
