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
from mcot_torch.evaluation.subjects import measure, measure_lift, subjects
from mcot_torch.experiments.support import exact_reasoner as table
from mcot_torch.graphs import TaskConfig, build_task
from mcot_torch.graphs.scales import Scales
from mcot_torch.report.page.material import Material
from mcot_torch.runs.config import Config
from mcot_torch.runs.evaluate import _curves
from mcot_torch.runs.pipeline import Models, Problem


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
        parts = (models.pretrained, models.prm, models.tuned, models.student)
        found_subjects = subjects(graph, problem.task, problem.scales, *parts, epsilon_max, 64, 0)
        rows, times = {}, {}
        for subject in found_subjects:
            rows[subject.name], times[subject.name] = measure(subject, walks, 12.0, 0)
        if models.student is not None:
            rows["student"] |= measure_lift(models.student, models.tuned, models.prm, graph, problem.task, walks, 0)
        base = rows["base"]["hitting_time_exact"]
        for row in rows.values():
            row["speedup"] = base / row["hitting_time_exact"]
            if "lifted_steps" in row:
                row["lifted_speedup"] = base / row["lifted_steps"]
        result = {
            "models": rows,
            "transitions": {
                "search": 1_234_567 if "search" in stages else None,
                "ppo": 50_000 if "ppo" in stages else None,
            },
            "seconds": {stage: 1.5 for stage in stages},
            "evaluation": {"seed": 0, "walks": walks},
            "versions": {"mcot_torch": "0"},
        }
        named = {s.name: s for s in found_subjects}
        return Material("run", config, problem, models, result, named, _curves(found_subjects, times, rows))

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
