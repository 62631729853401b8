"""Proposition 3.4: PPO-Clip raises the hard steps to ε_max in O(log(ε_max/ε)) updates and forgets nothing else.

Three parts. The linear sign form of Algorithm 3 on a grid of ε and ε_max: updates, where the hard steps end, total
variation of every row. The same along the schedule ε_max = 1/(M log⁴ M), where M·TV must vanish (it does not for
ε_max = c/M). And the practical form on a transformer pretrained from walks, which counts no updates: its hard steps end
within 10 % of ε_max and its other rows within .02.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure

from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary, judge
from mcot_torch.experiments.fits import power_laws, select, straight_line
from mcot_torch.experiments.plots import COLOURS, GREY, legend, log_axis, panels, trend
from mcot_torch.experiments.support import exact_reasoner, synthetic
from mcot_torch.graphs.graph import MetastableGraph


@dataclass
class Settings:
    """Grids of the three parts."""

    epsilons: list[float] = field(default_factory=lambda: [1e-5, 1e-4, 1e-3, 2e-3])
    """ε of the linear form."""
    targets: list[float] = field(default_factory=lambda: [0.003, 0.01, 0.03])
    """ε_max of the linear form."""
    schedule: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    """M along ε_max = 1/(M log⁴ M), ε = ε_max/10, K = 4."""
    ratios: list[float] = field(default_factory=lambda: [4.0, 15.0])
    """ε_max/ε of the transformer, at ε = .002."""
    rollouts: list[int] = field(default_factory=lambda: [100_000, 1_000_000])
    """Transitions a PPO round of the transformer; the largest decides."""
    n_clusters: int = 10
    """K."""
    cluster_size: int = 32
    """M."""
    pretrain_steps: list[int] = field(default_factory=lambda: [700, 500])
    """Steps of the transformer before and after the cut."""
    seeds: int = 3
    """Graphs of each kind."""


def points(settings: Settings) -> list[Point]:
    """Linear grid, schedule, transformer."""
    seeds, size = range(settings.seeds), {"K": settings.n_clusters, "M": settings.cluster_size}
    result: list[Point] = [
        {"part": "linear", **size, "epsilon": e, "epsilon_max": t, "seed": s}
        for e in settings.epsilons
        for t in settings.targets
        for s in seeds
    ]
    for m in settings.schedule:
        target = 1 / (m * math.log(m) ** 4)
        result.append({"part": "schedule", "K": 4, "M": m, "epsilon": target / 10, "epsilon_max": target, "seed": 0})
    steps = settings.pretrain_steps
    return result + [
        {
            "part": "transformer",
            **size,
            "epsilon": 0.002,
            "ratios": settings.ratios,
            "steps": steps,
            "rollout": n,
            "seed": s,
        }
        for n in settings.rollouts
        for s in seeds
    ]


def measure(point: Point) -> Measurement:
    """Where the hard steps and the rows end."""
    graph = synthetic("circulant", point["K"], point["M"], point["epsilon"], point["seed"])
    return _transformer(graph, point) if point["part"] == "transformer" else _linear(graph, point["epsilon_max"])


def _linear(graph: MetastableGraph, epsilon_max: float) -> Measurement:
    from mcot_torch.algorithms.ppo import sign_ascent
    from mcot_torch.algorithms.prm import PRM
    from mcot_torch.graphs.scales import Scales

    reasoner = exact_reasoner(graph)
    updates = sign_ascent(reasoner, PRM.simulated(graph), Scales.of(graph, epsilon_max))
    return {"updates": updates, **_outcome(graph, reasoner.kernel().numpy(), graph.kernel(), epsilon_max)}


def _outcome(graph: MetastableGraph, after: np.ndarray, before: np.ndarray, epsilon_max: float) -> Measurement:
    """Hard steps over their targets; TV on source rows over W(ε_max − ε), and on all other rows."""
    x, y = graph.sparse_edges.T
    weight = graph.weights[graph.hard]
    hard = after[x, y] / (weight * epsilon_max)
    tv = np.abs(after - before).sum(1) / 2
    source = graph.hard_weight > 0
    predicted = graph.hard_weight[source] * (epsilon_max - graph.epsilon)
    return {
        "hard_min": hard.min(),
        "hard_max": hard.max(),
        "source_tv_min": (tv[source] / predicted).min(),
        "source_tv_max": (tv[source] / predicted).max(),
        "tv_max": tv.max(),
        "other_tv_max": tv[~source].max(),
    }


def _transformer(graph: MetastableGraph, point: Point) -> Measurement:
    from mcot_torch.algorithms.config import PPOConfig, PretrainConfig
    from mcot_torch.algorithms.ppo import ppo
    from mcot_torch.algorithms.pretrain import pretrain
    from mcot_torch.algorithms.prm import PRM
    from mcot_torch.graphs.scales import Scales
    from mcot_torch.reasoners import Reasoner, ReasonerConfig, build_reasoner
    from mcot_torch.training.loop import Context

    seed, (before_cut, after_cut) = point["seed"], point["steps"]
    base = build_reasoner(ReasonerConfig(), graph.n_states, seed)
    pretrain(base, graph, PretrainConfig(steps=before_cut, steps_after_cut=after_cut), Context(seed))
    reference, edges = base.kernel().numpy(), torch.from_numpy(graph.sparse_edges)
    config = PPOConfig(transitions=point["rollout"])
    result: dict[str, list] = {"rounds": [], "path": []}
    for ratio in point["ratios"]:
        target = ratio * graph.epsilon
        model = copy.deepcopy(base)

        def probe(r: Reasoner, target: float = target) -> dict[str, float]:
            hard = r.kernel()[edges[:, 0], edges[:, 1]] / target
            return {"hard_step_mean": float(hard.mean())}

        tuned = ppo(model, PRM.simulated(graph), Scales.of(graph, target), config, Context(seed, probe=probe))
        for key, value in _outcome(graph, model.kernel().numpy(), reference, target).items():
            result.setdefault(key, []).append(value)
        result["rounds"].append([line["step"] for line in tuned.history])
        result["path"].append([line["hard_step_mean"] for line in tuned.history])
    return result


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Hard steps, rows, updates, the schedule."""
    linear, schedule, transformer = (select(rows, part=p) for p in ("linear", "schedule", "transformer"))
    numbers = [
        Number(
            "smallest hard step / ε_max, linear", min(r["hard_min"] for r in linear), at_least=0.9, expected="1 − o(1)"
        ),
        Number(
            "largest hard step / ε_max, linear", max(r["hard_max"] for r in linear), at_most=1.1, expected="1 − o(1)"
        ),
    ]
    slope, half, _, r2 = straight_line(
        [math.log(r["epsilon_max"] / r["epsilon"]) for r in linear], [r["updates"] for r in linear]
    )
    numbers += [
        Number("updates per unit of log(ε_max/ε)", slope, slope - half, slope + half, expected="5 for η = .1"),
        Number("R² of updates against log(ε_max/ε)", r2, at_least=0.98, expected="1"),
        Number(
            "smallest TV of a source row / W(ε_max − ε), linear",
            min(r["source_tv_min"] for r in linear),
            at_least=0.9,
            expected="1",
        ),
        Number(
            "largest TV of a source row / W(ε_max − ε), linear",
            max(r["source_tv_max"] for r in linear),
            at_most=1.1,
            expected="1",
        ),
        Number(
            "largest TV of any other row, linear", max(r["other_tv_max"] for r in linear), at_most=1e-12, expected="0"
        ),
    ]
    logs = [math.log(r["M"]) for r in schedule]
    b, half = power_laws({"log M": logs}, [r["M"] * r["tv_max"] for r in schedule])["log M"]
    numbers.append(
        Number(
            "exponent of log M in M·TV along ε_max = 1/(M log⁴ M)", b, b - half, b + half, at_most=-3.0, expected="−4"
        )
    )
    fixed = [r["M"] * r["tv_max"] for r in linear if r["epsilon_max"] == max(settings.targets)]
    numbers.append(
        Number(f"M·TV at ε_max = {max(settings.targets) * settings.cluster_size:.2g}/M, which stays", max(fixed))
    )
    if transformer:
        few = select(transformer, rollout=min(settings.rollouts))
        transformer = select(transformer, rollout=max(settings.rollouts))
        numbers += [
            Number(
                "smallest hard step / ε_max, transformer",
                min(v for r in transformer for v in r["hard_min"]),
                at_least=0.9,
                expected="1",
            ),
            Number(
                "largest hard step / ε_max, transformer",
                max(v for r in transformer for v in r["hard_max"]),
                at_most=1.1,
                expected="1",
            ),
            Number(
                "largest TV of any other row, transformer",
                max(v for r in transformer for v in r["other_tv_max"]),
                at_most=0.02,
                expected="0",
            ),
        ]
    notes = [
        "The sign form starts from the exact table; the transformer from its own pretraining, whose errors carry through."
    ]
    ends = f"within {max(abs(1 - r[key]) for r in linear for key in ('hard_min', 'hard_max')):.0e} of ε_max (linear)"
    if transformer:
        worst = max(abs(1 - v) for r in transformer for key in ("hard_min", "hard_max") for v in r[key])
        ends += f" and {100 * worst:.1f} % (transformer)"
        if len(settings.rollouts) > 1:
            low = min(v for r in few for v in r["hard_min"])
            numbers.append(
                Number(f"smallest hard step / ε_max, transformer, {few[0]['rollout']:,} transitions a round", low)
            )
            notes.append(
                f"With {few[0]['rollout']:,} transitions a round a hard step of ε_max = {0.002 * min(settings.ratios):g} is seen two or "
                f"three times a round, and the worst one ended at {low:.2f}·ε_max; {max(settings.rollouts):,} cure it."
            )
    why = (
        f"Hard steps end {ends}, after {slope:.2f}·log(ε_max/ε) updates of the linear form; no other row moves, and M·TV vanishes "
        "along the logarithmic schedule."
    )
    return judge(numbers, why, constants=True, notes=notes)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Updates; the schedule; the transformer on its way."""
    fig, axes = panels(3, height=3.3)
    linear, schedule, transformer = (select(rows, part=p) for p in ("linear", "schedule", "transformer"))
    for i, target in enumerate(settings.targets):
        part = select(linear, epsilon_max=target)
        trend(
            axes[0],
            [r["epsilon_max"] / r["epsilon"] for r in part],
            [r["updates"] for r in part],
            f"ε_max = {target:g}",
            i,
        )
    axes[0].set(
        xlabel="ε_max/ε", ylabel="updates", title="linear, sign steps of at most .1", ylim=(0, None), xscale="log"
    )
    legend(axes[0], "upper left")
    ms = [r["M"] for r in schedule]
    axes[1].plot(ms, [r["M"] * r["tv_max"] for r in schedule], "o-", color=COLOURS[0], ms=4.5, label="measured")
    axes[1].plot(ms, [0.9 / math.log(m) ** 4 for m in ms], "--", color=GREY, lw=1.1, label=".9 / log⁴ M")
    axes[1].set(xlabel="M (states a cluster)", ylabel="M · largest TV of a row", title="along ε_max = 1/(M log⁴ M)")
    log_axis(axes[1], "y")
    log_axis(axes[1], "x", ms)
    legend(axes[1])
    for r in select(transformer, rollout=max(settings.rollouts)):
        for i, ratio in enumerate(r["ratios"]):
            label = f"ε_max/ε = {ratio:g}" if r["seed"] == 0 else None
            axes[2].plot(r["rounds"][i], r["path"][i], "-", color=COLOURS[i], lw=1.2, label=label)
    axes[2].axhspan(0.9, 1.1, color=GREY, alpha=0.13, lw=0)
    axes[2].axhline(1.0, color=GREY, ls="--", lw=1.1)
    axes[2].set(xlabel="PPO rounds", ylabel="mean hard step / ε_max", title="transformer, clip form", ylim=(0, 1.25))
    legend(axes[2], "lower right")
    return fig


def quick() -> Settings:
    """A small graph; the transformer is pretrained briefly."""
    return Settings([1e-4, 2e-3], [0.01, 0.03], [16, 32, 64], [8.0], [300_000], 4, 8, [500, 300], seeds=1)


EXPERIMENT = Experiment(
    "prop_3_4",
    "Proposition 3.4: PPO-Clip raises the hard steps to ε_max and forgets nothing else",
    "O(log(ε_max/ε)) updates end at p^ε' with ε' = (1 − o(1))·ε_max, and no row moves by more than o(1/M).",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
