"""Beyond the paper (g): hard steps that enter a cluster anywhere, instead of all at one state (A5).

A5 is assumed for distillation only. Without it a hard step into a cluster ends at a state of its own, the heads of known hard steps
are several a cluster, and labelling has to merge those that walks without hard steps connect. The same clusters and the
same seeds with single and with free entries go through search, PPO and distillation; the target is the cluster C_{K/2}.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from matplotlib.figure import Figure

from mcot_torch.chains import hitting_time, meta_chain
from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary
from mcot_torch.experiments.fits import mean_number, select
from mcot_torch.experiments.plots import COLOURS, panels
from mcot_torch.experiments.questions.beyond_common import answer, geometric_mean, make_problem, stages
from mcot_torch.experiments.support import exact_reasoner
from mcot_torch.graphs.task import TaskConfig, build_task


@dataclass
class Settings:
    """Size."""

    entries: list[str] = field(default_factory=lambda: ["single", "free"])
    """Where hard steps arrive."""
    n_clusters: list[int] = field(default_factory=lambda: [8, 16])
    """Values of K."""
    cluster_size: int = 16
    """M."""
    epsilon: float = 0.005
    """ε; ε_max is .96/M."""
    ppo_rounds: int = 40
    """Rounds of PPO."""
    distill_transitions: int = 100_000_000
    """T_dist."""
    seeds: int = 3
    """Graphs of each kind."""


def points(settings: Settings) -> list[Point]:
    """Both kinds of entries on the same clusters."""
    size = {"M": settings.cluster_size, "epsilon": settings.epsilon}
    work = {"ppo_rounds": settings.ppo_rounds, "dist": settings.distill_transitions}
    return [
        {"entries": entries, "K": k, **size, **work, "seed": seed}
        for k in settings.n_clusters
        for seed in range(settings.seeds)
        for entries in settings.entries
    ]


def measure(point: Point) -> Measurement:
    """Exact times and constants, then all stages from the exact table."""
    problem = make_problem(point, entries=point["entries"])
    graph = problem.graph
    task = build_task(TaskConfig(target=f"cluster:{graph.n_clusters // 2}"), graph)
    base, ideal = (
        hitting_time(g.to_scipy(), task.start, task.target, g.clusters)
        for g in (graph, graph.with_epsilon(problem.scales.epsilon_max))
    )
    problem = replace(problem, task=task, base=base, ideal=ideal)
    escape = meta_chain(graph)[~np.eye(graph.n_clusters, dtype=bool)]
    heads = np.unique(graph.sparse_edges[:, 1])
    return {
        "base": base,
        "ideal": ideal,
        "constant": base * graph.epsilon / graph.n_states,
        "a4_constant": escape.min() * graph.cluster_size / graph.epsilon,
        "heads": len(heads) / graph.n_clusters,
        **stages(problem, exact_reasoner(graph), point["seed"], point["ppo_rounds"], point["dist"], 500),
    }


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Both kinds, stage by stage."""
    numbers = []
    for entries in settings.entries:
        part = select(rows, entries=entries)
        gaps = [abs(r["hops"] / r["hops_exact"] - 1) for r in part if r["hops"] is not None]
        numbers += [
            mean_number(f"{entries}: heads of hard steps a cluster", [r["heads"] for r in part]),
            mean_number(f"{entries}: E[τ]·ε/(KM)", [r["constant"] for r in part]),
            mean_number(f"{entries}: min q*·M/ε", [r["a4_constant"] for r in part]),
            Number(f"{entries}: smallest recall of search", min(r["recall"] for r in part)),
            Number(f"{entries}: smallest precision of search", min(r["precision"] for r in part)),
            Number(
                f"{entries}: largest |hard step / ε_max − 1| after PPO",
                max(max(1 - r["hard_min"], r["hard_max"] - 1) for r in part),
            ),
            Number(
                f"{entries}: share of students with exactly K clusters",
                float(np.mean([r["clusters"] == r["K"] for r in part])),
            ),
            Number(f"{entries}: mislabelled states, mean", float(np.mean([r["mislabelled"] for r in part]))),
            Number(f"{entries}: largest |E[τ⁺] / exact − 1|", max(gaps) if gaps else None),
            mean_number(
                f"{entries}: E[τ⁺]/K, exact", [r["hops_exact"] / r["K"] for r in part if r["hops_exact"] is not None]
            ),
            mean_number(
                f"{entries}: lifted steps / E[τ] at ε",
                [r["lifted"] / r["base"] for r in part if r["lifted"] is not None],
            ),
            Number(
                f"{entries}: smallest share of lifted paths that are valid and arrive",
                min(r["lifted_valid"] for r in part),
            ),
        ]
    free = {n.name.removeprefix("free: "): n.value for n in numbers if n.name.startswith("free: ")}
    single = {n.name.removeprefix("single: "): n.value for n in numbers if n.name.startswith("single: ")}
    right = free["share of students with exactly K clusters"]
    why = (
        f"Little: with {free['heads of hard steps a cluster']:.1f} heads a cluster instead of 1, E[τ]·ε/(KM) goes from "
        f"{single['E[τ]·ε/(KM)']:.3f} to {free['E[τ]·ε/(KM)']:.3f}, search still has recall {free['smallest recall of search']:.2f} and precision "
        f"{free['smallest precision of search']:.2f}, and labelling merges the heads into exactly K clusters on {100 * (right or 0):.0f} % of the "
        f"graphs; E[τ⁺]/K is {free['E[τ⁺]/K, exact']:.2f} against {single['E[τ⁺]/K, exact']:.2f}."
    )
    if (
        (right or 0) < 1
        or (free["smallest recall of search"] or 0) < 1
        or (free["smallest precision of search"] or 0) < 1
    ):
        why = "Something: " + why.removeprefix("Little: ")
    lifted = [
        geometric_mean([(r["lifted"] or np.inf) / r["base"] for r in select(rows, entries=e)])
        for e in ("single", "free")
    ]
    notes = [
        f"The one price: lifted paths are {lifted[1] / lifted[0]:.2f} times as long. With a single entry the sources of these graphs are the states nearest to it; "
        "walks that enter elsewhere have further to go."
    ]
    return answer(numbers, why, notes)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Four measures, kind beside kind."""
    measures = {
        "E[τ]·ε/(KM)": lambda r: r["constant"],
        "mean hard step / ε_max": lambda r: (r["hard_min"] + r["hard_max"]) / 2,
        "E[τ⁺]/K (hops)": lambda r: None if r["hops"] is None else r["hops"] / r["K"],
        "lifted steps / (KM)": lambda r: None if r["lifted"] is None else r["lifted"] / (r["K"] * r["M"]),
    }
    fig, axes = panels(len(measures), columns=4, height=3.0)
    for axis, (name, value) in zip(axes, measures.items(), strict=True):
        ticks = [f"{entries}\nK = {k}" for k in settings.n_clusters for entries in settings.entries]
        for i, (k, entries) in enumerate((k, e) for k in settings.n_clusters for e in settings.entries):
            values = [v for r in select(rows, entries=entries, K=k) if (v := value(r)) is not None]
            colour = COLOURS[settings.entries.index(entries)]
            axis.plot([i] * len(values), values, "o", color=colour, ms=4, alpha=0.5, mew=0)
            if values:
                axis.plot([i - 0.25, i + 0.25], [np.mean(values)] * 2, "-", color=colour, lw=2)
        axis.set_xticks(range(len(ticks)), ticks, fontsize=6.5)
        axis.set_xlim(-0.6, len(ticks) - 0.4)
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        axis.set_title(name)
    return fig


def quick() -> Settings:
    """One small graph of each kind."""
    return Settings(n_clusters=[4], cluster_size=8, epsilon=0.02, ppo_rounds=25, distill_transitions=3_000_000, seeds=1)


EXPERIMENT = Experiment(
    "beyond_free_entries",
    "Free entries instead of A5",
    "What breaks when hard steps enter a cluster at any state instead of at one (without A5)?",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
