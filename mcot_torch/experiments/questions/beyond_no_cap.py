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

from mcot_torch.chains import hitting_time, stationary_law
from mcot_torch.errors import InputError
from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary
from mcot_torch.experiments.fits import select
from mcot_torch.experiments.plots import COLOURS, GREY, panels
from mcot_torch.experiments.questions.beyond_common import ExactProblem, answer, geometric_mean, make_problem, tune
from mcot_torch.experiments.support import exact_reasoner
from mcot_torch.sampling.walks import StepTable, walk_paths
from mcot_torch.system.randomness import generator

_WALKERS, _STEPS = 64, 1024  # sampled walks in which hard steps are counted


@dataclass
class Settings:
    """Size and penalties."""

    penalties: list[float | None] = field(default_factory=lambda: [None, 0.1, 0.001])
    """λ; null is the one whose optimum is ε_max."""
    d_outs: list[int] = field(default_factory=lambda: [1, 3])
    """Hard steps from one source; a cluster has three in all."""
    transitions: list[int] = field(default_factory=lambda: [100_000, 1000])
    """Steps sampled in a round; the second and later ones at the smallest λ and the last d_out only."""
    kinds: list[str] = field(default_factory=lambda: ["linear", "transformer"])
    """Reasoners; the table starts exact, the transformer from its own pretraining, at λ null and the smallest, d_out 3."""
    n_clusters: int = 8
    """K."""
    cluster_size: int = 16
    """M."""
    epsilon: float = 0.005
    """ε; ε_max is the smaller of .96/M and a third of what the graph allows."""
    rounds: int = 60
    """Rounds of PPO."""
    learning_rate: float = 0.05
    """Of Adam, for the table."""
    seeds: int = 3
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
                    few = linear and d_out == settings.d_outs[-1] and penalty == settings.penalties[-1]
                    for transitions in settings.transitions if few else settings.transitions[:1]:
                        work = {"rounds": settings.rounds, "rate": rate, "transitions": transitions}
                        result.append({**where, **work})
    return result


def _state(problem: ExactProblem, kernel: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """What there is to collapse, at one moment."""
    graph = problem.graph
    x, y = graph.sparse_edges.T
    sources = np.unique(x)
    rows = kernel[sources]
    entropy = -(rows * np.log(np.where(rows > 0, rows, 1.0))).sum(1)
    ways = np.zeros((graph.n_clusters, graph.n_clusters))
    law = stationary_law(kernel)
    np.add.at(ways, (graph.clusters[x], graph.clusters[y]), law[x] * kernel[x, y])
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
        "states": float(np.exp(-(law * np.log(np.where(law > 0, law, 1.0))).sum()) / graph.n_states),
        "time": problem.time(kernel),
        "worst_time": max(times),
        "forgotten": float((np.abs(kernel - before).sum(1) / 2)[other].max()),
    }


def _farthest(problem: ExactProblem, kernel: np.ndarray) -> float:
    """Exact E[τ] from C_0 to the state that takes longest."""
    return max(hitting_time(kernel, problem.task.start, [x]) for x in range(problem.graph.n_states))


