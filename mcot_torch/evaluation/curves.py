"""Survival curves P(τ > t) of the models: for figures at full length, for evaluation.json at some 60 times each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mcot_torch.chains import survival
from mcot_torch.evaluation.models import Measured

__all__ = ["SurvivalCurve", "curve_entries", "survival_curves"]

SurvivalCurve = dict[str, Any]
"""The law of one model's hitting time: `times` (n,) int64 ascending, `exact` (n,) P(τ > t) or None where it is not solved,
`sampled` (walks,) int64 hitting times, `horizon` at which walks were given up, `unit` "steps" or "hops"."""


def survival_curves(measured: Measured) -> dict[str, SurvivalCurve]:
    """Name of a model -> its survival curve, exact where the law of its hitting time is solved."""
    curves: dict[str, SurvivalCurve] = {}
    for name, subject in measured.subjects.items():
        longest = max(2, measured.times[name].max())
        grid = np.unique(np.concatenate([np.arange(1, 100), np.geomspace(1, longest, 120).astype(np.int64)]))
        grid = grid[grid <= longest]
        curves[name] = {
            "times": grid,
            "exact": survival(subject.kernel, subject.start, subject.target, grid) if subject.law_is_solved else None,
            "sampled": measured.times[name],
            "unit": subject.unit,
            "horizon": measured.rows[name]["hitting_time_sampled"]["horizon"],
        }
    return curves


def curve_entries(curves: Mapping[str, SurvivalCurve]) -> dict[str, dict[str, Any]]:
    """The curves at some 60 times each, as evaluation.json holds them and as runs are compared by."""
    out = {}
    for name, curve in curves.items():
        grid = np.unique(np.geomspace(1, curve["times"][-1], 60).round().astype(np.int64))
        exact = None if curve["exact"] is None else np.interp(grid, curve["times"], curve["exact"]).round(6).tolist()
        sampled = 1.0 - np.searchsorted(np.sort(curve["sampled"]), grid, side="right") / len(curve["sampled"])
        sampled = np.where(grid < curve["horizon"], sampled, np.mean(curve["sampled"] >= curve["horizon"]))
        out[name] = {
            "unit": curve["unit"],
            "times": grid.tolist(),
            "exact": exact,
            "sampled": sampled.round(6).tolist(),
        }
    return out
