"""Cost curves: time of each stage against K, M and path length, with the exponents that fit them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse as sp

from benchmarks.models import HEADS, LAYERS, WIDTH, knowing, trainer
from benchmarks.pretrain import likelihood
from benchmarks.timing import Benchmark, Settings, Work, race
from mcot_torch.algorithms.config import DistillConfig, PPOConfig, SearchConfig
from mcot_torch.algorithms.distill import distill
from mcot_torch.algorithms.ppo import ppo
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.search import search
from mcot_torch.chains import hitting_times
from mcot_torch.experiments.fits import power_law
from mcot_torch.graphs import GraphConfig, build_graph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import TransformerReasoner
from mcot_torch.sampling.datasets import count_batch
from mcot_torch.sampling.walks import StepTable, TableWalker, walk_counts
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.loop import Context

K, M, LENGTH = 10, 32, 256
AXES = {
    "K": [(k, M, LENGTH) for k in (20, 40, 80, 160, 320)],
    "M": [(K, m, LENGTH) for m in (32, 64, 128, 256, 512)],
    "path length": [(K, M, length) for length in (256, 512, 1024, 2048, 4096)],
}
TINY = {"K": [(4, 6, 8), (6, 6, 8)], "M": [(4, 6, 8), (4, 8, 8)], "path length": [(4, 6, 8), (4, 6, 16)]}
_OF_LENGTH = ("walks, 4,096 explicit", "walks, counts of a million", "PPO round")


def calls(k: int, m: int, length: int, settings: Settings) -> dict[str, Callable[[], object]]:
    """One call a stage, of the work that its default asks for on such a graph."""
    device = settings.device
    graph = build_graph(GraphConfig(n_clusters=k, cluster_size=m, epsilon=0.0005, epsilon_max=0.5 / m))
    n, table, kernel = graph.n_states, StepTable.from_graph(graph, device), sp.csr_array(graph.to_scipy())
    scales, prm, exact = Scales.of(graph, 0.5 / m), PRM.simulated(graph), knowing(graph, device)
    tuned = knowing(graph.with_epsilon(0.5 / m), device)
    context = Context(trainer=TrainerConfig(accelerator=device, threads=settings.threads, progress=False))
    draw = torch.Generator(device).manual_seed(0)
    start = torch.randint(n, (settings.size(4096, 32),), generator=draw, device=device)
    many = torch.full((n,), settings.size(2**20, 2**12) // n, dtype=torch.float64, device=device)
    model = TransformerReasoner(n, 1, WIDTH, LAYERS, HEADS).to(device)
    batch = count_batch(walk_counts(table, many, 8, draw), table.successors)
    step = trainer(model, lambda: likelihood(model, batch))
    cut = TransformerReasoner(n, 1, WIDTH, LAYERS, HEADS).to(device)
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask[graph.sources, graph.indices] = True
    cut.support.set(mask)
    step_after = trainer(cut, lambda: likelihood(cut, batch))
    one = PPOConfig(rounds=1, transitions=settings.size(100_000, 1000), path_length=length)
    few = DistillConfig(transitions=settings.size(10_000_000, 10_000), steps=settings.size(100, 2))
    search_config = SearchConfig(rounds=settings.size(20, 2), max_steps=settings.size(2000, 50))
    return {
        "walks, 4,096 explicit": lambda: TableWalker(table, start, draw).advance(length),
        "walks, counts of a million": lambda: walk_counts(table, many, length, draw),
        "hitting times": lambda: hitting_times(kernel, graph.members(k // 2), graph.clusters),
        "pretraining step before the cut": step,
        "pretraining step after the cut": step_after,
        "search, 20 rounds": lambda: search(exact, scales, search_config, context),
        "PPO round": lambda: ppo(cut, prm, scales, one, context),
        "distillation": lambda: distill(tuned, prm, scales, few, context),
    }


def curves(settings: Settings) -> Benchmark:
    """Medians of 5 at each size."""
    settings = replace(settings, runs=2 if settings.quick else 5)
    found: list[dict[str, Any]] = []
    for axis, sizes in (TINY if settings.quick else AXES).items():
        for k, m, length in sizes:
            x = {"K": k, "M": m, "path length": length}[axis]
            stages = calls(k, m, length, settings)
            works = [Work(s, c, ours=True) for s, c in stages.items() if axis != "path length" or s in _OF_LENGTH]
            for entry in race(works, settings):
                found.append(
                    {"axis": axis, "x": x, "n_states": k * m, "stage": entry["name"], "median": entry["median"]}
                )
    exponents = []
    for axis in AXES:
        for stage in dict.fromkeys(p["stage"] for p in found if p["axis"] == axis):
            points = [(p["x"], p["median"]) for p in found if p["axis"] == axis and p["stage"] == stage]
            b, half, _ = power_law(*np.array(points).T)
            exponents.append({"axis": axis, "stage": stage, "exponent": b, "half_width": half, "points": points})
    setup = f"around K = {K}, M = {M}, length {LENGTH}; N = KM, so that an exponent in K or M is one in N"
    return Benchmark("scaling", "scaling", setup, "", [], data={"exponents": exponents})


def draw_curves(exponents: list[dict[str, Any]], path: Path) -> None:
    """A panel an axis, a line a stage."""
    from mcot_torch.experiments.plots import COLOURS, GREY, panels

    figure, axes = panels(3, width=10.5, height=4.2)
    stages = list(dict.fromkeys(e["stage"] for e in exponents))
    for ax, axis in zip(axes, AXES, strict=True):
        for e in (e for e in exponents if e["axis"] == axis):
            x, y = np.array(e["points"]).T
            i = stages.index(e["stage"])
            ax.plot(x, y, color=(*COLOURS, GREY)[i], marker="os^Dvp*X"[i], ms=4, lw=1.3, label=e["stage"])
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ticks = sorted({p[0] for e in exponents if e["axis"] == axis for p in e["points"]})
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.set_xlabel({"K": "K, clusters (M = 32)", "M": "M, states a cluster (K = 10)"}.get(axis, axis + ", steps"))
    axes[0].set_ylabel("seconds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


ROWS = {"scaling": curves}
