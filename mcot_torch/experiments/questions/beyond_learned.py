"""A learned model, of either kind, with every claim of the paper measured on it beside its exact value.

The grid behind `beyond_transformer_vs_linear`: `measure_model` pretrains one model on sampled paths and, where the point asks
for it, searches, tunes and distils. The samples depend on the graph and the seed alone, so that both kinds see the same.
The best that any model can do with them is known: the frequencies n(x,y)/n(x) are the exact minimiser of the loss. What
a model misses beyond them is its optimisation, not the sample.
"""

from __future__ import annotations

import copy
import math
import time

import numpy as np
import torch
from numpy.typing import NDArray

from mcot_torch.algorithms.config import DistillConfig, PretrainConfig
from mcot_torch.algorithms.distill import distill
from mcot_torch.algorithms.pretrain import pretrain
from mcot_torch.algorithms.prm import PRM, guidance
from mcot_torch.algorithms.search import search
from mcot_torch.chains import (
    escape_probabilities,
    hitting_time,
    meta_chain,
    metastability_ratio,
    pair_kernel,
    rescale,
)
from mcot_torch.errors import InputError
from mcot_torch.evaluation.measures import edge_precision_recall
from mcot_torch.experiments.base import Measurement, Point
from mcot_torch.experiments.questions.beyond_common import ExactProblem, make_problem, tune
from mcot_torch.reasoners import Reasoner, ReasonerConfig, build_reasoner, step_table
from mcot_torch.sampling.datasets import CountData
from mcot_torch.sampling.walks import StepTable
from mcot_torch.training.loop import Context

__all__ = ["measure_model"]

_EXACT = 10**13  # pairs at every step: a sampling error below float32's, so that gradients are exact
_NEAR = 0.1  # Proposition 3.4's band around ε_max


def measure_model(point: Point) -> Measurement:
    """Pretraining, and all that follows it where the point has `ppo_rounds`."""
    problem = make_problem(point)
    reasoner, row = _pretrained(problem, point)
    if not point["ppo_rounds"]:
        return row
    found = search(reasoner, problem.scales, None, Context(point["seed"]))
    prm = found.model
    row |= _searched(problem, reasoner, prm, found.cost.transitions)
    row |= _distilled(problem, reasoner, prm, point, problem.graph.epsilon, point["dist"])
    few = point["few"] and _tuned(problem, copy.deepcopy(reasoner), prm, point, point["few"])["hard_min"]
    row |= _tuned(problem, reasoner, prm, point, point["rollout"]) | {"few_hard_min": few}
    tuned = _distilled(problem, reasoner, prm, point, problem.scales.epsilon_max, point["dist"][-1:])
    return row | {"hops_tuned": tuned["hops"], "hops_tuned_exact": tuned["hops_exact"]}


# ---- the stages -----------------------------------------------------------------------------------------------------


def _pretrained(problem: ExactProblem, point: Point) -> tuple[Reasoner, Measurement]:
    """Algorithm 1 on T transitions, or on exact gradients (T null): Proposition 2.1, Theorems 3.1 and 3.2."""
    graph, seed, (before, after) = problem.graph, point["seed"], point["steps"]
    truth = graph.kernel()
    config = PretrainConfig(steps=before, steps_after_cut=after, log_every=50)
    if point["T"] is None:
        config.data, config.transitions = "pairs", _EXACT
        frequencies = truth
    else:
        config.transitions = int(point["T"])
        table = StepTable.from_graph(graph)
        data = CountData(table, config.transitions, config.path_length, 1, seed, torch.float64)
        counts = table.to_edges(data.counts).numpy()
        frequencies = counts / np.maximum(counts.sum(1), 1)[:, None]

    def errors(kernel: NDArray[np.float64]) -> dict[str, float]:
        off = np.abs(kernel - truth)
        return {"all": off.max(), "possible": off[truth > 0].max(), "impossible": off[truth == 0].max()}

    reasoner = build_reasoner(ReasonerConfig(point["kind"]), graph.n_states, seed)
    context = Context(seed, probe=lambda r: errors(r.kernel().numpy()))
    begin = time.process_time()
    lines = {int(line["step"]): line for line in pretrain(reasoner, graph, config, context).history}
    seconds = time.process_time() - begin
    kernel, raw = (reasoner.kernel(cut=cut).numpy() for cut in (True, False))
    # the step T1 is logged right before its cut; with one stage the cut is the last thing that happens
    uncut = lines[before] if after else errors(raw)
    return reasoner, {
        "pretrain_seconds": seconds,
        "parameters": reasoner.n_parameters,
        "sup_before": uncut["all"],
        "sup_before_possible": uncut["possible"],
        "sup_before_impossible": uncut["impossible"],
        "sup_after": errors(kernel)["all"],
        "sup_sample": errors(frequencies)["all"],
        "support_exact": bool(((kernel > 0) == (truth > 0)).all()),
        "leak": float(np.where(truth > 0, 0.0, raw).sum(1).mean()),
        "ratio": _ratio(problem, kernel),
        "ratio_exact": _ratio(problem, truth),
        "time": problem.time(kernel),
        "time_raw": problem.time(raw),
        "time_sample": problem.time(frequencies),
        "time_exact": problem.base,
    }


