"""Beyond the paper (e): hitting time against every transition sampled, for no search, PRM guidance, PPO and distillation.

The reviewers' question: search, RL and distillation make a solve cheaper, but they walk themselves. So every transition after
pretraining is counted: those of search, of PPO's rollouts, of labelling and of T_dist. A method is a set-up cost S and an
exact price E of a solve (mean steps to X_out, of a lifted path for the student): n solves cost S + n·E. Break-even is the
number of solves from which that is less than n unaided ones. Every method may choose its own budget. All start from
the exact table, as after perfect pretraining, and one set-up serves every task on the graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure

from mcot_torch.algorithms.prm import PRM
from mcot_torch.errors import InputError
from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary
from mcot_torch.experiments.fits import select
from mcot_torch.experiments.plots import COLOURS, GREY, legend, panels
from mcot_torch.experiments.questions.beyond_common import ExactProblem, answer, make_problem, tune
from mcot_torch.experiments.support import exact_reasoner
from mcot_torch.reasoners import Reasoner

METHODS = {"none": "no search", "guided": "PRM guidance", "ppo": "PPO", "distill": "distillation (lifted)"}


@dataclass
class Settings:
    """Budgets."""

    epsilons: list[float] = field(default_factory=lambda: [0.001, 0.005])
    """Values of ε; ε_max is .96/M."""
    search_shares: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.4, 0.7, 1.0])
    """Outer rounds of search, in units of the default 3 K ln K."""
    ppo_transitions: list[int] = field(default_factory=lambda: [100, 1000, 10_000])
    """Transitions of each of 30 rounds of PPO."""
    distill_transitions: list[int] = field(default_factory=lambda: [10_000, 100_000, 1_000_000])
    """T_dist."""
    n_clusters: int = 8
    """K."""
    cluster_size: int = 16
    """M."""
    walks: int = 1000
    """Lifted paths whose mean length is taken."""
    seeds: int = 3
    """Graphs."""


def points(settings: Settings) -> list[Point]:
    """Every method at each of its budgets; PPO and distillation build on the cheaper searches too."""
    size = {"K": settings.n_clusters, "M": settings.cluster_size, "walks": settings.walks}
    shares = settings.search_shares
    budgets = [("guided", share, 0) for share in shares]
    budgets += [("ppo", share, t) for share in shares[-3::2] for t in settings.ppo_transitions]
    budgets += [("distill", share, t) for share in shares[-3::2] for t in settings.distill_transitions]
    return [
        {"method": method, "epsilon": e, **size, "share": share, "budget": budget, "seed": seed}
        for e in settings.epsilons
        for seed in range(settings.seeds)
        for method, share, budget in budgets
    ]


def measure(point: Point) -> Measurement:
    """Transitions of the set-up, and the price of a solve."""
    from mcot_torch.algorithms.config import SearchConfig
    from mcot_torch.algorithms.prm import guidance
    from mcot_torch.algorithms.search import resolve_search, search
    from mcot_torch.evaluation.measures import edge_precision_recall
    from mcot_torch.training.loop import Context

    problem, method, seed = make_problem(point), point["method"], point["seed"]
    graph, scales = problem.graph, problem.scales
    reasoner = exact_reasoner(graph)
    full = resolve_search(SearchConfig(), scales).rounds or 1
    found = search(reasoner, scales, SearchConfig(rounds=max(1, round(point["share"] * full))), Context(seed))
    prm, searched = found.model, found.cost.transitions
    row: Measurement = {
        "base": problem.base,
        "ideal": problem.ideal,
        "recall": edge_precision_recall(prm.edges, graph.sparse_edges)[1],
        "search": searched,
        "setup": searched,
        "arrived": 1.0,
    }
    if method == "guided":
        policy = guidance(prm, scales)
        log_p = reasoner.kernel().log()
        solve = problem.time(policy(torch.arange(graph.n_states), log_p, None).exp().numpy())
    elif method == "ppo":
        work = {"rounds": 30, "learning_rate": 0.06}
        tuned = tune(
            problem, reasoner, prm, seed, **work, transitions=point["budget"], path_length=min(256, point["budget"])
        )
        row["setup"] += tuned.cost.transitions
        solve = problem.time(reasoner.kernel().numpy())
    else:
        solve, more, row["arrived"] = _student(problem, reasoner, prm, point)
        row["setup"] = None if more is None else searched + more
    return {**row, "solve": solve}


def _student(
    problem: ExactProblem, reasoner: Reasoner, prm: PRM, point: Point
) -> tuple[float | None, int | None, float]:
    """Steps of a lifted solve, transitions of distillation, share of lifted paths that arrive.

    The student learns from the pretrained table and the PRM's hard steps, without PPO in between. Where distillation fails
    there is no price of a solve, and the transitions of the attempt are None: `distill` reports its cost with its student.
    """
    from mcot_torch.algorithms.config import DistillConfig
    from mcot_torch.algorithms.distill import distill
    from mcot_torch.evaluation.subjects import measure_lift
    from mcot_torch.training.loop import Context

    graph, scales, seed = problem.graph, problem.scales, point["seed"]
    if not len(prm.edges):
        return None, 0, 0.0
    config = DistillConfig(transitions=point["budget"], path_length=min(2048, point["budget"] // 100), steps=800)
    try:
        distilled = distill(reasoner, prm, scales, config, Context(seed))
    except InputError:  # no hard step was sampled, so that time has no scale
        return None, None, 0.0
    student, spent = distilled.model, distilled.cost.transitions
    if not _always_arrives(student.kernel().numpy(), student.labels.numpy(), problem):
        return None, spent, 0.0
    lifted = measure_lift(student, reasoner, prm, graph, problem.task, point["walks"], seed)
    share = lifted["lifted_valid"]
    return (lifted["lifted_steps"] if share > 0.99 else None), spent, share


def _always_arrives(kernel: np.ndarray, labels: np.ndarray, problem: ExactProblem) -> bool:
    """Whether the target's cluster can be reached from wherever the student may come: else it walks for ever."""
    n = len(kernel)
    reach = np.linalg.matrix_power((kernel > 0) | np.eye(n, dtype=bool), n) > 0
    comes = reach[np.unique(labels[problem.task.start > 0])].any(0)
    return bool(reach[comes][:, np.unique(labels[problem.task.target])].any(1).all())


