"""What the report of one run is made of, gathered once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcot_torch.evaluation.subjects import Row, Subject
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task
from mcot_torch.report.page.picture import Picture
from mcot_torch.report.tables import expected_time
from mcot_torch.runs.config import STAGES, Config
from mcot_torch.runs.pipeline import Models, Problem

__all__ = ["NAMES", "Cost", "Material"]

NAMES = {
    "base": "base chain",
    "pretrained": "pretrained model",
    "guided": "guided model",
    "tuned": "tuned model",
    "student": "student",
}
"""What the models are called in the report."""

_RESULT_OF = {"pretrain": "pretrained", "search": "guided", "ppo": "tuned", "distill": "student"}


@dataclass(frozen=True)
class Cost:
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
        config, problem, models: as `load_models` gives them.
        result: what evaluation.json holds.
        subjects: model -> what was evaluated.
        curves: model -> survival curve, as `figures.survival_figure` takes it.
    """

    name: str
    config: Config
    problem: Problem
    models: Models
    result: dict[str, Any]
    subjects: dict[str, Subject]
    curves: dict[str, dict[str, Any]]

    @property
    def graph(self) -> MetastableGraph:
        """The graph."""
        return self.problem.graph

    @property
    def task(self) -> Task:
        """The task."""
        return self.problem.task

    @property
    def rows(self) -> dict[str, Row]:
        """Model -> its row of evaluation.json."""
        return self.result["models"]

    @property
    def teacher(self) -> str:
        """Which model the student learned from."""
        return "tuned" if self.config.distill.teacher == "tuned" else "pretrained"

    @cached_property
    def found(self) -> NDArray[np.int64] | None:
        """(n, 2) steps that search took for hard."""
        return None if self.models.prm is None else self.models.prm.edges.numpy()

    @cached_property
    def picture(self) -> Picture:
        """The graph, drawn."""
        told = {n: s.kernel for n, s in self.subjects.items() if n in ("base", "pretrained", "tuned")}
        return Picture(self.graph, self.task, self.found, told)

    @cached_property
    def student_clusters(self) -> NDArray[np.int64]:
        """(K',) the graph's cluster of each cluster of the student, by their representatives."""
        assert self.models.student is not None
        return self.graph.clusters[self.models.student.representatives.cpu().numpy()]

    @cached_property
    def costs(self) -> list[Cost]:
        """The finished stages in order."""
        config, reasoner = self.config, self.models.pretrained
        assert reasoner is not None
        steps = config.pretrain.steps + config.pretrain.steps_after_cut
        if reasoner.window > 1:
            pretrain = steps * config.pretrain.batch_size * reasoner.window
        else:
            pretrain = config.pretrain.transitions * (steps if config.pretrain.data == "pairs" else 1)
        sampled = {
            "pretrain": pretrain,
            "search": self.result["transitions"]["search"],
            "ppo": self.result["transitions"]["ppo"],
            "distill": config.distill.transitions or (1_000_000_000 if reasoner.window == 1 else 2_000_000),
        }
        out = []
        for stage in STAGES:
            model = _RESULT_OF[stage]
            if model in self.rows:
                row = self.rows[model]
                after = row.get("lifted_steps") if stage == "distill" else expected_time(row)
                out.append(Cost(stage, model, sampled[stage], self.result["seconds"].get(stage), after))
        return out
