"""Beyond the paper (d): outcome reward against process reward at equal transitions.

Outcome reward pays 1 for reaching X_out and nothing for a hard step, so it learns nothing before a first walk arrives: its
price of exploration is the unaided hitting time. Process reward pays for every hard step that is sampled, and a hard step
is sampled every N/ε transitions; its PRM had to be found first (15 KM/ε transitions of search). Both start from the exact
table of three graphs, and the budget of transitions grows past the unaided time of each. Measured: exact E[τ] of the task
they were trained on, and of the other clusters' entries, which the outcome reward never mentions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from mcot_torch.chains import hitting_time
from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary
from mcot_torch.experiments.fits import select
from mcot_torch.experiments.plots import COLOURS, GREY, log_axis, panels
from mcot_torch.experiments.questions.beyond_common import ExactProblem, answer, geometric_mean, make_problem, tune
from mcot_torch.experiments.support import exact_reasoner


@dataclass
class Settings:
    """Graphs and budgets."""

    graphs: list[list[float]] = field(default_factory=lambda: [[4, 6, 0.05], [6, 12, 0.005], [8, 16, 0.0005]])
    """K, M, ε of each graph."""
    budgets: list[int] = field(default_factory=lambda: [1000, 5000, 20_000, 100_000, 300_000])
    """Transitions sampled in all."""
    rounds: int = 30
    """Rounds that a budget is spread over."""
    epochs: int = 5
    """Passes over each rollout."""
    learning_rate: float = 0.1
    """Of Adam on the table."""
    seeds: int = 12
    """Graphs of each kind."""


def points(settings: Settings) -> list[Point]:
    """Both rewards at every budget on every graph."""
    work = {"rounds": settings.rounds, "epochs": settings.epochs, "rate": settings.learning_rate}
    return [
        {"reward": reward, "K": int(k), "M": int(m), "epsilon": e, "budget": budget, **work, "seed": seed}
        for k, m, e in settings.graphs
        for budget in settings.budgets
        for seed in range(settings.seeds)
        for reward in ("process", "outcome")
    ]


def measure(point: Point) -> Measurement:
    """E[τ] after training, over that before; how many walks arrived."""
    from mcot_torch.algorithms.prm import PRM

    problem = make_problem(point)
    reasoner = exact_reasoner(problem.graph)
    transitions = max(1, point["budget"] // point["rounds"])
    tuned = tune(
        problem,
        reasoner,
        PRM.simulated(problem.graph),
        point["seed"],
        reward=point["reward"],
        rounds=point["rounds"],
        epochs=point["epochs"],
        transitions=transitions,
        path_length=min(256, transitions),
        learning_rate=point["rate"],
        log_every=1,
    )
    steps = np.array([0] + [line["env_steps"] for line in tuned.history])
    paid = float(np.sum(np.diff(steps) * [line["mean_reward"] for line in tuned.history]))
    kernel, truth = reasoner.kernel().numpy(), problem.graph.kernel()
    time, after = problem.time(kernel), _others(problem, kernel)
    return {
        "env_steps": int(steps[-1]),
        "base": problem.base,
        "ideal": problem.ideal,
        "paid": paid,
        "time": time,
        "gain": None if time is None else problem.base / time,
        "gain_ideal": problem.base / problem.ideal,
        "gain_others": None if after is None else _others(problem, truth) / after,  # type: ignore[operator]
        "row_tv": float((np.abs(kernel - truth).sum(1) / 2).max()),
    }


def _others(problem: ExactProblem, kernel: np.ndarray) -> float | None:
    """Geometric mean of E[τ] from C_0 to the entries of the clusters other than C_0 and the target's."""
    graph = problem.graph
    k = graph.n_clusters
    times = [hitting_time(kernel, problem.task.start, [int(graph.entries[c])]) for c in range(1, k) if c != k // 2]
    return geometric_mean(times) if np.isfinite(times).all() else None


def _graph(settings: Settings, i: int) -> dict[str, float]:
    k, m, epsilon = settings.graphs[i]
    return {"K": int(k), "M": int(m), "epsilon": epsilon}


def _gain(rows: list[Measurement], key: str = "gain") -> float | None:
    values = [r[key] for r in rows if r[key] is not None]
    return geometric_mean(values) if values else None


def _threshold(rows: list[Measurement], budgets: list[int]) -> float | None:
    """Smallest budget, in unaided hitting times, from which the mean gain is at least 2."""
    reached = None
    for budget in sorted(budgets, reverse=True):
        part = select(rows, budget=budget)
        if (_gain(part) or 0.0) < 2:
            break
        reached = float(np.mean([r["env_steps"] / r["base"] for r in part]))
    return reached


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Gains at the largest budget, and where they begin."""
    numbers, starts = [], {}
    top = max(settings.budgets)
    for i in range(len(settings.graphs)):
        part = select(rows, **_graph(settings, i))
        name = "K = {:g}, M = {:g}, ε = {:g}".format(*settings.graphs[i])
        numbers.append(Number(f"{name}: unaided E[τ]", geometric_mean([r["base"] for r in part])))
        for reward in ("process", "outcome"):
            last = select(part, reward=reward, budget=top)
            numbers.append(Number(f"{name}: gain in E[τ] by {reward} reward at {top:,} transitions", _gain(last)))
            numbers.append(Number(f"{name}: gain for the other targets by {reward} reward", _gain(last, "gain_others")))
            starts[i, reward] = _threshold(select(part, reward=reward), settings.budgets)
            if starts[i, reward] is not None:
                numbers.append(
                    Number(
                        f"{name}: transitions / unaided E[τ] from which {reward} reward at least halves it",
                        starts[i, reward],
                    )
                )
        walked = [r for r in select(part, reward="outcome") if r["paid"] < 0.5]
        numbers.append(
            Number(
                f"{name}: outcome runs in which no walk ever arrived",
                len(walked),
                expected=f"of {len(select(part, reward='outcome'))}",
            )
        )
    silent = [r for r in select(rows, reward="outcome") if r["paid"] < 0.5]
    if silent:
        numbers.append(
            Number("largest gain of an outcome run in which no walk arrived", max(r["gain"] or 0 for r in silent))
        )
    first, biggest = numbers[0].value or 0, [n for n in numbers if n.name.endswith("unaided E[τ]")][-1].value or 0
    small = select(rows, **_graph(settings, 0), budget=top)
    large = select(rows, **_graph(settings, len(settings.graphs) - 1), budget=top)
    g = {
        (size, reward): _gain(select(part, reward=reward)) or 0
        for size, part in (("small", small), ("large", large))
        for reward in ("process", "outcome")
    }
    o = {
        (size, reward): _gain(select(part, reward=reward), "gain_others") or 0
        for size, part in (("small", small), ("large", large))
        for reward in ("process", "outcome")
    }
    why = (
        f"With {top:,} transitions outcome reward gains a factor {g['small', 'outcome']:.2g} where the unaided time is {first:.0f} (process {g['small', 'process']:.2g}) and "
        f"{g['large', 'outcome']:.2g} where it is {biggest:,.0f} (process {g['large', 'process']:.2g}): before a walk arrives there is nothing to learn from. For other targets outcome reward gives "
        f"{o['small', 'outcome']:.2g} and {o['large', 'outcome']:.2g}, process reward {o['small', 'process']:.2g} and {o['large', 'process']:.2g}."
    )
    notes = [
        "No cap holds the outcome reward at ε_max: where it learns it straightens the easy steps of the way as well and passes the "
        "process reward on its own task, at the price of all others.",
        "The process reward's PRM is given here; finding it costs 15 KM/ε transitions, 45 unaided hitting times of this task (beyond_compute_matched counts it).",
    ]
    return answer(numbers, why, notes)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Gain against budget: the task, and the other targets."""
    fig, axes = panels(2, height=3.8)
    for axis, key, title in ((axes[0], "gain", "the task trained on"), (axes[1], "gain_others", "the other targets")):
        for i in range(len(settings.graphs)):
            for j, reward in enumerate(("outcome", "process")):
                part = [r for r in select(rows, **_graph(settings, i), reward=reward) if r[key] is not None]
                if not part:
                    continue
                budgets = sorted({r["budget"] for r in part})
                x = [np.mean([r["env_steps"] / r["base"] for r in select(part, budget=b)]) for b in budgets]
                y = [geometric_mean([r[key] for r in select(part, budget=b)]) for b in budgets]
                k, m, e = settings.graphs[i]
                label = f"{reward}, K = {k:g}, M = {m:g}, ε = {e:g}" if axis is axes[0] else None
                axis.plot(
                    [r["env_steps"] / r["base"] for r in part],
                    [r[key] for r in part],
                    "os"[j],
                    color=COLOURS[i],
                    ms=3,
                    alpha=0.3,
                    mew=0,
                )
                axis.plot(x, y, "o-" if j == 0 else "s--", color=COLOURS[i], ms=4.5, lw=1.4, label=label)
        axis.axhline(1, color=GREY, lw=1, ls=":")
        axis.axvline(1, color=GREY, lw=1, ls=":")
        axis.set(xlabel="transitions / unaided E[τ]", title=title)
        log_axis(axis)
    axes[0].set_ylabel("E[τ] before / after")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7.5, edgecolor="none")
    return fig


def quick() -> Settings:
    """Two graphs, two budgets."""
    return Settings([[4, 6, 0.05], [4, 6, 0.002]], [1000, 20_000], rounds=20, seeds=1)


EXPERIMENT = Experiment(
    "beyond_outcome_reward",
    "Outcome reward against process reward",
    "At equal transitions, when does paying for the outcome teach what paying for each hard step does?",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