def measure(point: Point) -> Measurement:
    """Every quantity over the rounds."""
    from mcot_torch.algorithms.pretrain import pretrain
    from mcot_torch.algorithms.prm import PRM
    from mcot_torch.reasoners import Reasoner, ReasonerConfig, build_reasoner
    from mcot_torch.training.loop import Context

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

    options = {
        "transitions": point["transitions"],
        "rounds": point["rounds"],
        "kl_coefficient": point["penalty"],
        "log_every": max(1, point["rounds"] // 20),
    }
    tuned = tune(problem, reasoner, PRM.simulated(graph), seed, probe, learning_rate=point["rate"], **options)
    for line, state in zip(tuned.history, path[1:], strict=True):
        state["step"] = line["step"]
    ideal = _state(problem, graph.with_epsilon(problem.scales.epsilon_max).kernel(), before)
    row: Measurement = {key: [state[key] for state in path] for key in path[0]}
    return {
        **row,
        "ideal_time": problem.ideal,
        "ideal_worst": ideal["worst_time"],
        "farthest": _farthest(problem, reasoner.kernel().numpy()),
        "ideal_farthest": _farthest(problem, graph.with_epsilon(problem.scales.epsilon_max).kernel()),
        "cap": problem.scales.epsilon_max * d_out,
    }


def _when(steps: list[int], crossed: np.ndarray) -> float | None:
    """The first of the rounds at which something had happened."""
    return float(steps[int(crossed.argmax())]) if crossed.any() else None


def _end(part: list[Measurement]) -> dict[str, float]:
    """Means over seeds after the last round."""
    worst = [(r["worst_time"][-1] or np.inf) / r["ideal_worst"] for r in part]
    return {
        "hard mass of a source / cap": float(np.mean([r["hard_mass"][-1] / r["cap"] for r in part])),
        "entropy of source rows / before": float(np.mean([r["entropy"][-1] / r["entropy"][0] for r in part])),
        "ways out of a cluster in use, of 3": float(np.mean([r["ways"][-1] for r in part])),
        "share of hard steps that sampled walks take": float(np.mean([r["taken"][-1] for r in part])),
        "states in use, exp(entropy of the stationary law)/N": float(np.mean([r["states"][-1] for r in part])),
        "E[τ] of the task / at ε_max": geometric_mean([r["time"][-1] / r["ideal_time"] for r in part]),
        "E[τ] of the slowest entry / at ε_max": geometric_mean(worst),
        "E[τ] of the slowest state / at ε_max": geometric_mean([r["farthest"] / r["ideal_farthest"] for r in part]),
    }


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """The end of every run, and when it got there."""
    numbers, ends = [], {}
    free, many = settings.penalties[-1], settings.transitions[0]
    for key in dict.fromkeys((r["kind"], r["d_out"], r["penalty"], r["transitions"]) for r in rows):
        kind, d_out, penalty, transitions = key
        ends[key] = _end(select(rows, kind=kind, d_out=d_out, penalty=penalty, transitions=transitions))
        name = f"{kind}, d_out = {d_out}, λ {'at the cap' if penalty is None else f'= {penalty:g}'}"
        if transitions != many:
            name += f", {transitions:,} steps a round"
        numbers += [Number(f"{name}: {what}", v if np.isfinite(v) else None) for what, v in ends[key].items()]
    for d_out in settings.d_outs:
        part = select(rows, kind="linear", d_out=d_out, penalty=free, transitions=many)
        crossings: dict[str, list[float | None]] = {
            "hard mass > 2·cap": [_when(r["step"], np.array(r["hard_mass"]) > 2 * r["cap"]) for r in part],
            "entropy of source rows < half": [
                _when(r["step"], np.array(r["entropy"]) < r["entropy"][0] / 2) for r in part
            ],
            "half of the states in use": [_when(r["step"], np.array(r["states"]) < 0.5) for r in part],
        }
        for what, values in crossings.items():
            known = [v for v in values if v is not None]
            if 2 * len(known) > len(values):
                numbers.append(
                    Number(f"round of {what}, d_out = {d_out}, λ = {free:g} (table, median)", float(np.median(known)))
                )
    one, three = ends["linear", settings.d_outs[0], free, many], ends["linear", settings.d_outs[-1], free, many]
    few = ends["linear", settings.d_outs[-1], free, settings.transitions[-1]]
    mass, states = "hard mass of a source / cap", "states in use, exp(entropy of the stationary law)/N"
    ways, far = "ways out of a cluster in use, of 3", "E[τ] of the slowest state / at ε_max"
    task, entry = "E[τ] of the task / at ε_max", "E[τ] of the slowest entry / at ε_max"
    why = (
        f"The clusters collapse, not the speed: without the cap hard steps take {one[mass]:.0f} times their mass at ε_max, the task is solved in {one[task]:.2g} of "
        f"the time, but only {100 * one[states]:.0f} % of the states stay in use and the slowest state takes {one[far]:.2g} times as long. The choice among equally paid hard steps "
        f"({three[ways]:.1f} of 3 ways out with {many:,} steps a round) falls to {few[ways]:.1f} with {settings.transitions[-1]:,}, where the slowest entry takes "
        f"{few[entry]:.3g} times as long as at ε_max."
    )
    if shared := ends.get(("transformer", settings.d_outs[-1], free, many)):
        why += (
            f" The transformer, whose rows share weights, falls to {shared[ways]:.1f} ways even with {many:,}, and its slowest entry takes {shared[entry]:.3g} times "
            "as long."
        )
    notes = [
        "Once a source's hard mass is near 1 all its sampled steps are paid alike and their advantage is 0: what chance did to their shares until then stays for "
        "good. Small rollouts leave much to chance, since a round may see one of three hard steps only. Times stay finite since a softmax never reaches 0.",
        "Rows of easy steps do not move in a table; what the transformer forgets there is the column `forgotten` of points.csv.",
    ]
    return answer(numbers, why, notes)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Four quantities over the rounds."""
    fig, axes = panels(4, columns=2, height=2.7)
    keys = (
        ("hard_mass", "hard mass of a source"),
        ("states", "share of states in use"),
        ("ways", "ways out of a cluster in use"),
        ("worst_time", "E[τ] of the slowest entry (steps)"),
    )
    for axis, (key, title) in zip(axes, keys, strict=True):
        for i, penalty in enumerate(settings.penalties):
            for d_out in settings.d_outs:
                part = select(rows, kind="linear", d_out=d_out, penalty=penalty, transitions=settings.transitions[0])
                label = f"λ {'at the cap' if penalty is None else f'= {penalty:g}'}, d_out = {d_out}"
                style = "-" if d_out == settings.d_outs[0] else "--"
                curve = np.array([[v if v is not None else np.nan for v in r[key]] for r in part], dtype=float)
                mean = np.exp(np.log(curve).mean(0)) if key == "worst_time" else curve.mean(0)
                axis.plot(part[0]["step"], mean, style, color=COLOURS[i], lw=1.4, label=label)
        for r in [r for r in rows if r["transitions"] != settings.transitions[0]]:
            note = f"the same, {r['transitions']:,} steps a round" if r["seed"] == 0 else None
            axis.plot(r["step"], r[key], "-", color=COLOURS[4], lw=0.9, alpha=0.8, label=note)
        for r in select(rows, kind="transformer", penalty=settings.penalties[-1]):
            first = r["seed"] == 0
            axis.plot(r["step"], r[key], ":", color=COLOURS[3], lw=1.2, label="transformer, no cap" if first else None)
        axis.set_title(title)
        if key in ("hard_mass", "worst_time"):
            axis.set_yscale("log")
        if key in ("ways", "states"):
            axis.set_ylim(0, 3.15 if key == "ways" else 1.05)
    for axis in axes[2:]:
        axis.set_xlabel("PPO rounds")
    axes[0].axhline(select(rows, d_out=settings.d_outs[0])[0]["cap"], color=GREY, ls=":", lw=1)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7.5, edgecolor="none")
    return fig


def quick() -> Settings:
    """A small graph, the table alone."""
    return Settings(
        [None, 0.001], [1, 3], [20_000, 300], ["linear"], 4, 8, 0.02, rounds=15, learning_rate=0.15, seeds=1
    )


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
