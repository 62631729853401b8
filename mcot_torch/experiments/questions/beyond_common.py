"""What the experiments beyond the paper share: they ask questions, and a question is answered, not confirmed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcot_torch.chains import hitting_time
from mcot_torch.errors import InputError
from mcot_torch.experiments.base import ANSWERED, UNANSWERED, Measurement, Number, Summary
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.scales import Scales
from mcot_torch.graphs.task import Task, TaskConfig, build_task
from mcot_torch.reasoners import Reasoner
from mcot_torch.training.result import Result

__all__ = ["ExactProblem", "answer", "geometric_mean", "make_problem", "median", "stages", "tune"]


def answer(numbers: Sequence[Number], why: str, notes: Sequence[str] = ()) -> Summary:
    """A question has no theorem's bound: it is answered once every number that the answer rests on was measured."""
    missing = [number.name for number in numbers if number.value is None]
    if missing:
        return Summary(list(numbers), UNANSWERED, f"Not measured: {', '.join(missing)}.", list(notes))
    return Summary(list(numbers), ANSWERED, why, list(notes))


def median(rows: Sequence[Measurement], key: str) -> float | None:
    """Median over seeds of what was measured; None where nothing was."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.median(values)) if values else None


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(float(np.mean(np.log(np.asarray(values, dtype=np.float64)))))


@dataclass(frozen=True)
class ExactProblem:
    """A graph, its task, its scales, and the exact times of the task at ε and at ε_max."""

    graph: MetastableGraph
    task: Task
    scales: Scales
    base: float
    ideal: float

    def time(self, kernel: Any) -> float | None:
        """Exact E[τ] in steps of the task under a kernel; None where it is never solved."""
        try:
            return hitting_time(kernel, self.task.start, self.task.target)
        except InputError:  # out of reach
            return None

    def target_mask(self) -> torch.Tensor:
        """(N,) bool, X_out."""
        return torch.from_numpy(self.task.mask())

    def hard(self, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities of the hard steps under a kernel."""
        x, y = self.graph.sparse_edges.T
        return kernel[x, y]


def make_problem(point: dict[str, Any], epsilon_max: float | None = None, **options: Any) -> ExactProblem:
    """The circulant of the point's K, M, epsilon and seed; ε_max = .96/M unless given; C_0 to the entry of C_{K/2}."""
    graph = clustered_graph(point["K"], point["M"], point["epsilon"], seed=point["seed"], **options)
    scales = Scales.of(graph, epsilon_max or 0.96 / point["M"])
    task = build_task(TaskConfig(), graph)
    times = [
        hitting_time(g.to_scipy(), task.start, task.target, g.clusters)
        for g in (graph, graph.with_epsilon(scales.epsilon_max))
    ]
    return ExactProblem(graph, task, scales, *times)


def tune(
    problem: ExactProblem, reasoner: Reasoner, prm: Any, seed: int, probe: Any = None, **options: Any
) -> Result[Reasoner]:
    """Run Algorithm 3 in place; a table gets the learning rate that suits it."""
    from mcot_torch.algorithms.config import PPOConfig
    from mcot_torch.algorithms.ppo import ppo
    from mcot_torch.reasoners import LinearReasoner
    from mcot_torch.training.loop import Context

    options.setdefault("learning_rate", 0.03 if isinstance(reasoner, LinearReasoner) else 3e-4)
    context = Context(seed, probe=probe)
    start = torch.from_numpy(problem.task.start)
    return ppo(reasoner, prm, problem.scales, PPOConfig(**options), context, start, problem.target_mask())


def stages(problem: ExactProblem, reasoner: Reasoner, seed: int, ppo_rounds: int, dist: int, walks: int) -> Measurement:
    """Search, PPO and distillation on a pretrained `reasoner`, each held against the exact chain."""
    from mcot_torch.algorithms.config import DistillConfig
    from mcot_torch.algorithms.distill import distill
    from mcot_torch.algorithms.search import search
    from mcot_torch.evaluation.measures import edge_precision_recall
    from mcot_torch.evaluation.subjects import measure_lift, student_subject
    from mcot_torch.training.loop import Context

    graph, scales, task = problem.graph, problem.scales, problem.task
    found = search(reasoner, scales, None, Context(seed))
    prm = found.model
    precision, recall = edge_precision_recall(prm.edges, graph.sparse_edges)
    row: Measurement = {
        "recall": recall,
        "precision": precision,
        "search_cost": found.cost.transitions * graph.epsilon / graph.n_states,
    }
    before = reasoner.kernel().numpy()
    tune(problem, reasoner, prm, seed, rounds=ppo_rounds)
    kernel = reasoner.kernel().numpy()
    hard = problem.hard(kernel) / scales.epsilon_max
    other = np.setdiff1d(np.arange(graph.n_states), graph.sparse_edges[:, 0])
    tuned = problem.time(kernel)
    row |= {
        "hard_min": hard.min(),
        "hard_max": hard.max(),
        "forgotten": (np.abs(kernel - before).sum(1) / 2)[other].max(),
        "tuned": tuned,
        "tuned_error": None if tuned is None else tuned / problem.ideal - 1,
    }
    student = distill(reasoner, prm, scales, DistillConfig(transitions=dist), Context(seed)).model
    subject = student_subject(student, graph.with_epsilon(scales.epsilon_max), task)
    lifted = measure_lift(student, reasoner, prm, graph, task, walks, seed)
    row |= {
        "clusters": student.n_states,
        "mislabelled": subject.extra["mislabelled_states"],
        "hops": None,
        "hops_exact": None,
        "lifted": lifted["lifted_steps"],
        "lifted_valid": lifted["lifted_valid"],
    }
    apart = not subject.start[subject.target].any()
    if student.n_states == graph.n_clusters and apart and np.isfinite(subject.truth).all():
        row["hops"] = hitting_time(subject.kernel, subject.start, subject.target)
        row["hops_exact"] = hitting_time(subject.truth, subject.start, subject.target)
    return row
