"""Beyond the paper (b): what an imperfect process reward model does to the hitting time.

A PRM that takes easy steps for hard ones (false positives), misses hard ones (false negatives), or answers every call
with noise. The optimum of PPO's objective is known in closed form (`prm.tilt`), so its hitting time is exact; PPO itself
is run at a few of the points. Under noise PRM guidance, which asks at every step, is compared with PPO, which averages
over its rounds: with independent noise a step the guided walk is a chain with the mean of the noisy kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure

from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary
from mcot_torch.experiments.fits import select
from mcot_torch.experiments.plots import COLOURS, GREY, legend, panels
from mcot_torch.experiments.questions.beyond_common import ExactProblem, answer, geometric_mean, make_problem, tune
from mcot_torch.experiments.support import exact_reasoner

_CALLS = 200  # noisy kernels whose mean a guided walk follows


@dataclass
class Settings:
    """Grids."""

    false_positives: list[float] = field(default_factory=lambda: [0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0])
    """Share of easy steps taken for hard ones."""
    false_negatives: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
    """Share of hard steps that are missed."""
    noises: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.3, 1.0, 3.0])
    """Standard deviation of a score's error at every call; a hard step scores 1."""
    ppo_errors: list[list[float]] = field(default_factory=lambda: [[0.01, 0.0], [0.1, 0.0], [0.0, 0.4], [0.0, 0.8]])
    """(false positive, false negative) at which PPO is run as well."""
    n_clusters: int = 8
    """K."""
    cluster_size: int = 16
    """M."""
    epsilon: float = 0.005
    """ε; ε_max is .96/M."""
    ppo_rounds: int = 60
    """Rounds of PPO."""
    seeds: int = 20
    """Graphs and drawn errors of the exact part."""
    ppo_seeds: int = 3
    """Those of PPO."""


def points(settings: Settings) -> list[Point]:
    """Each error rate alone, both together at equal precision and recall losses, noise; PPO on some."""
    size = {"K": settings.n_clusters, "M": settings.cluster_size, "epsilon": settings.epsilon}
    grid = {(fp, 0.0, 0.0) for fp in settings.false_positives} | {(0.0, fn, 0.0) for fn in settings.false_negatives}
    grid |= {(0.0, 0.0, noise) for noise in settings.noises}
    kinds = [(0, *where, seed) for where in sorted(grid) for seed in range(settings.seeds)]
    some = [(fp, fn, 0.0) for fp, fn in settings.ppo_errors] + [(0.0, 0.0, noise) for noise in settings.noises]
    kinds += [(settings.ppo_rounds, *where, seed) for where in some for seed in range(settings.ppo_seeds)]
    return [{"rounds": r, "fp": fp, "fn": fn, "noise": noise, **size, "seed": s} for r, fp, fn, noise, s in kinds]


def measure(point: Point) -> Measurement:
    """E[τ] over that at ε_max: of the optimum or, with noise, of guidance; or of PPO."""
    from mcot_torch.algorithms.prm import PRM

    problem = make_problem(point)
    prm = PRM.simulated(problem.graph, point["fp"], point["fn"], point["noise"], point["seed"])
    row: Measurement = {"base": problem.base / problem.ideal, "false_steps": len(prm.edges)}
    if point["rounds"] == 0:
        kernel = _optimum(problem, prm)
    else:
        reasoner = exact_reasoner(problem.graph)
        tune(problem, reasoner, prm, point["seed"], rounds=point["rounds"])
        kernel = reasoner.kernel().numpy()
    time = problem.time(kernel)
    found = set(map(tuple, prm.edges.tolist()))
    row["false_steps"] = len(found - set(map(tuple, problem.graph.sparse_edges.tolist())))
    hard = float(problem.hard(kernel).mean()) / problem.scales.epsilon_max
    return {**row, "hard": hard, "ratio": None if time is None else time / problem.ideal}


def _optimum(problem: ExactProblem, prm) -> np.ndarray:  # type: ignore[no-untyped-def]
    from mcot_torch.algorithms.prm import tilt

    log_p = torch.from_numpy(problem.graph.kernel()).log()
    calls = _CALLS if prm.noise else 1
    total = torch.zeros_like(log_p)
    for _ in range(calls):
        total += tilt(log_p, prm.scores(), prm.mask(), problem.scales).exp()
    return (total / calls).numpy()


def _mean(rows: list[Measurement], **where: float) -> float | None:
    values = [r["ratio"] for r in select(rows, **where)]
    return geometric_mean(values) if values and None not in values else None


def _tolerance(rows: list[Measurement], key: str, grid: list[float]) -> float:
    """Largest rate up to which the mean hitting time stays within twice the ideal one."""
    good = 0.0
    for value in sorted(grid):
        if (_mean(rows, **{**_CLEAN, key: value}) or np.inf) > 2.0:
            break
        good = value
    return good


