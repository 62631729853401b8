"""Theorem 3.1: pretraining learns the kernel, the cut leaves exactly its support, and then the error falls exponentially.

The table is trained by the gradient descent of Algorithm 1 (step size N) in two ways. With exact gradients T counts
steps: before the cut impossible steps lose mass as 1/T, after it nothing but the rates of convergence of the rows is
left. Rows do not interact and all rows of a family look alike, so one graph of each size is enough. The exponent is
fitted from T = 16/ε: until the hard steps themselves are learned they are the error. From T sampled pairs (X_0 uniform, X_1 ~ p^ε) the error is statistical. sup-error is the largest |p̂ − p^ε| of all
entries. The theorem's bound is O(sqrt(KM²/T)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mcot_torch.algorithms.pretrain import negative_log_likelihood
from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary, judge
from mcot_torch.experiments.fits import power_laws, select, straight_line
from mcot_torch.experiments.plots import COLOURS, GREY, last_value, legend, log_axis, panels, reference, trend
from mcot_torch.experiments.support import synthetic
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.reasoners import LinearReasoner
from mcot_torch.sampling.walks import StepTable, pair_counts
from mcot_torch.system.randomness import generator

_THRESHOLD = 0.35  # c_thres in units of ε, inside the paper's (1/4, 1/2)


@dataclass
class Settings:
    """Graphs and lengths."""

    n_clusters: list[int] = field(default_factory=lambda: [4, 8])
    """K of each graph."""
    cluster_sizes: list[int] = field(default_factory=lambda: [16, 32])
    """M of each graph."""
    epsilons: list[float] = field(default_factory=lambda: [0.02, 0.01])
    """ε of each graph."""
    steps: list[int] = field(default_factory=lambda: [100, 200, 400, 800, 1600, 3200, 6400, 12800])
    """Exact gradients: T at which the error is read; the last is T1, where the cut comes."""
    steps_after: list[int] = field(default_factory=lambda: [250, 500, 750, 1000, 1500, 2000, 3000, 4000])
    """Exact gradients: steps after the cut at which the error is read."""
    pairs: list[float] = field(default_factory=lambda: [1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7])
    """Sampled pairs T."""
    pair_steps: int = 3200
    """Steps of gradient descent on each sample, enough for its error to be the sample's."""
    seeds: int = 4
    """Samples, each of a graph of its own."""


def points(settings: Settings) -> list[Point]:
    """One point a graph with exact gradients, one a sample."""
    result: list[Point] = []
    graphs = zip(settings.n_clusters, settings.cluster_sizes, settings.epsilons, strict=True)
    for k, m, epsilon in graphs:
        where = {"K": k, "M": m, "epsilon": epsilon}
        result.append(
            {
                "data": "exact",
                **where,
                "T": None,
                "seed": 0,
                "steps": settings.steps,
                "steps_after": settings.steps_after,
            }
        )
        result += [
            {"data": "pairs", **where, "T": t, "seed": seed, "steps": [settings.pair_steps], "steps_after": []}
            for t in settings.pairs
            for seed in range(settings.seeds)
        ]
    return result


def descend(model: LinearReasoner, counts: Tensor, steps: Sequence[int], truth: Tensor) -> list[float]:
    """Gradient descent at rate N on the likelihood of counts (N, N); sup-error after each of `steps`."""
    states, errors = torch.arange(model.n_states)[:, None], []
    for step in range(1, max(steps, default=0) + 1):
        loss = negative_log_likelihood(model.log_probs(states)[:, 0], counts)
        (gradient,) = torch.autograd.grad(loss, model.logits)
        with torch.no_grad():
            model.logits.sub_(model.n_states * gradient)
        if step in steps:
            errors.append(float((model.kernel() - truth).abs().max()))
    return errors