def _cheapest(rows: list[Measurement], n: float) -> float:
    """Transitions for n solves with the best budget of one method, mean over seeds at each budget; inf where none solves."""
    best = math.inf
    for key in {(r["share"], r["budget"]) for r in rows}:
        part = [r for r in rows if (r["share"], r["budget"]) == key]
        if all(r["solve"] is not None for r in part):
            best = min(best, float(np.mean([r["setup"] + n * r["solve"] for r in part])))
    return best


def _break_even(rows: list[Measurement], rivals: list[Measurement] | None = None) -> float | None:
    """Smallest n from which the method costs less than n unaided solves, or than another method."""
    base = float(np.mean([r["base"] for r in rows]))
    for n in np.unique(np.geomspace(1, 1e6, 4000).round()):
        other = n * base if rivals is None else _cheapest(rivals, n)
        if _cheapest(rows, n) < other:
            return float(n)
    return None


def _best_solve(rows: list[Measurement]) -> tuple[float, float]:
    """(set-up, price) of the budget with the cheapest solves."""
    keys = {(r["share"], r["budget"]) for r in rows}
    groups = [[r for r in rows if (r["share"], r["budget"]) == key] for key in keys]
    good = [g for g in groups if all(r["solve"] is not None for r in g)]
    if not good:
        return math.inf, math.inf
    best = min(good, key=lambda g: np.mean([r["solve"] for r in g]))
    return float(np.mean([r["setup"] for r in best])), float(np.mean([r["solve"] for r in best]))


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Price of a solve, set-up, break-even for each method."""
    numbers, even, price = [], {}, {}
    for epsilon in settings.epsilons:
        here = select(rows, epsilon=epsilon)
        base = float(np.mean([r["base"] for r in here]))
        numbers.append(Number(f"ε = {epsilon:g}: E[τ] of an unaided solve", base))
        for method in list(METHODS)[1:]:
            part = select(here, method=method)
            setup, solve = _best_solve(part)
            even[epsilon, method], price[epsilon, method] = _break_even(part), solve
            finite = math.isfinite(solve)
            numbers += [
                Number(f"ε = {epsilon:g}: steps of a solve, {METHODS[method]}, best budget", solve if finite else None),
                Number(f"ε = {epsilon:g}: its set-up, in unaided solves", setup / base if finite else None),
                Number(f"ε = {epsilon:g}: break-even number of solves, {METHODS[method]}", even[epsilon, method]),
            ]
    for epsilon in settings.epsilons:
        here = select(rows, epsilon=epsilon)
        over = _break_even(select(here, method="distill"), select(here, method="guided"))
        numbers.append(Number(f"ε = {epsilon:g}: solves from which distillation beats guidance", over))
    told = []
    for epsilon in settings.epsilons:
        base = float(np.mean([r["base"] for r in select(rows, epsilon=epsilon)]))
        parts = [
            f"{METHODS[m]} {price[epsilon, m]:.0f} steps from solve {even[epsilon, m] or math.inf:.0f} on"
            for m in list(METHODS)[1:]
        ]
        told.append(f"at ε = {epsilon:g} (unaided {base:,.0f} steps a solve) {', '.join(parts)}")
    why = "Nothing pays for a single solve: " + "; ".join(told) + "."
    if any((n or math.inf) <= 1 for n in even.values()):
        why = why.replace("Nothing pays for a single solve: ", "")
    notes = [
        "Search dominates every set-up: all three methods need its hard steps, and it costs several unaided solves by design (Õ(KM/ε)). So none of "
        "them is a gain on one problem; they are gains when many problems share a graph, since one set-up serves every start and target.",
        "PPO buys the price of PRM guidance without a PRM at inference; in transitions it can only cost more.",
        "Pretraining is common to all and not counted.",
    ]
    return answer(numbers, why, notes)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Price of a solve against set-up; total against the number of solves."""
    fig, axes = panels(2 * len(settings.epsilons), columns=2, height=3.1)
    for row, epsilon in enumerate(settings.epsilons):
        here = select(rows, epsilon=epsilon)
        base = float(np.mean([r["base"] for r in here]))
        left, right = axes[2 * row : 2 * row + 2]
        left.axhline(base, color=GREY, ls="--", lw=1.1, label=METHODS["none"])
        n = np.geomspace(1, 3000, 120)
        right.plot(n, np.ones_like(n), "--", color=GREY, lw=1.1, label=METHODS["none"])
        for i, method in enumerate(list(METHODS)[1:]):
            part = [r for r in select(here, method=method) if r["solve"] is not None]
            left.plot(
                [r["setup"] for r in part],
                [r["solve"] for r in part],
                "os^"[i],
                color=COLOURS[i],
                ms=4,
                alpha=0.6,
                mew=0,
                label=METHODS[method],
            )
            total = np.array([_cheapest(select(here, method=method), v) for v in n])
            right.plot(n, total / (n * base), "-", color=COLOURS[i], lw=1.5, label=METHODS[method])
        left.set(
            xlabel="transitions of the set-up", ylabel="steps of a solve", title=f"ε = {epsilon:g}: price of a solve"
        )
        right.set(
            xlabel="solves n",
            ylabel="total / (n unaided solves)",
            title=f"ε = {epsilon:g}: all transitions for n solves, best budget",
        )
        for axis in (left, right):
            axis.set(xscale="log", yscale="log")
        left.set_ylim(top=3 * base)
        legend(left if row == 0 else right, "lower left" if row == 0 else "upper right")
    return fig


def quick() -> Settings:
    """A small graph, two budgets each."""
    return Settings([0.01], [0.2, 0.5, 1.0], [1000], [100_000], 4, 8, walks=200, seeds=1)


EXPERIMENT = Experiment(
    "beyond_compute_matched",
    "Compute-matched comparison",
    "Counting every transition that search, PPO and distillation sample themselves: what does a solve cost, and after how many solves "
    "has each paid for itself?",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
