"""Beyond the paper (a): the transformer beside the paper's linear model, on the same graphs, seeds and samples.

Both are pretrained by Algorithm 1 on the same budget of sampled paths, searched, tuned and distilled; every stage is held against
the exact chain. The rates of Adam differ (.01 and .1 in pretraining, 3e-4 and .03 in PPO), the data do not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from mcot_torch.experiments.base import Experiment, Number, Point, Row, Summary
from mcot_torch.experiments.beyond_common import answer, make_problem, median, stages
from mcot_torch.experiments.fits import select
from mcot_torch.experiments.plots import COLOURS, panels

_COLUMNS = {
    "sup_error": "sup-error of pretraining / ε",
    "base_error": "|E[τ] pretrained / exact − 1|",
    "raw_error": "|E[τ] without the cut / exact − 1|",
    "hard_error": "largest |hard step / ε_max − 1| after PPO",
    "forgotten": "largest TV of an easy row by PPO",
    "tuned_gap": "|E[τ] tuned / ideal − 1|",
    "student_gap": "|E[τ⁺] student / exact − 1|",
}


@dataclass
class Settings:
    """Size."""

    kinds: list[str] = field(default_factory=lambda: ["linear", "transformer"])
    """Reasoners."""
    n_clusters: int = 8
    """K."""
    cluster_size: int = 16
    """M."""
    epsilon: float = 0.005
    """ε; ε_max is .96/M."""
    steps: list[int] = field(default_factory=lambda: [700, 500])
    """Steps of pretraining before and after the cut."""
    ppo_rounds: int = 60
    """Rounds of PPO."""
    distill_transitions: int = 100_000_000
    """T_dist."""
    seeds: int = 3
    """Graphs."""


def points(settings: Settings) -> list[Point]:
    """Each model on each graph."""
    size = {"K": settings.n_clusters, "M": settings.cluster_size, "epsilon": settings.epsilon}
    work = {"steps": settings.steps, "ppo_rounds": settings.ppo_rounds, "dist": settings.distill_transitions}
    return [{"kind": kind, **size, **work, "seed": seed} for seed in range(settings.seeds) for kind in settings.kinds]


def measure(point: Point) -> Row:
    """All stages."""
    from mcot_torch.algorithms.configs import PretrainConfig
    from mcot_torch.algorithms.pretrain import pretrain
    from mcot_torch.reasoners import ReasonerConfig, build_reasoner
    from mcot_torch.training import Context

    problem, begin = make_problem(point), time.perf_counter()
    reasoner = build_reasoner(ReasonerConfig(point["kind"]), problem.graph.n_states, point["seed"])
    before, after = point["steps"]
    pretrain(reasoner, problem.graph, PretrainConfig(steps=before, steps_after_cut=after), Context(point["seed"]))
    seconds = time.perf_counter() - begin
    kernel, truth = reasoner.kernel().numpy(), problem.graph.kernel()
    cut, raw = problem.time(kernel), problem.time(reasoner.kernel(cut=False).numpy())
    row: Row = {
        "parameters": reasoner.n_parameters,
        "sup_error": np.abs(kernel - truth).max() / point["epsilon"],
        "support_exact": bool(((kernel > 0) == (truth > 0)).all()),
        "base_error": None if cut is None else abs(cut / problem.base - 1),
        "raw_error": None if raw is None else abs(raw / problem.base - 1),
        **stages(problem, reasoner, point["seed"], point["ppo_rounds"], point["dist"], 500),
        "pretrain_seconds": seconds,
    }
    row["hard_error"] = max(1 - row["hard_min"], row["hard_max"] - 1)
    row["tuned_gap"] = None if row["tuned_error"] is None else abs(row["tuned_error"])
    row["student_gap"] = None if row["hops"] is None else abs(row["hops"] / row["hops_exact"] - 1)
    return row


def summarise(settings: Settings, rows: list[Row]) -> Summary:
    """Medians of both models."""
    numbers, told = [], []
    for kind in settings.kinds:
        part = select(rows, kind=kind)
        exact = float(np.mean([r["support_exact"] and r["recall"] == 1.0 == r["precision"] for r in part]))
        numbers.append(Number(f"{kind}: share of graphs with exact support, recall and precision 1", exact))
        for key, name in _COLUMNS.items():
            values = [r[key] for r in part if r[key] is not None]
            spread = (min(values), max(values)) if values else (None, None)
            numbers.append(Number(f"{kind}: {name} (median; range)", median(part, key), *spread))
        middle = {key: 100 * (median(part, key) or 0.0) for key in _COLUMNS}
        told.append(
            f"the {kind} model ({part[0]['parameters']:,} parameters) is {middle['base_error']:.1f} % off on E[τ] "
            f"({middle['raw_error']:.0f} % without the cut), its hard steps end within {middle['hard_error']:.1f} % of ε_max, its "
            f"student is {middle['student_gap']:.1f} % off"
        )
    why = "; ".join(told) + "."
    seconds = [f"{kind} {median(select(rows, kind=kind), 'pretrain_seconds') or 0:.1f}" for kind in settings.kinds]
    notes = [
        f"Median seconds of pretraining: {', '.join(seconds)}.",
        "Intervals here are ranges over seeds. PPO on a table leaves rows without a known hard step alone; the transformer shares its weights.",
    ]
    return answer(numbers, why[0].upper() + why[1:], notes)


def figure(settings: Settings, rows: list[Row], summary: Summary) -> Figure:
    """Every error, model beside model."""
    fig, (axis,) = panels(1, width=10.0, height=3.6)
    floor = 1e-5
    for i, kind in enumerate(settings.kinds):
        part = select(rows, kind=kind)
        for j, key in enumerate(_COLUMNS):
            values = [max(floor, r[key]) for r in part if r[key] is not None]
            at = j + 0.16 * (2 * i - 1)
            axis.plot(values, [at] * len(values), "os"[i % 2], color=COLOURS[i], ms=4, alpha=0.45, mew=0)
            label = kind if j == 0 else None
            if values:
                axis.plot(np.median(values), at, "os"[i % 2], color=COLOURS[i], ms=7, mec="white", label=label)
    axis.set_yticks(range(len(_COLUMNS)), list(_COLUMNS.values()))
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(floor, color="#cccccc", lw=1)
    axis.set(xlabel=f"error (dots: {settings.seeds} graphs, large: median; {floor:g} or less at the left edge)")
    axis.legend(fontsize=8, edgecolor="none", loc="upper left")
    return fig


def quick() -> Settings:
    """One small graph."""
    return Settings(
        n_clusters=4,
        cluster_size=8,
        epsilon=0.02,
        steps=[300, 200],
        ppo_rounds=25,
        distill_transitions=3_000_000,
        seeds=1,
    )


EXPERIMENT = Experiment(
    "beyond_transformer_vs_linear",
    "Transformer beside linear model",
    "Does what is proved for a softmax table hold for a transformer with shared weights, on the same graphs and samples?",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
