"""The curves of several runs, gathered for PNG and HTML: survival of teacher and student, and what the stages logged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mcot_torch.evaluation.aggregate import EvaluatedRun, SeedGroup, interquartile_mean
from mcot_torch.evaluation.models import made_by
from mcot_torch.report.figures.compare import GroupCurve, Panel
from mcot_torch.report.figures.style import Array

__all__ = ["panels"]

_GRID = 80  # times at which the curves of a group are averaged


def panels(groups: Sequence[SeedGroup]) -> list[Panel]:
    """The panels that have at least one curve."""
    drawn = [
        _survival(groups),
        _logged(
            groups, "pretrain", "row_tv_max", "step", Panel("Pretraining", "optimiser steps", "row TV, max", log_y=True)
        ),
        _logged(
            groups,
            "ppo",
            "hard_step_mean",
            "env_steps",
            Panel("PPO: the teacher", "steps sampled", "mean hard step"),
        ),
        _logged(
            groups,
            "distill",
            "loss",
            "step",
            Panel("Distillation: the student", "gradient steps", "loss, nats a pair"),
        ),
    ]
    return [panel for panel in drawn if panel.curves]


def _survival(groups: Sequence[SeedGroup]) -> Panel:
    panel = Panel("Still on the way after t", "t, steps (student: hops)", "share of chains of thought", log_x=True)
    for i, group in enumerate(groups):
        for who in ("teacher", "student"):
            found = [curve for run in group.runs if (curve := _alive(run, who)) is not None]
            if not found:
                continue
            grid = np.geomspace(1.0, max(x[-1] for x, _ in found), _GRID)
            together = [np.interp(grid, x, y) for x, y in found]
            _add(panel, i, who, found, grid, np.stack(together))
    return panel


def _alive(run: EvaluatedRun, who: str) -> tuple[Array, Array] | None:
    """Survival of one model of a run: exact where it is, sampled otherwise."""
    curve = run.result["survival"].get(run.teacher if who == "teacher" else made_by("distill").name)
    if curve is None:
        return None
    alive = curve["exact"] if curve["exact"] is not None else curve["sampled"]
    return np.asarray(curve["times"], dtype=np.float64), np.asarray(alive, dtype=np.float64)


def _logged(groups: Sequence[SeedGroup], stage: str, metric: str, x: str, panel: Panel) -> Panel:
    for i, group in enumerate(groups):
        found = list(_points(group, stage, metric, x))
        if found:
            common = sorted(set.intersection(*(set(a.tolist()) for a, _ in found)))
            together = [b[np.isin(a, common)] for a, b in found]
            _add(panel, i, "student" if stage == "distill" else "teacher", found, np.array(common), np.stack(together))
    return panel


def _points(group: SeedGroup, stage: str, metric: str, x: str) -> Iterator[tuple[Array, Array]]:
    for run in group.runs:
        lines = {line[x]: line[metric] for line in run.histories.get(stage, []) if x in line and metric in line}
        if lines:
            yield np.array(list(lines), dtype=np.float64), np.array(list(lines.values()), dtype=np.float64)


def _add(panel: Panel, group: int, who: str, found: list[tuple[Array, Array]], grid: Array, together: Array) -> None:
    if len(found) > 1:
        panel.curves += [GroupCurve(group, who, x, y) for x, y in found]
    if len(grid):
        panel.curves.append(GroupCurve(group, who, grid, interquartile_mean(together.T), middle=True))
