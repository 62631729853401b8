"""A model under evaluation beside the exact chain, and what is measured of it.

The one place after pretraining that sees the truth: the graph, its labels and its hard steps. Each model is a
`Subject`; `measure` turns a subject into a row. `models.py` holds the table of the models of a run.
A model with window 1 has a kernel, and its expected hitting time is solved exactly, raw and cut (specification,
"Softmax leak", docs/specification.md#softmax-leak). A model that reads history has no kernel: the hitting time of its
context-averaged chain is reported under that name beside the sampled one.

Above `_MOST_DENSE` states kernels are CSR, and what would cost N³ operations many times over (the exact law of the
hitting time) or once (the exact time without the cut, above `_MOST_RAW`) is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse as sp
from torch import Tensor

from mcot_torch.algorithms.lift import lift
from mcot_torch.algorithms.prm import PRM
from mcot_torch.chains import hitting_time, pair_kernel, rescale, restricted_mean
from mcot_torch.chains.elimination import Kernel
from mcot_torch.errors import InputError
from mcot_torch.evaluation.measures import hard_step_probabilities, precision_recall, row_tv
from mcot_torch.evaluation.rows import ModelRow
from mcot_torch.evaluation.statistics import NORMAL_975
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task, target_mask
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.student import Student
from mcot_torch.reasoners.support import Policy
from mcot_torch.reasoners.walks import own_paths, sparse_kernel, walker
from mcot_torch.sampling.walks import StepTable, TableWalker, Walker, first_hitting_times
from mcot_torch.system.randomness import generator

__all__ = ["Subject", "base_subject", "cluster_truth", "measure", "measure_lift", "reasoner_subject", "student_subject"]

_MOST_DENSE = 3_000  # states of a dense kernel, and of the exact law of a hitting time
_MOST_RAW = 10_000  # states of a kernel without the cut, whose N³ elimination is waited for


Knowledge = Literal["nothing", "hard steps", "hops"]


@dataclass
class Subject:
    """One model under evaluation.

    Attributes:
        name: row of the table.
        unit: "steps" or "hops".
        n_states: N, or K for the student.
        start: (N,) law of X_in.
        target: (n,) X_out.
        truth: (N, N) the kernel that the model is held against; dense, or CSR above `_MOST_DENSE` states.
        truth_name: what that kernel is.
        hard: (n, 2) the hard steps, or hops.
        walker: makes walkers from starts and a generator.
        kernel: (N, N) predictions with the cut, exact for window 1 and averaged over contexts otherwise; as `truth`.
        kernel_raw: makes the same without the cut; None where there is none.
        clusters: (N,) labels, for the elimination in blocks of a CSR kernel.
        exact: whether the kernel is the whole truth about the model (window 1).
        parameters: trainable numbers; None for the exact chain.
        device: of the walks.
        knows: whose values the model knows in a logical task: of no step, of the hard steps that search found, or of hops;
            None for a model that returns no values.
        student: the model over clusters, whose paths can be lifted; None for a model over states.
        extra: more entries of the row.
    """

    name: str
    unit: str
    n_states: int
    start: NDArray[np.float64]
    target: NDArray[np.int64]
    truth: Kernel
    truth_name: str
    hard: NDArray[np.int64]
    walker: Callable[[Tensor, torch.Generator], Walker]
    kernel: Kernel
    kernel_raw: Callable[[], Kernel] | None
    exact: bool = True
    parameters: int | None = None
    device: torch.device | str = "cpu"
    clusters: NDArray[np.int64] | None = None
    knows: Knowledge | None = "hard steps"
    student: Student | None = None
    extra: ModelRow = field(default_factory=dict)

    def hitting_time(self, kernel: Kernel) -> float:
        """Exact E[τ] of the subject's task on a kernel."""
        return hitting_time(kernel, self.start, self.target, self.clusters if sp.issparse(kernel) else None)

    def mask(self) -> NDArray[np.bool_]:
        """(N,) bool: whether a state is a target."""
        return target_mask(self.n_states, self.target)

    @property
    def law_is_solved(self) -> bool:
        """Whether the exact law of the hitting time is worked out: powers of the kernel."""
        return self.exact and self.n_states <= _MOST_DENSE


# ---- subjects ---------------------------------------------------------------------------------------------------


def base_subject(graph: MetastableGraph, task: Task) -> Subject:
    """The exact chain p^ε itself."""
    table, kernel = StepTable.from_graph(graph), _kernel(graph)
    return Subject(
        name="base",
        unit="steps",
        n_states=graph.n_states,
        start=task.start,
        target=task.target,
        truth=kernel,
        truth_name="p^ε",
        hard=graph.sparse_edges,
        walker=lambda start, draw: TableWalker(table, start, draw),
        kernel=kernel,
        kernel_raw=lambda: kernel,
        clusters=graph.clusters,
        knows=None,
    )


