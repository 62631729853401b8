"""Every stage at N = 16,384 on a CPU, window 1: seconds, and the peak memory of a process of its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import median

import torch

from benchmarks.models import HEADS, LAYERS, WIDTH, knowing
from benchmarks.timing import Benchmark, Mark, Settings, Work, peak_gib, process, summary
from mcot_torch.algorithms.config import DistillConfig, PPOConfig, PretrainConfig, SearchConfig
from mcot_torch.algorithms.distill import distill
from mcot_torch.algorithms.ppo import ppo
from mcot_torch.algorithms.pretrain import pretrain
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.search import search
from mcot_torch.evaluation.measures import make_probe
from mcot_torch.evaluation.subjects import measure, reasoner_subject
from mcot_torch.graphs import GraphConfig, MetastableGraph, TaskConfig, build_graph, build_task
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import TransformerReasoner
from mcot_torch.system.machine import settle
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.loop import Context

_MARK = 24.0  # GiB
_CONTEXT = Context(trainer=TrainerConfig(accelerator="cpu", progress=False))
Times = dict[str, float]


def seconds(call: Callable[[], object]) -> float:
    """What the call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def fresh(graph: MetastableGraph, cut: bool) -> TransformerReasoner:
    """The default transformer; with the support that pretraining should leave it."""
    model = TransformerReasoner(graph.n_states, 1, WIDTH, LAYERS, HEADS)
    if cut:
        mask = torch.zeros(graph.n_states, graph.n_states, dtype=torch.bool)
        mask[torch.from_numpy(graph.sources), torch.from_numpy(graph.indices)] = True
        model.support.set(mask)
    return model


def pretraining(graph: MetastableGraph, scales: Scales) -> Times:
    """The counts with one step and the cut; steps by the times at which they are told; a probe, as every logged line has."""

    def run(steps: int, cut: bool) -> tuple[float, list[float]]:
        ends: list[float] = []
        context = replace(_CONTEXT, report=lambda line: ends.append(time.perf_counter()))
        settings = PretrainConfig(steps=steps, steps_after_cut=0, path_length=4096, log_every=1)
        whole = seconds(lambda: pretrain(fresh(graph, cut), graph, settings, context))
        return whole, [b - a for a, b in pairwise(ends[:-1])]  # the last step is told after the cut

    return {
        "pretraining: counts of 10^9 transitions, a step, the cut": run(1, False)[0],
        "pretraining: a step before the cut": median(run(7, False)[1]),
        "pretraining: a step after it": median(run(12, True)[1]),
        "pretraining: a logged line": seconds(lambda: make_probe(graph)(fresh(graph, True))),
    }


def searching(graph: MetastableGraph, scales: Scales) -> Times:
    """K rounds at once, as the default runs them some fifteen times over."""
    model, config = knowing(graph, "cpu"), SearchConfig(rounds=graph.n_clusters)
    return {"search: K rounds": seconds(lambda: search(model, scales, config, _CONTEXT))}


def tuning(graph: MetastableGraph, scales: Scales) -> Times:
    """A rollout of 10^7 transitions and ten passes over it."""
    model, prm, config = fresh(graph, True), PRM.simulated(graph), PPOConfig(rounds=1, transitions=10_000_000)
    return {"PPO: a round": seconds(lambda: ppo(model, prm, scales, config, _CONTEXT))}


def distilling(graph: MetastableGraph, scales: Scales) -> Times:
    """Labels, 10^9 transitions and the student, as by default."""
    teacher, prm = knowing(graph, "cpu"), PRM.simulated(graph)
    return {"distillation": seconds(lambda: distill(teacher, prm, scales, DistillConfig(), _CONTEXT))}


def evaluating(graph: MetastableGraph, scales: Scales) -> Times:
    """A row of the table: exact times and 100 walks, at ε_max."""
    raised = graph.with_epsilon(scales.epsilon_max)
    model, task = knowing(raised, "cpu"), build_task(TaskConfig(), graph)
    return {
        "evaluation of a model, 100 walks": seconds(
            lambda: measure(reasoner_subject("tuned", model, raised, "p", task, 64, 0), 100, 20.0, 0)
        )
    }


PIECES: dict[str, Callable[[MetastableGraph, Scales], Times]] = {
    "pretraining": pretraining,
    "searching": searching,
    "tuning": tuning,
    "distilling": distilling,
    "evaluating": evaluating,
}


def alone(piece: str, n_clusters: int, cluster_size: int, threads: int) -> None:
    """Run a piece and print its seconds and the peak memory of this process."""
    settle(threads)
    graph = build_graph(GraphConfig(n_clusters=n_clusters, cluster_size=cluster_size, epsilon=0.002))
    times = PIECES[piece](graph, Scales.of(graph, 0.5 / cluster_size))
    print(json.dumps({"times": times, "peak_gib": peak_gib()}))


def stages(settings: Settings) -> Benchmark:
    """Once each: most take minutes."""
    k, m = settings.size(128, 6), settings.size(128, 8)
    entries, peaks = [], []
    for piece in PIECES:
        told = process("-m", "benchmarks.large", piece, str(k), str(m), str(settings.threads))
        result = json.loads(told.splitlines()[-1])
        peaks.append(result["peak_gib"])
        for name, seconds in result["times"].items():
            work = Work(name, lambda: None, ours=True, extra={"peak_gib": result["peak_gib"]})
            entries.append(summary(work, [seconds]))
    row = Benchmark("large", "large", f"N = {k * m:,} (K = {k}, M = {m}), ε = 2e-3; transformer, window 1", "", entries)
    row.marks = [Mark("every stage ≤ 24 GiB", max(peaks), _MARK, at_least=False)]
    row.notes = [
        "Single runs but for the steps, medians of 5 and 10. Search, distillation and evaluation walk on a table that knows the graph, pretraining and PPO "
        "train the default transformer. A peak is of the whole process that ran the piece."
    ]
    return row


ROWS = {"large": stages}

if __name__ == "__main__":
    alone(sys.argv[1], *map(int, sys.argv[2:]))
