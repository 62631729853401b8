"""The rows of evaluation.json, one for each model, and the numbers that every reader of a row needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ModelRow", "add_speedups", "expected_time", "known_time"]

ModelRow = dict[str, Any]
"""What was measured of one model, as evaluation.json holds it; `subjects.measure` lists the entries."""


def known_time(row: Mapping[str, Any]) -> float | None:
    """Expected hitting time of a model if its row has one: exact where it is solved, else the sampled mean, else None.

    For rows that may be empty or incomplete, such as those of an unfinished run; `expected_time` is for complete rows.

    >>> known_time({"hitting_time_exact": None, "hitting_time_sampled": {"mean": 9.0}})
    9.0
    """
    exact: float | None = row.get("hitting_time_exact")
    sampled = row.get("hitting_time_sampled") or {}
    return sampled.get("mean") if exact is None else exact


def expected_time(row: Mapping[str, Any]) -> float:
    """Expected hitting time of a model whose row is complete: exact where it is solved, else the sampled mean.

    A missing entry is a `KeyError`; `known_time` gives None instead.

    >>> expected_time({"hitting_time_exact": 8.5, "hitting_time_sampled": {"mean": 9.0}})
    8.5
    """
    exact: float | None = row["hitting_time_exact"]
    mean: float = row["hitting_time_sampled"]["mean"]
    return mean if exact is None else exact


def add_speedups(rows: Mapping[str, ModelRow]) -> None:
    """Add to each row its speed-up over the exact chain, the row "base"; lifted paths have a speed-up of their own."""
    base = rows["base"]["hitting_time_exact"]
    for row in rows.values():
        row["speedup"] = base / expected_time(row) if expected_time(row) else None
        if "lifted_steps" in row:
            row["lifted_speedup"] = base / row["lifted_steps"] if row["lifted_steps"] else None
