"""Proposition 3.3: search finds every hard step for about the price of one unaided solve, and guidance gains ε_max/ε.

Algorithm 2 walks the exact reasoner (logits log p^ε, support p^ε > 0), so that nothing but search is measured. Budgets
are R = f·K ln K outer rounds; the cost is counted in transitions, in units of (KM/ε)·ln K. The gain is E[τ] of the exact
chain over E[τ] of the reasoner guided by the M_s found, both solved exactly, against that of p^{ε_max}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from mcot_torch.algorithms.config import SearchConfig
from mcot_torch.chains import hitting_time
from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary, judge
from mcot_torch.experiments.fits import mean_number, power_laws, select, slope
from mcot_torch.experiments.plots import COLOURS, GREY, legend, log_axis, panels, trend
from mcot_torch.experiments.support import exact_reasoner, start_law, synthetic
from mcot_torch.reasoners.walks import step_table


@dataclass
class Settings:
    """Budgets and sizes."""

    n_clusters: list[int] = field(default_factory=lambda: [6, 10, 20])
    """Values of K."""
    cluster_size: int = 32
    """M."""
    epsilon: float = 0.002
    """ε."""
    budgets: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.4, 0.8, 1.5, 3.0])
    """f of R = f·K ln K (ln 10 where K < 10); 3 is the default of the package."""
    gains: list[float] = field(default_factory=lambda: [1.5, 2.0, 4.0, 8.0, 15.0])
    """ε_max/ε of guidance."""
    seeds: int = 10
    """Graphs, and searches, of each kind."""


def points(settings: Settings) -> list[Point]:
    """A search each."""
    return [
        {
            "K": k,
            "M": settings.cluster_size,
            "epsilon": settings.epsilon,
            "budget": f,
            "seed": seed,
            "gains": settings.gains if f == max(settings.budgets) else [],
        }
        for k in settings.n_clusters
        for f in settings.budgets
        for seed in range(settings.seeds)
    ]


def measure(point: Point) -> Measurement:
    """Recall, precision and cost; at the largest budget also what guidance gains."""
    from mcot_torch.algorithms.prm import guidance
    from mcot_torch.algorithms.search import search
    from mcot_torch.evaluation.measures import edge_precision_recall
    from mcot_torch.graphs.scales import Scales
    from mcot_torch.training.loop import Context

    k, m, epsilon = point["K"], point["M"], point["epsilon"]
    graph = synthetic("circulant", k, m, epsilon, point["seed"])
    reasoner = exact_reasoner(graph)
    rounds = max(2, math.ceil(point["budget"] * k * math.log(max(k, 10))))  # as the default has it
    found = search(reasoner, Scales.of(graph, epsilon), SearchConfig(rounds=rounds), Context(point["seed"]))
    prm, transitions = found.model, found.cost.transitions
    precision, recall = edge_precision_recall(prm.edges, graph.sparse_edges)
    result = {
        "rounds": rounds,
        "recall": recall,
        "precision": precision if len(prm.edges) else None,
        "transitions": transitions,
        "cost": transitions * epsilon / (k * m),
        "cost_log": transitions * epsilon / (k * m * math.log(k)),
    }
    before, after, ideal = [], [], []
    task = (start_law(graph), graph.members(k // 2))
    for gain in point["gains"]:
        scales = Scales.of(graph, gain * epsilon)
        table = step_table(reasoner, guidance(prm, scales))
        guided = table.to_edges(table.probabilities).numpy()
        before.append(hitting_time(graph.to_scipy(), *task, graph.clusters))
        after.append(hitting_time(guided, *task))
        ideal.append(hitting_time(graph.with_epsilon(gain * epsilon).to_scipy(), *task, graph.clusters))
    gained = [b / a for b, a in zip(before, after, strict=True)]
    return {**result, "gained": gained, "against_ideal": [a / i for a, i in zip(after, ideal, strict=True)]}


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Recall and precision at the largest budget, its cost, and the gain."""
    full = select(rows, budget=max(settings.budgets))
    costs = [r["cost_log"] for r in full]
    numbers = [
        Number(
            "smallest recall at the full budget", min(r["recall"] for r in full), at_least=1.0, expected="1 − Õ(1/K)"
        ),
        Number(
            "smallest precision at the full budget",
            min(r["precision"] or 0.0 for r in full),
            at_least=1.0,
            expected="1 − Õ(1/K)",
        ),
        mean_number("cost of the full budget in (KM/ε)·ln K transitions", costs, expected="Õ(1)"),
        mean_number("cost of the full budget in KM/ε transitions", [r["cost"] for r in full]),
    ]
    enough = [
        b for b in settings.budgets if all(r["recall"] == r["precision"] == 1.0 for r in rows if r["budget"] >= b)
    ]
    if enough:
        first = select(rows, budget=min(enough))
        numbers.append(
            mean_number(
                f"cost from which all seeds are at 1.0 (R = {min(enough):g}·K ln K), in (KM/ε)·ln K",
                [r["cost_log"] for r in first],
            )
        )
    numbers.append(
        Number("smallest precision at any budget", min(r["precision"] for r in rows if r["precision"] is not None))
    )
    if len(settings.n_clusters) > 1:
        b, half = power_laws({"K": [r["K"] for r in full]}, costs)["K"]
        numbers.append(
            Number("exponent of K in cost / ((KM/ε)·ln K)", b, b - half, b + half, expected="0 up to logarithms")
        )
    ratios = [(g, r["gained"][i]) for r in full for i, g in enumerate(r["gains"])]
    gains, gained = zip(*ratios, strict=True)
    numbers.append(slope("exponent of ε_max/ε in E[τ] before / after", gains, gained, 1.0, 0.05))
    ideal = [abs(value - 1.0) for r in full for value in r["against_ideal"]]
    numbers.append(Number("largest |E[τ] guided / E[τ] of p^ε_max − 1|", max(ideal), at_most=0.01, expected="0"))
    c = numbers[2]
    why = (
        f"With R = {max(settings.budgets):g}·K ln K rounds every hard step was found and nothing else, on {len(full)} of {len(full)} "
        f"graphs, for {c.value:.1f}·(KM/ε)·ln K transitions; guidance then gains ε_max/ε."
    )
    return judge(numbers, why, constants=True)


