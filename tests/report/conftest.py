"""Runs without training: exact tables as models, so that every number in a report is known beforehand."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mcot_torch.algorithms.config import DistillConfig
from mcot_torch.algorithms.distill import distill
from mcot_torch.algorithms.prm import PRM
from mcot_torch.evaluation.curves import survival_curves
from mcot_torch.evaluation.models import EvaluationInputs, measure_models
from mcot_torch.evaluation.problem import Models, Problem
from mcot_torch.experiments.support import exact_reasoner as table
from mcot_torch.graphs import TaskConfig, build_task
from mcot_torch.graphs.scales import Scales
from mcot_torch.report.page.material import Material
from mcot_torch.runs.config import Config, to_yaml
from mcot_torch.runs.evaluate import _sampled


@pytest.fixture(scope="session")
def material():
    """graph -> the Material of a run on it whose stages up to `stages` are finished and exact."""

    def build(graph, stages=("pretrain", "search", "ppo", "distill"), found=None, walks=200):
        epsilon_max = min(10 * graph.epsilon, 0.5 * graph.epsilon_limit)
        config = Config(distill=DistillConfig(steps=300, transitions=2_000_000))
        problem = Problem(graph, build_task(TaskConfig(), graph), Scales.of(graph, epsilon_max))
        models = Models(pretrained=table(graph))
        edges = graph.sparse_edges if found is None else found
        if "search" in stages:
            models.prm = PRM(graph.n_states, torch.from_numpy(np.asarray(edges)))
        if "ppo" in stages:
            models.tuned = table(graph.with_epsilon(epsilon_max))
        if "distill" in stages:
            models.student = distill(models.tuned, models.prm, problem.scales, config.distill).model
        inputs = EvaluationInputs(problem, models, contexts=64)
        measured = measure_models(inputs, walks, 12.0)
        result = {
            "models": measured.rows,
            "transitions": {
                "search": 1_234_567 if "search" in stages else None,
                "ppo": 50_000 if "ppo" in stages else None,
            },
            "seconds": {stage: 1.5 for stage in stages},
            "evaluation": {"seed": 0, "walks": walks},
            "versions": {"mcot_torch": "0"},
        }
        sampled = _sampled(config, models, result["transitions"])
        told = ("run", config.seed, config.distill.teacher, to_yaml(config), problem, models, sampled, result)
        return Material(*told, measured.subjects, survival_curves(measured))

    return build


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; skips where there is none."""
    from headless import Browser, find_chromium

    executable = find_chromium()
    if executable is None:
        pytest.skip("no chromium here")
    profile = Path(tempfile.mkdtemp(prefix="mcot-chromium-"))
    with Browser(executable, profile) as running:
        yield running
    shutil.rmtree(profile, ignore_errors=True)
