"""`evaluate`: any reasoners held against the exact chain in one call, without a run folder."""

from __future__ import annotations

from collections.abc import Mapping

from mcot_torch.errors import InputError
from mcot_torch.evaluation.rows import ModelRow, add_speedups
from mcot_torch.evaluation.subjects import base_subject, measure, reasoner_subject, student_subject
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.student import Student

__all__ = ["evaluate"]


def evaluate(
    models: Mapping[str, Reasoner],
    graph: MetastableGraph,
    task: Task,
    truths: Mapping[str, MetastableGraph] | None = None,
    walks: int = 1000,
    seed: int = 0,
    horizon_factor: float = 12.0,
    contexts: int = 4096,
) -> dict[str, ModelRow]:
    """How long each model takes, exactly and sampled, and how close its kernel is to the one that it should have.

    Args:
        models: name -> a reasoner over the graph's states, or a student over its clusters.
        graph: the chain p^ε, N states.
        task: start and target.
        truths: name -> the chain that a model is held against where that is not `graph`, such as
            `graph.with_epsilon(epsilon_max)` for a tuned model and for the student distilled from it.
        walks: Monte Carlo walks of each model, at least 2.
        seed: of the walks.
        horizon_factor: a walk is given up after this many times the exact expected time.
        contexts: sampled paths over which a reasoner with a window above 1 is averaged.

    Returns:
        name -> row, "base" (the exact chain) first, with the entries of evaluation.json: `unit` ("steps" or "hops"),
        `hitting_time_exact` (None with a window above 1), `hitting_time_sampled` (`mean`, `low`, `high`, ...), `row_tv_max`,
        `hard_step_probability`, `speedup` over the exact chain, and others.

    Raises:
        InputError: a name that is taken or unknown, a model of another size, too few walks.
    """
    truths = truths or {}
    if walks < 2:
        raise InputError(f"walks is {walks}; it must be at least 2, or no interval can be given")
    if "base" in models:
        raise InputError("a model is named base, which is the exact chain's name; choose another")
    if unknown := set(truths) - set(models):
        raise InputError(f"truths names {min(unknown)}, and there is no such model; choose from {', '.join(models)}")
    subjects = [base_subject(graph, task)]
    for name, model in models.items():
        n_states = len(model.labels) if isinstance(model, Student) else model.n_states
        if n_states != graph.n_states:
            raise InputError(f"{name} is a model of {n_states} states, and the graph has {graph.n_states}")
        truth = truths.get(name, graph)
        if isinstance(model, Student):
            subject = student_subject(model, truth, task)
            subject.name = name
        else:
            subject = reasoner_subject(name, model, truth, f"p^{truth.epsilon:g}", task, contexts, seed)
        subjects.append(subject)
    rows = {subject.name: measure(subject, walks, horizon_factor, seed)[0] for subject in subjects}
    add_speedups(rows)
    return rows
