"""The table of models: every model that a run is evaluated by, in the order of the tables and figures.

An entry says what a model is called, what it is compared with, how it is drawn, and how it is made from the problem and the
models of a run. Evaluation, report, figures, TensorBoard and the comparison of runs iterate over `MODELS`: a new model is one
new entry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mcot_torch.algorithms.prm import guidance
from mcot_torch.evaluation.measures import edge_precision_recall
from mcot_torch.evaluation.problem import Models, Problem
from mcot_torch.evaluation.rows import ModelRow, add_speedups
from mcot_torch.evaluation.subjects import (
    Knowledge,
    Subject,
    base_subject,
    measure,
    measure_lift,
    reasoner_subject,
    student_subject,
)
from mcot_torch.evaluation.values import Values
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.reasoners.reasoner import Policy, Reasoner
from mcot_torch.system.progress import progress_bar

__all__ = [
    "MODELS",
    "EvaluationInputs",
    "Measured",
    "ModelEntry",
    "made_by",
    "measure_models",
    "ordered",
    "subjects",
    "title",
]


@dataclass(frozen=True)
class EvaluationInputs:
    """Everything that an entry of the table may need to build its model.

    Attributes:
        problem: graph, task and scales.
        models: what the finished stages made.
        teacher: name of the model that the student learned from.
        contexts: sampled paths over which a reasoner with a window above 1 is averaged.
        seed: of those paths.
        fresh: builds the reasoner of the run before any training, on the device of the models; None where no configuration
            is known.
    """

    problem: Problem
    models: Models
    teacher: str = "tuned"
    contexts: int = 4096
    seed: int = 0
    fresh: Callable[[], Reasoner] | None = None

    @cached_property
    def raised(self) -> MetastableGraph:
        """The chain p^ε_max, which guidance and PPO aim at."""
        return self.problem.graph.with_epsilon(self.problem.scales.epsilon_max)

    @property
    def teacher_epsilon(self) -> float:
        """The ε that the teacher aims at."""
        scales = self.problem.scales
        return scales.epsilon_max if self.teacher == "tuned" else scales.epsilon

    @cached_property
    def found(self) -> ModelRow:
        """Recall and precision of the hard steps that search found; nothing before search."""
        if self.models.prm is None or self.models.pretrained is None:
            return {}
        edges = self.models.prm.edges.numpy()
        precision, recall = edge_precision_recall(edges, self.problem.graph.sparse_edges)
        return {"hard_step_recall": recall, "hard_step_precision": precision}


@dataclass(frozen=True)
class ModelEntry:
    """One model of the table.

    Attributes:
        name: key of its row in evaluation.json, its label in figures and its part of TensorBoard's tags.
        title: what the report calls it.
        unit: "steps" of the chain or "hops" between clusters.
        reference: name of the exact kernel that it is compared with.
        colour: in figures, #rrggbb. Choose a colour of Okabe and Ito that no other entry has, so that colour-blind readers can
            tell the models apart; #d55e00 is taken, because it marks hard steps that search missed.
        subject: makes the model under evaluation from this entry and the inputs; None where its stage has not run.
        stage: the stage of a run that produces it; None for a model that no stage produces.
        knows: whose values the model knows in a logical task: "nothing" (the values of no step), "hard steps" (of the hard
            steps that search found), "hops" (of hops between clusters), or None for a model that returns no values.
        own_weights: whether it differs from another model by its weights, not by the policy that samples from it.
        lifted: whether its paths are lifted to paths of states, which the entries `lifted_*` of its row describe. Its subject
            must have a `student`.
        competes: whether the report may call it the fastest model so far; False for models that are shown for reference.
        dark_colour: in the report on dark paper; None for `colour`.
        marker: plotly symbol in charts of single probabilities.
    """

    name: str
    title: str
    unit: Literal["steps", "hops"]
    reference: str
    colour: str
    subject: Callable[[ModelEntry, EvaluationInputs], Subject | None]
    stage: str | None = None
    knows: Knowledge | None = "nothing"
    own_weights: bool = True
    lifted: bool = False
    competes: bool = True
    dark_colour: str | None = None
    marker: str = "circle-open"


# ---- how each model is made -----------------------------------------------------------------------------------------


def _base(entry: ModelEntry, inputs: EvaluationInputs) -> Subject:
    return base_subject(inputs.problem.graph, inputs.problem.task)


def _reasoner(
    entry: ModelEntry,
    inputs: EvaluationInputs,
    reasoner: Reasoner | None,
    truth: MetastableGraph,
    policy: Policy | None = None,
) -> Subject | None:
    if reasoner is None:
        return None
    task, contexts, seed = inputs.problem.task, inputs.contexts, inputs.seed
    return reasoner_subject(entry.name, reasoner, truth, entry.reference, task, contexts, seed, policy)


def _with_found(subject: Subject | None, inputs: EvaluationInputs) -> Subject | None:
    """Add recall and precision of search to the row."""
    if subject is not None:
        subject.extra |= inputs.found
    return subject


def _pretrained(entry: ModelEntry, inputs: EvaluationInputs) -> Subject | None:
    return _reasoner(entry, inputs, inputs.models.pretrained, inputs.problem.graph)


def _guided(entry: ModelEntry, inputs: EvaluationInputs) -> Subject | None:
    pretrained, prm = inputs.models.pretrained, inputs.models.prm
    if pretrained is None or prm is None:
        return None
    policy = guidance(prm, inputs.problem.scales, pretrained.device)
    return _with_found(_reasoner(entry, inputs, pretrained, inputs.raised, policy), inputs)


def _tuned(entry: ModelEntry, inputs: EvaluationInputs) -> Subject | None:
    return _with_found(_reasoner(entry, inputs, inputs.models.tuned, inputs.raised), inputs)


def _student(entry: ModelEntry, inputs: EvaluationInputs) -> Subject | None:
    if inputs.models.student is None:
        return None
    truth = inputs.problem.graph.with_epsilon(inputs.teacher_epsilon)
    return student_subject(inputs.models.student, truth, inputs.problem.task)


# ---- the table ------------------------------------------------------------------------------------------------------

# colours of Okabe and Ito, which colour-blind readers can tell apart
_ENTRIES = (
    ModelEntry(
        name="base",
        title="base chain",
        unit="steps",
        reference="p^ε",
        colour="#6b6b6b",
        subject=_base,
        knows=None,
        competes=False,
        dark_colour="#a3a7ab",
        marker="line-ew-open",
    ),
    ModelEntry(
        name="pretrained",
        title="pretrained model",
        unit="steps",
        reference="p^ε",
        colour="#0072b2",
        subject=_pretrained,
        stage="pretrain",
        dark_colour="#56b4e9",
    ),
    ModelEntry(
        name="guided",
        title="guided model",
        unit="steps",
        reference="p^ε_max",
        colour="#e69f00",
        subject=_guided,
        stage="search",
        knows="hard steps",
        own_weights=False,
        dark_colour="#f0b43c",
    ),
    ModelEntry(
        name="tuned",
        title="tuned model",
        unit="steps",
        reference="p^ε_max",
        colour="#009e73",
        subject=_tuned,
        stage="ppo",
        knows="hard steps",
        dark_colour="#2fc196",
        marker="circle",
    ),
    ModelEntry(
        name="student",
        title="student",
        unit="hops",
        reference="meta-chain",
        colour="#cc79a7",
        subject=_student,
        stage="distill",
        knows="hops",
        lifted=True,
        dark_colour="#dc9cbf",
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}
"""Name -> entry, in the order of the tables."""


def made_by(stage: str) -> ModelEntry:
    """The entry of the model that a stage of a run produces."""
    return next(entry for entry in MODELS.values() if entry.stage == stage)


def title(name: str) -> str:
    """What the report calls a model; the name itself for a model that is not in the table."""
    return MODELS[name].title if name in MODELS else name


def ordered(names: Collection[str]) -> list[ModelEntry]:
    """The entries of the named models, in the order of the table."""
    return [entry for name, entry in MODELS.items() if name in names]


# ---- measuring all of them ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What was measured of all models.

    Attributes:
        rows: name -> row of evaluation.json.
        times: name -> (walks,) int64 sampled hitting times, equal to the horizon where a walk was given up.
        subjects: name -> the model as it was measured.
    """

    rows: dict[str, ModelRow]
    times: dict[str, NDArray[np.int64]]
    subjects: dict[str, Subject]


