"""Algorithm 4: counts of the teacher's chain, against walking it and training the student pair by pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.models import default_graph, knowing
from benchmarks.timing import Benchmark, Mark, Settings, Work, race
from mcot_torch.algorithms.config import DistillConfig
from mcot_torch.algorithms.distill import distill
from mcot_torch.algorithms.prm import PRM
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import generate
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.loop import Context


def student(settings: Settings) -> Benchmark:
    """The whole stage: labels, pairs, training."""
    device = settings.device
    graph = default_graph(settings.quick).with_epsilon(0.03)
    teacher, prm, scales = knowing(graph, device), PRM.simulated(graph), Scales.of(graph, 0.03)
    config = DistillConfig(transitions=settings.size(1_000_000_000, 50_000), steps=settings.size(2000, 5))
    context = Context(trainer=TrainerConfig(accelerator=device, threads=settings.threads, progress=False))
    labels = torch.from_numpy(graph.clusters).to(device)
    few, draw = settings.size(131_072, 2048), torch.Generator(device).manual_seed(0)

    def pair_by_pair() -> None:
        logits = torch.zeros(graph.n_clusters, graph.n_clusters, device=device, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.1, betas=(0.9, 0.95))
        start = torch.randint(graph.n_states, (max(1, few // 256),), generator=draw, device=device)
        pairs = labels[generate(teacher, start, 256, draw)]
        befores, afters = pairs[:, :-1].flatten(), pairs[:, 1:].flatten()
        for rows in torch.randperm(len(befores), generator=draw, device=device).split(1024):
            optimizer.zero_grad()
            F.cross_entropy(logits[befores[rows]], afters[rows]).backward()
            optimizer.step()

    assert config.transitions
    works = [
        Work("ours, on counts", lambda: distill(teacher, prm, scales, config, context), config.transitions, True),
        Work("walking and training pair by pair", pair_by_pair, few, note="the labels are given to it"),
    ]
    setup = f"N = {graph.n_states}, K = {graph.n_clusters}, ε = .03; {config.transitions:,} transitions against {few:,}"
    row = Benchmark("distill", "distill", setup, "transitions", race(works, settings))
    row.marks = [Mark("faster than pair by pair", row.ratio(works[0].name, works[1].name), 1.0)]
    return row


ROWS = {"distill": student}