_CLEAN = {"rounds": 0, "fp": 0.0, "fn": 0.0, "noise": 0.0}
_NAMES = {"fp": "false-positive rate", "fn": "false-negative rate", "noise": "noise of a call"}


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """What each error costs, and how far PPO is from the closed form."""
    grids = {"fp": settings.false_positives, "fn": settings.false_negatives, "noise": settings.noises}
    base = geometric_mean([r["base"] for r in select(rows, **_CLEAN)])
    numbers = [Number("E[τ] without a PRM / ideal", base)]
    tolerance = {}
    for key, grid in grids.items():
        tolerance[key] = _tolerance(rows, key, grid)
        numbers.append(Number(f"largest {_NAMES[key]} with E[τ] ≤ 2·ideal (guided)", tolerance[key]))
        costs = [_mean(rows, **{**_CLEAN, key: value}) or 0.0 for value in grid]
        worst = grid[int(np.argmax(costs))]
        numbers.append(Number(f"worst E[τ] / ideal, at {_NAMES[key]} {worst:g}", _mean(rows, **{**_CLEAN, key: worst})))
    away = []
    for fp, fn in settings.ppo_errors:
        for r in select(rows, rounds=settings.ppo_rounds, fp=fp, fn=fn):
            closed = select(rows, **{**_CLEAN, "fp": fp, "fn": fn}, seed=r["seed"])[0]["ratio"]
            away.append(abs(r["ratio"] / closed - 1))
    numbers.append(Number("largest |E[τ] of PPO / closed form − 1|, without noise", max(away)))
    loud = max(settings.noises)
    pair = (
        _mean(rows, **{**_CLEAN, "noise": loud}),
        _mean(rows, **{**_CLEAN, "rounds": settings.ppo_rounds, "noise": loud}),
    )
    numbers += [
        Number(f"E[τ] / ideal at noise {loud:g}, guided", pair[0]),
        Number(f"E[τ] / ideal at noise {loud:g}, PPO", pair[1]),
    ]
    most = {key: max(r["ratio"] for r in rows if r["rounds"] == 0 and r[key] > 0) for key in ("fp", "fn")}
    raised = float(np.mean([r["hard"] for r in select(rows, **{**_CLEAN, "noise": loud})]))
    numbers += [
        Number("worst E[τ] / ideal of a single PRM with false positives", most["fp"]),
        Number("worst E[τ] / ideal of a single PRM with false negatives", most["fn"]),
        Number(f"mean hard step / ε_max at noise {loud:g}, guided", raised),
    ]
    why = (
        f"The gain of {base:.1f} survives (mean E[τ] within twice the ideal) up to a false-positive rate of {tolerance['fp']:g} and a "
        f"false-negative rate of {tolerance['fn']:g}; single PRMs can be worse than none, {most['fp']:.3g} times the ideal with false positives and "
        f"{most['fn']:.3g} with false negatives; at noise {loud:g} guidance is at {pair[0] or np.nan:.2g} times the ideal, its hard steps at "
        f"{raised:.1f}·ε_max, and PPO at {pair[1] or np.nan:.2g}."
    )
    notes = [
        "A false positive on an easy step of probability 1/4 is raised to about .84: two of them facing each other are a trap. "
        "At rate 1 every step of a row is rewarded alike, nothing is tilted and the base chain comes back.",
        "Missed steps can be worse than no PRM where those that are known lead the wrong way round.",
        "Noise in every call does not slow guidance: the mean of exp(Λσz) is exp(Λ²σ²/2), rare steps gain more than they lose, and hard steps pass ε_max. What "
        "is lost is the cap (see beyond_past_epsilon_max), not the speed.",
        "Means over seeds are geometric.",
    ]
    return answer(numbers, why, notes)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """The three errors."""
    fig, axes = panels(3, height=3.4)
    base = geometric_mean([r["base"] for r in select(rows, **_CLEAN)])
    for axis, key in zip(axes, _NAMES, strict=True):
        others = {k: v for k, v in _CLEAN.items() if k not in (key, "rounds")}
        for i, (rounds, label) in enumerate(
            ((0, "optimum" if key != "noise" else "guided"), (settings.ppo_rounds, "PPO"))
        ):
            part = [r for r in select(rows, **others, rounds=rounds) if r["ratio"] is not None]
            if key != "noise" and rounds:
                part = [r for r in part if [r["fp"], r["fn"]] in settings.ppo_errors]
            x = [r[key] for r in part]
            if rounds and key != "noise":
                axis.plot(x, [r["ratio"] for r in part], "x", color=COLOURS[1], ms=6, label=label)
            elif part:
                grid = sorted(set(x))
                means = [geometric_mean([r["ratio"] for r in select(part, **{key: v})]) for v in grid]
                axis.plot(x, [r["ratio"] for r in part], "os"[i], color=COLOURS[i], ms=3, alpha=0.35, mew=0)
                axis.plot(grid, means, ("o-", "s-")[i], color=COLOURS[i], ms=4.5, lw=1.4, label=label)
        axis.axhline(base, color=GREY, ls=":", lw=1.1, label="no PRM")
        axis.axhline(1, color=GREY, ls="--", lw=1.1, label="perfect PRM")
        axis.set(xlabel=_NAMES[key])
        axis.set_yscale("log")
        if key != "fn":
            axis.set_xscale(
                "symlog", linthresh=min(v for v in (settings.false_positives if key == "fp" else settings.noises) if v)
            )
            axis.set_xlim(left=0)
    axes[0].set_ylabel("E[τ] / E[τ] at ε_max")
    every = [r["ratio"] for r in rows if r["ratio"] is not None]
    for axis in axes:
        axis.set_ylim(0.8 * min(every), 1.3 * max(*every, base))
        legend(axis, "upper left")
    return fig


def quick() -> Settings:
    """A small graph, few points."""
    return Settings([0.0, 0.1, 1.0], [0.0, 0.5, 1.0], [0.0, 1.0], [[0.0, 0.5]], 4, 8, 0.01, 25, seeds=2, ppo_seeds=1)


EXPERIMENT = Experiment(
    "beyond_imperfect_prm",
    "An imperfect process reward model",
    "How much of the gain survives a PRM with false positives, false negatives, or noise in every call?",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
