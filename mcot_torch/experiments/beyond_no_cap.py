"""Beyond the paper (c): reinforcement learning without the cap at ε_max: what collapses, and when.

Process reward, one step, and the weight λ of the KL penalty as it should be (the optimum is ε_max), at .1, and next to 0. Two
graphs: hard steps that have a source each (d_out = 1), and three from one source (d_out = 3), where all of them are paid the same
and nothing but the penalty keeps them apart. Followed over the rounds: the mass of hard steps at their sources, the entropy of
those rows, how many ways out of a cluster are in use, how many hard steps walks really take, and the exact times to the entries of all clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from mcot_torch.chains import hitting_time
from mcot_torch.errors import InputError
from mcot_torch.experiments.base import Experiment, Number, Point, Row, Summary
from mcot_torch.experiments.beyond_common import Problem, answer, geometric_mean, make_problem, tune
from mcot_torch.experiments.fits import select
from mcot_torch.experiments.plots import COLOURS, GREY, legend, panels
from mcot_torch.experiments.support import exact_reasoner
from mcot_torch.randomness import generator
from mcot_torch.walks import StepTable, walk_paths

_WALKERS, _STEPS = 64, 4096  # sampled walks in which hard steps are counted


@dataclass
class Settings:
    """Size and penalties."""

    penalties: list[float | None] = field(default_factory=lambda: [None, 0.1, 0.001])
    """λ; null is the one whose optimum is ε_max."""
    d_outs: list[int] = field(default_factory=lambda: [1, 3])
    """Hard steps from one source; a cluster has three in all."""
    kinds: list[str] = field(default_factory=lambda: ["linear", "transformer"])
    """Reasoners; the table starts exact, the transformer from its own pretraining, at λ null and the smallest, d_out 3."""
    n_clusters: int = 8
    """K."""
    cluster_size: int = 16
    """M."""
    epsilon: float = 0.005
    """ε; ε_max is the smaller of .96/M and a third of what the graph allows."""
    rounds: int = 100
    """Rounds of PPO."""
    learning_rate: float = 0.05
    """Of Adam, for the table."""
    seeds: int = 4
    """Graphs; half as many for the transformer."""


def points(settings: Settings) -> list[Point]:
    """Penalties by graphs by models."""
    size = {"K": settings.n_clusters, "M": settings.cluster_size, "epsilon": settings.epsilon}
    result: list[Point] = []
    for kind in settings.kinds:
        linear = kind == "linear"
        rate = settings.learning_rate if linear else 1e-3
        for d_out in settings.d_outs if linear else settings.d_outs[-1:]:
            for penalty in settings.penalties if linear else [settings.penalties[0], settings.penalties[-1]]:
                for seed in range(settings.seeds if linear else (settings.seeds + 1) // 2):
                    where = {"kind": kind, "d_out": d_out, "penalty": penalty, **size, "seed": seed}
                    result.append({**where, "rounds": settings.rounds, "rate": rate})
    return result


def _state(problem: Problem, kernel: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """What there is to collapse, at one moment."""
    graph = problem.graph
    x, y = graph.sparse_edges.T
    sources = np.unique(x)
    rows = kernel[sources]
    entropy = -(rows * np.log(np.where(rows > 0, rows, 1.0))).sum(1)
    ways = np.zeros((graph.n_clusters, graph.n_clusters))
    np.add.at(ways, (graph.clusters[x], graph.clusters[y]), kernel[x, y])
    ways /= ways.sum(1, keepdims=True)
    used = np.exp(-(ways * np.log(np.where(ways > 0, ways, 1.0))).sum(1))
    draw = generator(0, "beyond_no_cap")
    starts = torch.from_numpy(graph.members(0)).repeat(-(-_WALKERS // graph.cluster_size))[:_WALKERS]
    path = walk_paths(StepTable.from_kernel(torch.from_numpy(kernel)), starts, _STEPS, draw).numpy()
    taken = np.zeros_like(kernel, dtype=bool)
    taken[path[:, :-1], path[:, 1:]] = True
    visited = [len(np.unique(p)) / graph.n_states for p in path]
    times = []
    for k in range(1, graph.n_clusters):
        try:
            times.append(hitting_time(kernel, problem.task.start, [int(graph.entries[k])]))
        except InputError:
            times.append(np.inf)
    other = np.setdiff1d(np.arange(graph.n_states), sources)
    return {
        "hard_mass": float((kernel[x, y].sum()) / len(sources)),
        "entropy": float(entropy.mean()),
        "ways": float(used.mean()),
        "ways_min": float(used.min()),
        "taken": float(taken[x, y].mean()),
        "visited": float(np.mean(visited)),
        "time": problem.time(kernel),
        "worst_time": max(times),
        "forgotten": float((np.abs(kernel - before).sum(1) / 2)[other].max()),
    }


def measure(point: Point) -> Row:
    """Every quantity over the rounds."""
    from mcot_torch.algorithms.pretrain import pretrain
    from mcot_torch.algorithms.prm import PRM
    from mcot_torch.reasoners import Reasoner, ReasonerConfig, build_reasoner
    from mcot_torch.training import Context

    d_out = point["d_out"]
    problem = make_problem(point, min(0.96 / point["M"], 1 / (3 * d_out)), d_out=d_out)
    graph, seed = problem.graph, point["seed"]
    if point["kind"] == "linear":
        reasoner: Reasoner = exact_reasoner(graph)
    else:
        reasoner = build_reasoner(ReasonerConfig(), graph.n_states, seed)
        pretrain(reasoner, graph, context=Context(seed))
    before = reasoner.kernel().numpy()
    path = [{"step": 0, **_state(problem, before, before)}]

    def probe(now: Reasoner) -> dict[str, Any]:
        path.append(_state(problem, now.kernel().numpy(), before))
        return {}

    options = {"rounds": point["rounds"], "kl_coefficient": point["penalty"], "log_every": max(1, point["rounds"] // 25)}
    lines = tune(problem, reasoner, PRM.simulated(graph), seed, probe, learning_rate=point["rate"], **options)
    for line, state in zip(lines, path[1:], strict=True):
        state["step"] = line["step"]
    ideal = _state(problem, graph.with_epsilon(problem.scales.epsilon_max).kernel(), before)
    row: Row = {key: [state[key] for state in path] for key in path[0]}
    return {**row, "ideal_time": problem.ideal, "ideal_worst": ideal["worst_time"], "cap": problem.scales.epsilon_max * d_out}


def _when(row: Row, key: str, crossed) -> float | None:  # type: ignore[no-untyped-def]
    return next((step for step, value in zip(row["step"], row[key], strict=True) if crossed(value)), None)


def summarise(settings: Settings, rows: list[Row]) -> Summary:
    """The end of every run, and when it got there."""
    numbers, free = [], min(p for p in settings.penalties if p is not None)
    ends = {}
    for kind in settings.kinds:
        for d_out in settings.d_outs:
            for penalty in settings.penalties:
                part = select(rows, kind=kind, d_out=d_out, penalty=penalty)
                if not part:
                    continue
                name = f"{kind}, d_out = {d_out}, λ {'at the cap' if penalty is None else f'= {penalty:g}'}"
                worst = [(r["worst_time"][-1] or np.inf) / r["ideal_worst"] for r in part]
                end = {
                    "mass": float(np.mean([r["hard_mass"][-1] / r["cap"] for r in part])),
                    "entropy": float(np.mean([r["entropy"][-1] / r["entropy"][0] for r in part])),
                    "ways": float(np.mean([r["ways"][-1] for r in part])),
                    "taken": float(np.mean([r["taken"][-1] for r in part])),
                    "time": geometric_mean([r["time"][-1] / r["ideal_time"] for r in part]),
                    "worst": geometric_mean(worst),
                }
                ends[kind, d_out, penalty] = end
                labels = {
                    "mass": "hard mass of a source / cap",
                    "entropy": "entropy of source rows / before",
                    "ways": "ways out of a cluster in use, of 3",
                    "taken": "share of hard steps that walks take",
                    "time": "E[τ] of the task / at ε_max",
                    "worst": "E[τ] of the slowest target / at ε_max",
                }
                numbers += [Number(f"{name}: {labels[key]}", value if np.isfinite(value) else None) for key, value in end.items()]
    when = {}
    for d_out in settings.d_outs:
        part = select(rows, kind="linear", d_out=d_out, penalty=free)
        past = [_when(r, "hard_mass", lambda v, r=r: v > 2 * r["cap"]) for r in part]
        half = [_when(r, "entropy", lambda v, r=r: v < r["entropy"][0] / 2) for r in part]
        two = [_when(r, "ways", lambda v: v < 2) for r in part]
        for what, values in (("hard mass > 2·cap", past), ("entropy < half", half), ("fewer than 2 ways out", two)):
            known = [v for v in values if v is not None]
            when[d_out, what] = float(np.median(known)) if 2 * len(known) > len(values) else None
            if when[d_out, what] is not None:
                numbers.append(Number(f"round at which {what}, d_out = {d_out}, λ = {free:g} (table, median)", when[d_out, what]))
    one, three = ends["linear", settings.d_outs[0], free], ends["linear", settings.d_outs[-1], free]
    capped = ends["linear", settings.d_outs[-1], None]
    why = (
        f"Without the cap hard steps take {one['mass']:.0f} times the mass of ε_max and the rows of sources keep {100 * one['entropy']:.0f} % of their entropy. With one hard step a source the task is "
        f"solved in {one['time']:.2g} of the time at ε_max and {one['ways']:.1f} of 3 ways out stay in use; with three that share a source and are paid alike "
        f"{three['ways']:.1f} of 3 stay ({capped['ways']:.1f} with the cap), and the slowest target takes {three['worst']:.3g} times its time at ε_max."
    )
    notes = [
        "Nothing but the penalty holds equally paid hard steps apart: the sampled advantage of a row's hard steps is the same, so chance moves them and Adam "
        "magnifies it; hitting times are finite only since a softmax never quite reaches 0.",
        "Rows of easy steps do not move in a table; what the transformer forgets there is the column `forgotten` of points.csv.",
    ]
    return answer(numbers, why, notes)


def figure(settings: Settings, rows: list[Row], summary: Summary) -> Figure:
    """Four quantities over the rounds."""
    fig, axes = panels(4, columns=2, height=2.7)
    keys = (
        ("hard_mass", "hard mass of a source"),
        ("entropy", "entropy of source rows (nats)"),
        ("ways", "ways out of a cluster in use"),
        ("worst_time", "E[τ] of the slowest target (steps)"),
    )
    for axis, (key, title) in zip(axes, keys, strict=True):
        for i, penalty in enumerate(settings.penalties):
            for d_out in settings.d_outs:
                part = select(rows, kind="linear", d_out=d_out, penalty=penalty)
                label = f"λ {'at the cap' if penalty is None else f'= {penalty:g}'}, d_out = {d_out}"
                style = "-" if d_out == settings.d_outs[0] else "--"
                curve = np.array([[v if v is not None else np.nan for v in r[key]] for r in part], dtype=float)
                mean = np.exp(np.log(curve).mean(0)) if key == "worst_time" else curve.mean(0)
                axis.plot(part[0]["step"], mean, style, color=COLOURS[i], lw=1.4, label=label)
        for r in select(rows, kind="transformer", penalty=settings.penalties[-1]):
            first = r["seed"] == 0
            axis.plot(r["step"], r[key], ":", color=COLOURS[3], lw=1.2, label="transformer, no cap" if first else None)
        axis.set_title(title)
        if key in ("hard_mass", "worst_time"):
            axis.set_yscale("log")
        if key in ("ways", "entropy"):
            axis.set_ylim(0, None)
    for axis in axes[2:]:
        axis.set_xlabel("PPO rounds")
    axes[0].axhline(select(rows, d_out=settings.d_outs[0])[0]["cap"], color=GREY, ls=":", lw=1)
    legend(axes[2], "lower left")
    return fig


def quick() -> Settings:
    """A small graph, the table alone."""
    return Settings([None, 0.001], [1, 3], ["linear"], 4, 8, 0.02, rounds=25, learning_rate=0.1, seeds=1)


EXPERIMENT = Experiment(
    "beyond_no_cap",
    "Reinforcement learning without the cap at ε_max",
    "What collapses, and when, if nothing stops PPO at ε_max: hard-step mass, entropy, or the diversity of paths?",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