def _kernel(graph: MetastableGraph) -> Kernel:
    return graph.kernel() if graph.n_states <= _MOST_DENSE else graph.to_scipy()


def reasoner_subject(
    name: str,
    reasoner: Reasoner,
    truth: MetastableGraph,
    truth_name: str,
    task: Task,
    contexts: int,
    seed: int,
    policy: Policy | None = None,
) -> Subject:
    """A reasoner over the graph's states, guided by `policy` where one is given."""
    extra: ModelRow = {}
    kernel: Kernel
    raw: Callable[[], Kernel] | None = None
    small = reasoner.n_states <= _MOST_DENSE
    if reasoner.window == 1:
        kernel = reasoner.kernel(policy=policy).cpu().numpy() if small else sparse_kernel(reasoner, policy)
        if reasoner.n_states <= _MOST_RAW:
            raw = lambda: reasoner.kernel(False, policy).cpu().numpy()  # noqa: E731
    else:
        paths = own_paths(reasoner, contexts, generator(seed, "contexts", name, device=reasoner.device), policy)
        mean, visits, spread = reasoner.context_kernel(paths, True, policy)
        unseen = (visits == 0).cpu().numpy()
        if unseen.any():
            raise InputError(
                f"evaluation.contexts {contexts} leaves {int(unseen.sum())} states without a context; use more"
            )
        kernel = mean.cpu().numpy() if small else sp.csr_array(mean.cpu().numpy())
        extra["history_dependence"] = float((spread * visits).sum() / visits.sum())
    return Subject(
        name=name,
        unit="steps",
        n_states=reasoner.n_states,
        start=task.start,
        target=task.target,
        truth=_kernel(truth),
        truth_name=truth_name,
        hard=truth.sparse_edges,
        walker=lambda start, draw: walker(reasoner, start, draw, policy),
        kernel=kernel,
        kernel_raw=raw,
        exact=reasoner.window == 1,
        parameters=reasoner.n_parameters,
        device=reasoner.device,
        clusters=truth.clusters,
        extra=extra,
    )


def cluster_truth(graph: MetastableGraph, beta: float | None = None) -> NDArray[np.float64]:
    """(K, K) the exact rescaled meta-chain: the pair kernel q° of p^ε with β = log(M/ε) on its off-diagonal logits."""
    kernel = pair_kernel(graph.to_scipy(), graph.clusters, graph.n_clusters)
    return rescale(kernel, math.log(graph.n_states / graph.n_clusters / graph.epsilon) if beta is None else beta)


def student_subject(student: Student, truth: MetastableGraph, task: Task) -> Subject:
    """The student, over its own clusters; `truth` is the graph at the teacher's ε.

    Its clusters are matched to the graph's by their representatives. Where that is no bijection the truth is unknown
    and the row says how many clusters the student has.
    """
    labels = student.labels.cpu().numpy()
    match = truth.clusters[student.representatives.cpu().numpy()]
    bijective = len(np.unique(match)) == truth.n_clusters == student.n_states
    kernel = student.kernel().cpu().numpy()
    exact = cluster_truth(truth)
    extra: ModelRow = {
        "n_clusters": student.n_states,
        "mislabelled_states": int((match[labels] != truth.clusters).sum()),
        "beta": float(student.beta),
    }
    if bijective:
        exact = exact[np.ix_(match, match)]
        adjacent = (exact > 0) & ~np.eye(len(exact), dtype=bool)
        precision, recall = precision_recall((kernel > 0) & ~np.eye(len(exact), dtype=bool), adjacent)
        extra |= {"hard_step_recall": recall, "hard_step_precision": precision}
        hard = np.argwhere(adjacent)
    else:
        exact = np.full_like(kernel, np.nan)
        hard = np.argwhere((kernel > 0) & ~np.eye(len(kernel), dtype=bool))
    return Subject(
        name="student",
        unit="hops",
        n_states=student.n_states,
        start=np.bincount(labels, task.start, minlength=student.n_states).astype(np.float64),
        target=np.unique(labels[task.target]),
        truth=exact,
        truth_name="meta-chain",
        hard=hard,
        walker=lambda start, draw: walker(student, start, draw),
        kernel=kernel,
        kernel_raw=lambda: student.kernel(cut=False).cpu().numpy(),
        parameters=sum(p.numel() for p in student.model.parameters()),
        device=student.device,
        knows="hops",
        student=student,
        extra=extra,
    )


# ---- rows -------------------------------------------------------------------------------------------------------


