"""Section 5 in the pipeline: every model returns a path and its value, and only those that searched return the right one.

Pretraining, search, PPO and distillation as always; then the actions of the hard steps that search found are learned from labelled
paths. The control is a model that has learned all there is to learn on a problem that looks the same from every path: the
lift of another concept, or the same graph with other actions. What it may know without search is the same here and there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary, judge
from mcot_torch.experiments.fits import mean_number, select
from mcot_torch.experiments.plots import COLOURS, GREY, legend, panels

if TYPE_CHECKING:
    from torch import Tensor

    from mcot_torch.evaluation.problem import Problem
    from mcot_torch.logic import LogicalActions

_MODELS = ("pretrained", "control", "tuned", "student", "lifted")
_LIFT = "Z2"


@dataclass
class Settings:
    """Problems and sizes."""

    n_units: int = 6
    """K, units of the lift."""
    cluster_size: int = 16
    """M, states a lane of the lift, and a cluster of the circulant."""
    n_clusters: int = 6
    """Clusters of the circulant."""
    epsilon: float = 0.004
    """ε."""
    groups: list[str] = field(default_factory=lambda: ["Z5", "S3"])
    """Groups with random actions on the circulant, beside Z2 on the lift."""
    seeds: int = 3
    """Concepts, graphs, actions and weights, for each group."""
    reasoner: str = "transformer"
    """Which model: transformer or linear."""
    steps: int = 900
    """Of pretraining, two thirds of them before the cut, and of distillation."""
    walks: int = 1000
    """Walks of each model."""
    twins: int = 8
    """Other concepts, or other actions, of the control."""


def points(settings: Settings) -> list[Point]:
    """One pipeline each."""
    s = settings
    shared = {"M": s.cluster_size, "epsilon": s.epsilon, "reasoner": s.reasoner, "steps": s.steps, "walks": s.walks}
    return [
        {"group": group, "K": s.n_units if group == _LIFT else s.n_clusters, "seed": seed, "twins": s.twins, **shared}
        for group in (_LIFT, *s.groups)
        for seed in range(s.seeds)
    ]


def measure(point: Point) -> Measurement:
    """Shares of valid paths and of right values."""
    import copy

    import torch

    from mcot_torch.algorithms.distill import distill
    from mcot_torch.algorithms.ppo import ppo
    from mcot_torch.algorithms.pretrain import pretrain
    from mcot_torch.algorithms.search import search
    from mcot_torch.evaluation.models import EvaluationInputs, subjects
    from mcot_torch.evaluation.problem import Models, prepare
    from mcot_torch.evaluation.subjects import measure as measure_subject
    from mcot_torch.evaluation.subjects import measure_lift
    from mcot_torch.evaluation.values import Values
    from mcot_torch.reasoners import build_reasoner
    from mcot_torch.training.loop import Context

    config, context = _config(point), Context(point["seed"])
    problem = prepare(config.graph, config.task, config.logic)
    graph, task, scales, seed = problem.graph, problem.task, problem.scales, point["seed"]
    assert problem.actions is not None
    pretrained = build_reasoner(config.reasoner, graph.n_states, seed)
    pretrain(pretrained, graph, config.pretrain, context)
    prm, tuned = search(pretrained, scales, None, context).model, copy.deepcopy(pretrained)
    target = torch.from_numpy(task.mask())
    ppo(tuned, prm, scales, config.ppo, context, torch.from_numpy(task.start), target)
    student = distill(tuned, prm, scales, config.distill, context).model

    e_max, walks = scales.epsilon_max, point["walks"]
    values = Values(problem.actions, config.logic.paths, scales, seed, pretrained, prm, tuned, student, e_max)
    rows: dict[str, Measurement] = {}
    models = Models(pretrained, prm, tuned, student)
    for subject in subjects(EvaluationInputs(problem, models, "tuned", 1, seed)):
        if subject.name in _MODELS:
            watched, judged = values.watch(subject)
            measure_subject(watched, walks, 12.0, seed)
            rows[subject.name] = judged()
    lifted = measure_lift(student, tuned, prm, graph, task, walks, seed, values.lifted)
    rows["lifted"] = {key: lifted[f"lifted_{key}"] for key in ("valid_path", "right_value")}
    row: Measurement = {f"{name}_{key[:5]}": rows[name][key]["share"] for name in rows for key in rows[name]}
    row["control_right"] = _control(point, problem, pretrained, target)
    told, hard = values.summary(), set(map(tuple, graph.sparse_edges.tolist()))
    return row | {
        "unknown": len(told["steps"]["unknown"]) + len(told["hops"]["unknown"]),
        "wrong": len(told["steps"]["wrong"]),
        "missed": len(hard - set(map(tuple, prm.edges.tolist()))),
        "used": told["steps"]["used"],
        "order": told["order"],
    }


def _config(point: Point) -> Any:
    from mcot_torch.runs.config import Config

    config = Config(seed=point["seed"])
    graph, linear = config.graph, point["reasoner"] == "linear"
    graph.n_clusters, graph.cluster_size = point["K"], point["M"]
    graph.epsilon, graph.seed = point["epsilon"], point["seed"]
    config.logic.group, config.logic.seed = point["group"], point["seed"]
    if point["group"] == _LIFT:
        graph.family, graph.concept, config.logic.actions = "lift", _concept(point, 0), "concept"
        config.task.start, config.task.target = "state:0a", "state:goal.a"
    config.reasoner.kind = point["reasoner"]
    config.pretrain.steps, config.pretrain.steps_after_cut = point["steps"] * 2 // 3, point["steps"] // 3
    config.ppo.form = "sign" if linear else "clip"
    config.distill.transitions, config.distill.steps = 10**7, point["steps"]
    return config


def _concept(point: Point, twin: int) -> list[int]:
    """p, or with `twin` another p': uniform over all but 0, whose value is constant, and but p itself."""
    import torch

    from mcot_torch.logic import all_bits
    from mcot_torch.system.randomness import generator

    everything = all_bits(point["K"])[1:]
    order = torch.randperm(len(everything), generator=generator(point["seed"], "concept", point["K"]))
    bits: list[int] = everything[order[twin % len(order)]].tolist()
    return bits