def _ratio(problem: ExactProblem, kernel: NDArray[np.float64]) -> float | None:
    """Metastability ratio of the entry states; None where some state cannot reach them."""
    try:
        return metastability_ratio(kernel, problem.graph.entries)
    except InputError:
        return None


def _searched(problem: ExactProblem, reasoner: Reasoner, prm: PRM, transitions: int) -> Measurement:
    """Proposition 3.3 at the default budget."""
    graph = problem.graph
    precision, recall = edge_precision_recall(prm.edges, graph.sparse_edges)
    table = step_table(reasoner, guidance(prm, problem.scales))
    return {
        "recall": recall,
        "precision": precision,
        "cost": transitions * graph.epsilon / graph.n_states,
        "guided": problem.time(table.to_edges(table.probabilities).numpy()),
        "ideal": problem.ideal,
    }


def _tuned(problem: ExactProblem, reasoner: Reasoner, prm: PRM, point: Point, rollout: int) -> Measurement:
    """Proposition 3.4: PPO in place."""
    aim, before = problem.scales.epsilon_max, reasoner.kernel().numpy()

    def probe(r: Reasoner) -> dict[str, float]:
        return {"hard": float(problem.hard(r.kernel().numpy()).mean()) / aim}

    tuned = tune(
        problem, reasoner, prm, point["seed"], probe, rounds=point["ppo_rounds"], log_every=1, transitions=rollout
    )
    outside = [line["step"] for line in tuned.history if abs(line["hard"] - 1) > _NEAR]
    rounds = 1 + max(outside, default=0)
    kernel = reasoner.kernel().numpy()
    hard = problem.hard(kernel) / aim
    easy = problem.graph.hard_weight == 0
    return {
        "gain": aim / problem.graph.epsilon,
        "rounds": None if rounds > point["ppo_rounds"] else rounds,
        "hard_min": hard.min(),
        "hard_max": hard.max(),
        "forgotten": (np.abs(kernel - before).sum(1) / 2)[easy].max(),
        "tuned": problem.time(kernel),
    }


def _distilled(
    problem: ExactProblem, teacher: Reasoner, prm: PRM, point: Point, epsilon: float, sizes: list[int]
) -> Measurement:
    """Propositions 4.1, 4.2 and Theorem 4.3: students of T_dist = `sizes` transitions each, the last one's hops.

    The teacher stands for p^`epsilon`, whose q° and rescaled kernel are the exact values.
    """
    graph = problem.graph.with_epsilon(epsilon)
    k, goal = graph.n_clusters, graph.n_clusters // 2
    q = pair_kernel(graph.to_scipy(), graph.clusters, k)
    off = ~np.eye(k, dtype=bool)
    edges = off & (q > 0)
    star = meta_chain(graph)
    own = pair_kernel(teacher.kernel().numpy(), graph.clusters, k)
    row: Measurement = {
        "dist_errors": [],
        "dist_distances": [],
        "teacher_error": _rms(own, q, edges),
        "escape": None,
        "escape_exact": _escape_ratio(q, star),
        "hops": None,
        "hops_exact": hitting_time(rescale(q, math.log(graph.cluster_size / epsilon)), 0, [goal]),
    }
    for size in sizes:
        config = DistillConfig(transitions=int(size), steps=point["dist_steps"])
        student = distill(teacher, prm, problem.scales, config, Context(point["seed"])).model
        order = student.labels.numpy()[graph.entries]  # clusters in the graph's order
        if student.n_states != k or len(set(order)) != k:
            row["dist_errors"].append(None)
            row["dist_distances"].append(None)
            continue
        hops = student.kernel().numpy()
        student.beta.zero_()  # time as it is
        learned = student.kernel().numpy()[np.ix_(order, order)]
        row["dist_errors"].append(_rms(learned, q, edges))
        row["dist_distances"].append(_rms(learned, own, edges))
        row["escape"] = _escape_ratio(learned, star)
        row["hops"] = _hops(hops, int(order[0]), int(order[goal]))
    return row


def _rms(learned: NDArray[np.float64], q: NDArray[np.float64], edges: NDArray[np.bool_]) -> float:
    """Root mean square of the relative errors over the hops that exist."""
    return float(np.sqrt(((learned[edges] / q[edges] - 1) ** 2).mean()))


def _escape_ratio(q: NDArray[np.float64], star: NDArray[np.float64]) -> float | None:
    """Mean over pairs of clusters of P_k(τ̄_l < τ̄_k) under q over q*(C_l|C_k); None where q misses a way."""
    k = len(q)
    try:
        escape = np.stack([escape_probabilities(q, [target]) for target in range(k)], axis=1)
    except InputError:
        return None
    off = ~np.eye(k, dtype=bool)
    return float((escape[off] / star[off]).mean())


def _hops(kernel: NDArray[np.float64], start: int, target: int) -> float | None:
    """E[τ⁺]; None where the student knows no way."""
    try:
        return hitting_time(kernel, start, [target])
    except InputError:
        return None