def measure(subject: Subject, walks: int, horizon_factor: float, seed: int) -> tuple[ModelRow, NDArray[np.int64]]:
    """A row of the table.

    Args:
        subject: the model.
        walks: Monte Carlo walks.
        horizon_factor: walks are given up after this many times the expected time.
        seed: of the walks.

    Returns:
        The row, and the (walks,) sampled hitting times, equal to the horizon where a walk was given up.
    """
    tv = row_tv(subject.kernel, subject.truth)
    known = bool(np.isfinite(tv).all())
    reference = subject.hitting_time(subject.truth) if known else None
    time_cut = _reachable_time(subject, subject.kernel)
    time_raw = None if subject.kernel_raw is None else _reachable_time(subject, subject.kernel_raw())
    horizon = max(1, math.ceil(horizon_factor * (time_cut or reference or subject.n_states**2)))
    sampled, times = _sample(subject, walks, horizon, seed)
    easy = np.setdiff1d(np.arange(subject.n_states), subject.hard[:, 0])
    row: ModelRow = {
        "unit": subject.unit,
        "parameters": subject.parameters,
        "hitting_time_exact": time_cut if subject.exact else None,
        "hitting_time_exact_raw": time_raw,
        "hitting_time_context_averaged": None if subject.exact else time_cut,
        "hitting_time_reference": reference,
        "hitting_time_sampled": sampled,
        "row_tv_mean": float(tv.mean()) if known else None,
        "row_tv_max": float(tv.max()) if known else None,
        "row_tv_easy_max": float(tv[easy].max()) if known and len(easy) else None,
        "row_tv_reference": subject.truth_name,
        "hard_step_probability": hard_step_probabilities(subject.kernel, subject.hard),
        "hard_step_recall": None,
        "hard_step_precision": None,
        "steps_per_second": sampled.pop("steps_per_second"),
    }
    return row | subject.extra, times


def _reachable_time(subject: Subject, kernel: Kernel) -> float | None:
    """Exact E[τ] of a learned kernel; None where it has lost every way to X_out."""
    try:
        return subject.hitting_time(kernel)
    except InputError:
        return None


def _sample(subject: Subject, walks: int, horizon: int, seed: int) -> tuple[ModelRow, NDArray[np.int64]]:
    draw = generator(seed, "evaluation", subject.name, device=subject.device)
    law = torch.from_numpy(subject.start).to(subject.device)
    start = torch.multinomial(law, walks, replacement=True, generator=draw)
    target = torch.from_numpy(subject.mask()).to(subject.device)
    walkers = subject.walker(start, draw)
    begin = time.perf_counter()
    times, censored = first_hitting_times(walkers, target, horizon)
    seconds = time.perf_counter() - begin
    values = times.double()
    mean, half = float(values.mean()), NORMAL_975 * float(values.std()) / math.sqrt(walks)
    row: ModelRow = {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "n": walks,
        "censored": int(censored.sum()),
        "horizon": horizon,
        "restricted_mean_exact": None,
        "steps_per_second": float(values.sum()) / seconds,
    }
    if subject.law_is_solved:
        row["restricted_mean_exact"] = restricted_mean(subject.kernel, subject.start, subject.target, horizon)
    return row, times.cpu().numpy()


def measure_lift(
    student: Student,
    teacher: Reasoner,
    prm: PRM,
    graph: MetastableGraph,
    task: Task,
    walks: int,
    seed: int,
    judge: Callable[[Tensor, Tensor], ModelRow] | None = None,
) -> ModelRow:
    """Lifted paths: their mean length with 95 % interval, and the share that arrives by edges of the graph only.

    `judge` adds entries from the paths (W, L), -1 behind their ends, and who arrived (W,) bool.
    """
    draw = generator(seed, "evaluation", "lift", device=teacher.device)
    start = torch.multinomial(torch.from_numpy(task.start).to(teacher.device), walks, replacement=True, generator=draw)
    target = torch.from_numpy(task.mask()).to(teacher.device)
    lifted = lift(student, teacher, prm, start, target, draw)
    paths, arrived = (tensor.cpu().numpy() for tensor in lifted)
    edge = np.zeros((graph.n_states, graph.n_states), dtype=bool)
    edge[graph.sources, graph.indices] = True
    before, after = paths[:, :-1], paths[:, 1:]
    valid = (edge[before, after] | (after < 0)).all(axis=1) & arrived
    length = (after >= 0).sum(axis=1)[valid].astype(float)
    mean = float(length.mean()) if len(length) else None
    half = NORMAL_975 * float(length.std(ddof=1)) / math.sqrt(len(length)) if len(length) > 1 else 0.0
    return {
        "lifted_steps": mean,
        "lifted_steps_low": None if mean is None else mean - half,
        "lifted_steps_high": None if mean is None else mean + half,
        "lifted_steps_min": int(length.min()) if len(length) else None,
        "lifted_valid": float(valid.mean()),
        **(judge(*lifted) if judge is not None else {}),
    }
