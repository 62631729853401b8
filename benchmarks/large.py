"""Every stage at N = 16,384 on a CPU, window 1: seconds, and the peak memory of a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.models import HEADS, LAYERS, WIDTH, knowing
from benchmarks.timing import Mark, Row, Settings, Work, summary
from mcot_torch.algorithms.configs import DistillConfig, PPOConfig, PretrainConfig, SearchConfig
from mcot_torch.algorithms.distill import distill
from mcot_torch.algorithms.ppo import ppo
from mcot_torch.algorithms.pretrain import pretrain
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.search import search
from mcot_torch.evaluation import measure, reasoner_subject
from mcot_torch.graphs import GraphConfig, MetastableGraph, TaskConfig, build_graph, build_task
from mcot_torch.measures import make_probe
from mcot_torch.reasoners import TransformerReasoner
from mcot_torch.scales import Scales
from mcot_torch.trainer_config import TrainerConfig
from mcot_torch.training import Context

_MARK = 24.0  # GiB
_CONTEXT = Context(trainer=TrainerConfig(accelerator="cpu", progress=False))
Times = dict[str, float]


@contextmanager
def timed(times: Times, name: str) -> Iterator[None]:
    """Note the seconds of the body."""
    begin = time.perf_counter()
    yield
    times[name] = time.perf_counter() - begin


def fresh(graph: MetastableGraph, cut: bool) -> TransformerReasoner:
    """The default transformer; with the support that pretraining should leave it."""
    model = TransformerReasoner(graph.n_states, 1, WIDTH, LAYERS, HEADS)
    if cut:
        model.support.zero_()
        model.support[torch.from_numpy(graph.sources), torch.from_numpy(graph.indices)] = True
    return model


def pretraining(graph: MetastableGraph, scales: Scales) -> Times:
    """The counts, then steps before and after the cut; the probe and the cut are in the last ones."""
    times: Times = {}
    settings = PretrainConfig(steps=1, steps_after_cut=0, path_length=4096, log_every=100)
    for name, steps, cut in (("first", 1, False), ("before", 4, False), ("after", 4, True)):
        settings.steps = steps
        with timed(times, name):
            pretrain(fresh(graph, cut), graph, settings, _CONTEXT)
    a_step = {name: (times[name] - times["first"]) / 3 for name in ("before", "after")}
    with timed(times, "probe"):
        make_probe(graph)(fresh(graph, True))
    return {
        "pretraining: counts of 10^9 transitions, a step, the cut": times["first"],
        "pretraining: a step before the cut": a_step["before"],
        "pretraining: a step after it": a_step["after"],
        "pretraining: a logged line": times["probe"],
    }


def searching(graph: MetastableGraph, scales: Scales) -> Times:
    """K rounds at once, as the default runs them some fifteen times over."""
    times: Times = {}
    with timed(times, "search: K rounds"):
        search(knowing(graph, "cpu"), scales, SearchConfig(rounds=graph.n_clusters), _CONTEXT)
    return times


def tuning(graph: MetastableGraph, scales: Scales) -> Times:
    """A rollout of 10^7 transitions and ten passes over it."""
    times: Times = {}
    with timed(times, "PPO: a round"):
        ppo(fresh(graph, True), PRM.simulated(graph), scales, PPOConfig(rounds=1, transitions=10_000_000), _CONTEXT)
    return times


def distilling(graph: MetastableGraph, scales: Scales) -> Times:
    """Labels, 10^9 transitions and the student, as by default."""
    times: Times = {}
    with timed(times, "distillation"):
        distill(knowing(graph, "cpu"), PRM.simulated(graph), scales, DistillConfig(), _CONTEXT)
    return times


def evaluating(graph: MetastableGraph, scales: Scales) -> Times:
    """A row of the table: exact times and 100 walks, at ε_max."""
    times: Times = {}
    raised = graph.with_epsilon(scales.epsilon_max)
    with timed(times, "evaluation of a model, 100 walks"):
        subject = reasoner_subject("tuned", knowing(raised, "cpu"), raised, "p", build_task(TaskConfig(), graph), 64, 0)
        measure(subject, 100, 20.0, 0)
    return times


PIECES: dict[str, Callable[[MetastableGraph, Scales], Times]] = {
    "pretraining": pretraining,
    "searching": searching,
    "tuning": tuning,
    "distilling": distilling,
    "evaluating": evaluating,
}


def alone(piece: str, n_clusters: int, cluster_size: int, threads: int) -> None:
    """Run a piece and print its seconds and the peak memory of this process."""
    torch.set_num_threads(threads)
    graph = build_graph(GraphConfig(n_clusters=n_clusters, cluster_size=cluster_size, epsilon=0.002))
    times = PIECES[piece](graph, Scales.of(graph, 0.5 / cluster_size))
    unit = 2**20 if sys.platform != "darwin" else 2**30  # ru_maxrss counts KiB on Linux and bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(json.dumps({"times": times, "peak_gib": peak}))


def stages(settings: Settings) -> Row:
    """Once each: most take minutes."""
    k, m = settings.size(128, 6), settings.size(128, 8)
    entries, peaks = [], []
    for piece in PIECES:
        told = subprocess.run(
            [sys.executable, "-m", "benchmarks.large", piece, str(k), str(m), str(settings.threads)],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).resolve().parent.parent,
        )
        if told.returncode:
            raise RuntimeError(f"{piece}: the process ended with {told.returncode}: {told.stderr.strip()[-300:]}")
        result = json.loads(told.stdout.splitlines()[-1])
        peaks.append(result["peak_gib"])
        for name, seconds in result["times"].items():
            work = Work(name, lambda: None, ours=True, extra={"peak_gib": result["peak_gib"]})
            entries.append(summary(work, [seconds]))
    row = Row("large", "large", f"N = {k * m:,} (K = {k}, M = {m}), ε = 2e-3; transformer, window 1", "", entries)
    row.marks = [Mark("every stage ≤ 24 GiB", max(peaks), _MARK, at_least=False)]
    row.notes = [
        "Single runs, no medians. Search, distillation and evaluation walk on a table that knows the graph, pretraining and PPO "
        "train the default transformer. A peak is of the whole process that ran the piece."
    ]
    return row


ROWS = {"large": stages}

if __name__ == "__main__":
    alone(sys.argv[1], *map(int, sys.argv[2:]))
