"""The material of one run's report: plain values, measured before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcot_torch.evaluation.curves import SurvivalCurve
from mcot_torch.evaluation.models import ordered
from mcot_torch.evaluation.problem import Models, Problem
from mcot_torch.evaluation.rows import ModelRow, expected_time
from mcot_torch.evaluation.subjects import Subject
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.report.page.picture import Picture

__all__ = ["Material", "StageCost"]


@dataclass(frozen=True)
class StageCost:
    """What one stage took and gave.

    Attributes:
        stage: its name.
        model: the model that it made.
        transitions: steps that it sampled; None where that is unknown.
        seconds: it took; None where that is unknown.
        after: expected steps to the target afterwards (of the student: of its lifted paths).
    """

    stage: str
    model: str
    transitions: float | None
    seconds: float | None
    after: float | None


@dataclass
class Material:
    """A run after its evaluation.

    Attributes:
        name: of the run folder.
        seed: of the run.
        teacher: name of the model that the student learned from.
        configuration: of the run, as text.
        problem, models: what was posed, and what the stages made.
        sampled: stage -> steps that it sampled; None where that is unknown.
        result: what evaluation.json holds.
        subjects: model -> what was evaluated.
        curves: model -> survival curve, as `figures.survival_figure` takes it.
    """

    name: str
    seed: int
    teacher: str
    configuration: str
    problem: Problem
    models: Models
    sampled: dict[str, float | None]
    result: dict[str, Any]
    subjects: dict[str, Subject]
    curves: dict[str, SurvivalCurve]

    @property
    def graph(self) -> MetastableGraph:
        """The graph."""
        return self.problem.graph

    @property
    def task(self) -> Task:
        """The task."""
        return self.problem.task

    @property
    def rows(self) -> dict[str, ModelRow]:
        """Model -> its row of evaluation.json."""
        return self.result["models"]

    @property
    def teacher_model(self) -> Reasoner | None:
        """The reasoner that the student learned from; None where its stage has not run."""
        return self.models.reasoner(self.teacher)

    @cached_property
    def found(self) -> NDArray[np.int64] | None:
        """(n, 2) steps that search took for hard."""
        return None if self.models.prm is None else self.models.prm.edges.numpy()

    @cached_property
    def picture(self) -> Picture:
        """The graph, drawn."""
        told = {
            e.name: self.subjects[e.name].kernel for e in ordered(self.subjects) if e.unit == "steps" and e.own_weights
        }
        return Picture(self.graph, self.task, self.found, told)

    @cached_property
    def student_clusters(self) -> NDArray[np.int64]:
        """(K',) the graph's cluster of each cluster of the student, by their representatives."""
        assert self.models.student is not None
        return self.graph.clusters[self.models.student.representatives.cpu().numpy()]

    @cached_property
    def costs(self) -> list[StageCost]:
        """The finished stages in order."""
        out = []
        for entry in ordered(self.rows):
            if entry.stage is not None:
                row = self.rows[entry.name]
                after = row.get("lifted_steps") if entry.lifted else expected_time(row)
                seconds = self.result["seconds"].get(entry.stage)
                out.append(StageCost(entry.stage, entry.name, self.sampled[entry.stage], seconds, after))
        return out