def _twin(point: Point, problem: Problem, number: int) -> LogicalActions:
    """The actions of a problem that looks the same."""
    from mcot_torch.graphs.families.lifts import LiftedUnits
    from mcot_torch.logic import LogicalActions, concept_actions
    from mcot_torch.logic.task import named_group
    from mcot_torch.system.randomness import generator

    if point["group"] == _LIFT:
        units = LiftedUnits(point["K"], point["M"], point["epsilon"], 0, point["seed"])
        return concept_actions(units, units.graph(_concept(point, number)))
    return LogicalActions.random(
        problem.graph, named_group(point["group"]), generator(point["seed"], "twin actions", number)
    )


def _control(point: Point, problem: Problem, pretrained: Any, target: Tensor) -> float:
    """Share of the pretrained model's walks to whose end a twin's actions give the right value, over all twins."""
    import torch

    from mcot_torch.evaluation.values import ValueWalker, step_matrix
    from mcot_torch.reasoners import walks
    from mcot_torch.sampling.walks import first_hitting_times
    from mcot_torch.system.randomness import generator

    actions, n = problem.actions, problem.graph.n_states
    assert actions is not None
    matrices = []
    for number in range(point["twins"] + 1):
        these = _twin(point, problem, number) if number else actions
        hard = torch.from_numpy(these.graph.hard)
        edges = torch.from_numpy(these.graph.sparse_edges)
        matrices.append(step_matrix(n, edges, these.alpha[hard], actions.group.identity))
    draw = generator(point["seed"], "control")
    start = torch.multinomial(torch.from_numpy(problem.task.start), point["walks"], replacement=True, generator=draw)
    walker = ValueWalker(walks.walker(pretrained, start, draw), target, actions.group, *matrices)
    first_hitting_times(walker, target, int(12 * problem.hitting_time(problem.graph.epsilon)))
    right = (walker.values[1:] == walker.values[0]) & walker.arrived
    return float(right.double().mean())