def measure(point: Point) -> Measurement:
    """sup-errors before the cut, whether the cut leaves the support, sup-errors after it."""
    graph: MetastableGraph = synthetic("circulant", point["K"], point["M"], point["epsilon"], point["seed"])
    truth = torch.from_numpy(graph.kernel())
    if point["data"] == "exact":
        counts = truth
    else:
        draw = generator(point["seed"], "thm_3_1", int(point["T"]))
        table = StepTable.from_graph(graph)
        counts = table.to_edges(pair_counts(table, int(point["T"]), draw))
    model = LinearReasoner(graph.n_states)
    errors = descend(model, counts, point["steps"], truth)
    model.support.cut(model.kernel(), _THRESHOLD * graph.epsilon)
    exact_support = bool((model.support.mask == (truth > 0)).all())
    after = descend(model, counts, point["steps_after"], truth)
    return {"errors": errors, "error": errors[-1], "support_exact": exact_support, "errors_after": after}


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Exponents in T, the constants of the bound, the rate after the cut."""
    exact, sampled = select(rows, data="exact"), select(rows, data="pairs")
    read = [(r, t, e) for r in exact for t, e in zip(r["steps"], r["errors"], strict=True)]
    long = [(r, t, e) for r, t, e in read if t >= 16 / r["epsilon"]]
    numbers = [
        _common("exponent of T, exact gradients", [(_graph(r), t, e) for r, t, e in long], -1.0, 0.15),
        _common("exponent of T, sampled pairs", [(_graph(r), r["T"], r["error"]) for r in sampled], -0.5, 0.1),
    ]
    every = [e * (t / _size(r)) ** 0.5 for r, t, e in read]
    drawn = [r["error"] * (r["T"] / _size(r)) ** 0.5 for r in sampled]
    numbers += [
        Number("constant C of sup-error ≤ C·sqrt(KM²/T), exact gradients", max(every)),
        Number("constant C of sup-error ≤ C·sqrt(KM²/T), sampled pairs", max(drawn)),
        Number(
            "share of graphs whose support is exact after the cut (exact gradients)",
            sum(r["support_exact"] for r in exact) / len(exact),
            at_least=1.0,
            expected="1",
        ),
    ]
    rates, fits = [], []
    for r in exact:
        decades = [(t, np.log(e)) for t, e in zip(r["steps_after"], r["errors_after"], strict=True) if e > 1e-13]
        if len(decades) >= 3:
            b, _, _, r2 = straight_line(*zip(*decades, strict=True))
            rates.append(-b / r["epsilon"])
            fits.append(r2)
    numbers.append(
        Number(
            "R² of log sup-error against steps after the cut", min(fits) if fits else None, at_least=0.97, expected="1"
        )
    )
    if rates:
        numbers.append(Number("slowest rate after the cut, in units of ε a step", min(rates)))
    end = max(r["errors_after"][-1] for r in exact)
    numbers.append(Number("largest sup-error at the end", end))
    safe = _safe_pairs(sampled)
    if safe is not None:
        numbers.append(Number("pairs after which the cut was safe on every sample, in units of KM²/ε²", safe))
    why = (
        f"sup-error stays below {max(*every, *drawn):.2g}·sqrt(KM²/T), the cut leaves the support exactly, and after it the error "
        f"falls exponentially, to {end:.0e} or less."
    )
    notes = ["The bound is loose by design: with exact gradients the error falls as 1/T, twice as fast as it promises."]
    return judge(numbers, why, constants=True, notes=notes)


def _size(row: Measurement) -> float:
    return float(row["K"] * row["M"] ** 2)


def _graph(row: Measurement) -> tuple[int, int]:
    return row["K"], row["M"]


def _common(name: str, data: list[tuple[tuple[int, int], float, float]], theory: float, tolerance: float) -> Number:
    """One exponent of T for all graphs, each with a constant of its own."""
    groups = sorted({group for group, _, _ in data})
    columns = {"T": [t for _, t, _ in data]}
    for group in groups[1:]:  # a dummy in logarithms
        columns[str(group)] = [np.e if g == group else 1.0 for g, _, _ in data]
    b, half = power_laws(columns, [e for _, _, e in data])["T"]
    bounds = {"at_least": theory - tolerance, "at_most": theory + tolerance}
    return Number(name, b, b - half, b + half, expected=f"about {theory:g}", **bounds)


def _safe_pairs(rows: list[Measurement]) -> float | None:
    """Smallest T, in units of KM²/ε², from which on every sample's support came out exactly, on every graph."""
    worst = []
    for group in sorted({_graph(r) for r in rows}):
        part = [r for r in rows if _graph(r) == group]
        failed = max((r["T"] for r in part if not r["support_exact"]), default=0)
        good = [r["T"] for r in part if r["T"] > failed]
        if not good:
            return None
        worst.append(min(good) * part[0]["epsilon"] ** 2 / _size(part[0]))
    return max(worst)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Error before the cut (exact, sampled) and after it."""
    fig, axes = panels(3, height=3.3)
    for i, (k, m) in enumerate(zip(settings.n_clusters, settings.cluster_sizes, strict=True)):
        label = f"K = {k}, M = {m}"
        exact, sampled = select(rows, data="exact", K=k, M=m), select(rows, data="pairs", K=k, M=m)
        trend(axes[0], [t for r in exact for t in r["steps"]], [e for r in exact for e in r["errors"]], label, i)
        trend(axes[1], [r["T"] for r in sampled], [r["error"] for r in sampled], label, i)
        for r in exact:
            axes[2].plot(r["steps_after"], r["errors_after"], "os"[i % 2] + "-", color=COLOURS[i], ms=4, lw=1.4)
    for axis, exponent, key in ((axes[0], -1.0, "steps"), (axes[1], -0.5, "pairs")):
        ts = getattr(settings, key)
        reference(axis, ts, exponent, (max(ts), 0.6 * last_value(axis)), f"slope {exponent:g}".replace("-", "−"))
    axes[2].axhline(2.2e-16, color=GREY, ls=":", lw=1)
    axes[2].text(0.02, 1.6e-16, "rounding", color=GREY, fontsize=8, va="top", transform=axes[2].get_yaxis_transform())
    axes[0].set(xlabel="T (steps of gradient descent)", ylabel="sup |p̂ − p|", title="before the cut, exact gradients")
    axes[1].set(xlabel="T (sampled pairs)", title="before the cut, sampled pairs")
    axes[2].set(xlabel="steps after the cut", title="after the cut, exact gradients", yscale="log", ylim=(4e-17, 1e-3))
    for axis in axes[:2]:
        log_axis(axis)
        legend(axis, "lower left")
    return fig


def quick() -> Settings:
    """One small graph."""
    return Settings(
        [4], [8], [0.05], [100, 200, 400, 800, 1600], [50, 100, 150, 200, 250], [1e4, 1e5, 1e6], 800, seeds=2
    )


EXPERIMENT = Experiment(
    "thm_3_1",
    "Theorem 3.1: pretraining learns the kernel in two stages",
    "Before the cut the sup-error is O(sqrt(KM²/T)); the cut leaves exactly the support; after it the error falls "
    "exponentially.",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