def _mean(rows: list[Measurement], key: str) -> float:
    """Mean of a column where it is defined: no precision without a step found."""
    values = [r[key] for r in rows if r[key] is not None]
    return sum(values) / len(values) if values else math.nan


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Recall and precision against cost; gain."""
    fig, (left, right) = panels(2, height=3.4)
    for i, k in enumerate(settings.n_clusters):
        part = select(rows, K=k)
        means = []
        for f in settings.budgets:
            same = select(part, budget=f)
            means.append([_mean(same, key) for key in ("cost_log", "recall", "precision")])
        cost, recall, precision = zip(*means, strict=True)
        left.plot(
            [r["cost_log"] for r in part], [r["recall"] for r in part], "o", color=COLOURS[i], ms=3, alpha=0.3, mew=0
        )
        left.plot(cost, recall, "o-", color=COLOURS[i], ms=4, lw=1.4, label=f"recall, K = {k}")
        left.plot(cost, precision, ":", color=COLOURS[i], lw=1.8, label=f"precision, K = {k}")
        full = select(part, budget=max(settings.budgets))
        gains = [g for r in full for g in r["gains"]]
        trend(right, gains, [v for r in full for v in r["gained"]], f"guided by M_s, K = {k}", i)
    ends = [min(settings.gains), max(settings.gains)]
    right.plot(ends, ends, "--", color=GREY, lw=1.1, label="ε_max/ε", zorder=1)
    left.set(
        xlabel="transitions / ((KM/ε)·ln K)", ylabel="share of hard steps", ylim=(-0.03, 1.05), title="budget of search"
    )
    right.set(xlabel="ε_max/ε", ylabel="E[τ] before / after guidance", title="gain of guidance")
    left.set_xscale("log")
    log_axis(left, "x")
    log_axis(right, "y")
    log_axis(right, "x", settings.gains)
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    legend(right, "upper left")
    return fig


def quick() -> Settings:
    """A cheaper ε and two sizes."""
    return Settings([4, 8], 16, 0.01, [0.5, 3.0], [2.0, 4.0], seeds=2)


EXPERIMENT = Experiment(
    "prop_3_3",
    "Proposition 3.3: search finds the hard steps for the price of one solve",
    "With R = Θ(K log K) rounds M_s = E_s with probability 1 − Õ(1/K) for Õ(KM/ε) transitions, and guidance by M_s brings the "
    "hitting time down to Θ̃(KM/ε_max).",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