# ---- what came out --------------------------------------------------------------------------------------------------


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Who is right."""
    numbers = []
    for name in ("tuned", "student", "lifted"):
        what = "lifted paths of the student" if name == "lifted" else f"{name}{' model' if name == 'tuned' else ''}"
        for key, words in (("valid", "valid path"), ("right", "valid path and right value")):
            least = min(row[f"{name}_{key}"] for row in rows)
            numbers.append(Number(f"{what}: {words}, least of all runs", least, at_least=0.99, expected="at least .99"))
    for group in dict.fromkeys(row["group"] for row in rows):
        part = select(rows, group=group)
        bias = (2 / 3) ** settings.n_units if group == _LIFT else 0.0
        numbers.append(
            mean_number(
                f"control, {group}: right values, advantage over chance",
                [_advantage(row, "control") for row in part],
                at_most=bias + 0.1,
                expected=f"{bias:.2g}",
            )
        )
        numbers.append(
            mean_number(
                f"pretrained model, {group}: right values, advantage over chance",
                [_advantage(row, "pretrained") for row in part],
            )
        )
    for key, words in (("missed", "hard steps that search missed"), ("unknown", "actions that stayed unknown")):
        numbers.append(Number(words, sum(row[key] for row in rows), at_most=0, expected="0"))
    numbers.append(Number("actions learned wrong", sum(row["wrong"] for row in rows), at_most=0, expected="0"))
    pooled = ", ".join(f"{name} {_pooled(rows, f'{name}_right')[2]}" for name in ("tuned", "student", "lifted"))
    why = "The models that searched return a valid path and its value; what can be known without search says next to nothing of it."
    used = [row["used"] for row in rows]
    notes = [
        f"Right values over all runs, Wilson's 95 % intervals: {pooled}.",
        "Advantage over chance is (share − 1/|G|)/(1 − 1/|G|): 1 for always right, 0 for a guess.",
        "The pretrained model has not searched: it knows no hard step and returns the identity. The control knows all actions of a problem "
        "that no path tells from this one. On the lift it errs only where a detour is taken an odd number of times, by one walk in three, "
        "which leaves an advantage of (2/3)^K in the mean over concepts.",
        f"Peeling used {min(used):,} to {max(used):,} of 2,000 labelled paths. It is exact algebra, no statistical query: Theorem 5.2 does not "
        "bound it. What search contributes is which steps can act at all.",
    ]
    return judge(numbers, why, notes=notes)


def _advantage(row: Measurement, name: str) -> float:
    chance = 1 / row["order"]
    return float((row[f"{name}_right"] - chance) / (1 - chance))


def _pooled(rows: list[Measurement], key: str) -> tuple[float, float, str]:
    """Wilson's interval of a share over all walks of all runs."""
    from mcot_torch.evaluation.statistics import wilson_interval

    n = sum(row["walks"] for row in rows)
    hits = sum(round(row[key] * row["walks"]) for row in rows)
    low, high = (float(end) for end in wilson_interval(hits / n, n))
    return low, high, f"{hits / n:.2%} [{low:.2%}, {high:.2%}]"


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Shares of right values for each model and group, with intervals over all walks, and the valid paths around them."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    fig, axes = panels(len(groups), width=3.6 * len(groups), height=3.3)
    for axis, group in zip(axes, groups, strict=True):
        part = select(rows, group=group)
        for i, name in enumerate(_MODELS):
            key = f"{name}_right"
            each = [row[key] for row in part]
            share = float(np.mean(each))
            axis.bar(i, share, color=COLOURS[i], alpha=0.3, width=0.7)
            if name != "control":  # its walks are used once for each twin
                low, high, _ = _pooled(part, key)
                axis.errorbar(
                    i, share, [[max(0.0, share - low)], [max(0.0, high - share)]], color=COLOURS[i], capsize=4
                )
            spread = np.linspace(-0.15, 0.15, len(each)) if len(each) > 1 else np.zeros(1)
            axis.plot(i + spread, each, "o", color=COLOURS[i], ms=3.5)
            if f"{name}_valid" in part[0]:
                valid = float(np.mean([row[f"{name}_valid"] for row in part]))
                axis.plot(i, valid, "_", color="black", ms=18, label="valid path" if i == 0 else None)
        axis.axhline(1 / part[0]["order"], color=GREY, ls="--", lw=1.1, label="chance")
        axis.set_xticks(range(len(_MODELS)), _MODELS, rotation=20)
        where = f"lift of K = {part[0]['K']} units" if group == _LIFT else "circulant, random actions"
        axis.set(
            ylim=(0, 1.3),
            yticks=np.linspace(0, 1, 6),
            title=f"{group[0]}$_{group[1:]}$, {where}",
            ylabel="share of walks with the right value",
        )
    legend(axes[0], "upper left")
    return fig


def quick() -> Settings:
    """Tables in place of networks, a lift and S_3."""
    return Settings(
        n_units=3, cluster_size=8, n_clusters=4, epsilon=0.01, groups=["S3"], seeds=1, reasoner="linear", steps=150, walks=200, twins=4
    )  # fmt: skip


EXPERIMENT = Experiment(
    "logic_pipeline",
    "Section 5 in the pipeline: a valid path and its value",
    "A model that searched, and the student that it teaches, return a valid path and the value that the hard steps compute along it; "
    "what a path shows of the graph does not tell that value.",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