def subjects(inputs: EvaluationInputs) -> list[Subject]:
    """Every model of the table that the finished stages of a run allow, in the order of the table."""
    made = [(entry, entry.subject(entry, inputs)) for entry in MODELS.values()]
    return [
        replace(subject, name=entry.name, truth_name=entry.reference, knows=entry.knows)
        for entry, subject in made
        if subject is not None
    ]


def measure_models(
    inputs: EvaluationInputs, walks: int, horizon_factor: float, values: Values | None = None, progress: bool = False
) -> Measured:
    """Measure every model of the table that the finished stages of a run allow.

    Args:
        inputs: problem and models; its seed is that of the walks too.
        walks: Monte Carlo walks of each model.
        horizon_factor: a walk is given up after this many times the exact expected time.
        values: the logical task, if the hard steps compute anything.
        progress: show a progress bar.
    """
    found = subjects(inputs)
    rows: dict[str, ModelRow] = {}
    times: dict[str, NDArray[np.int64]] = {}
    with progress_bar("evaluate", len(found), progress) as bar:
        for done, subject in enumerate(found):
            bar.update(done, subject.name)
            watched, judged = (subject, dict) if values is None else values.watch(subject)
            row, times[subject.name] = measure(watched, walks, horizon_factor, inputs.seed)
            rows[subject.name] = row | judged()
            if MODELS[subject.name].lifted:
                rows[subject.name] |= _lifted(subject, inputs, walks, values)
        bar.update(len(found))
    add_speedups(rows)
    return Measured(rows, times, {subject.name: subject for subject in found})


def _lifted(subject: Subject, inputs: EvaluationInputs, walks: int, values: Values | None) -> ModelRow:
    """Entries of the lifted paths of a subject; lifting needs the teacher and the hard steps that search found."""
    problem, models = inputs.problem, inputs.models
    teacher = models.reasoner(inputs.teacher)
    if subject.student is None or models.prm is None or teacher is None:
        return {}
    judge = None if values is None else values.lifted
    return measure_lift(subject.student, teacher, models.prm, problem.graph, problem.task, walks, inputs.seed, judge)
