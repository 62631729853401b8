"""Every theorem as a measurement: one file a claim, run by `python -m mcot_torch.experiments NAME`.

A file defines `EXPERIMENT`, an `Experiment`: settings -> independent points -> a row of numbers each -> fits and a verdict
-> a figure. The names below are the order in which `list`, `all` and docs/results.md show them; a module is imported when
it is asked for.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mcot_torch.errors import InputError

if TYPE_CHECKING:
    from mcot_torch.experiments.base import Experiment

__all__ = ["BEYOND", "NAMES", "PAPER", "load"]

PAPER: tuple[str, ...] = (
    "prop_2_1",
    "thm_3_1",
    "thm_3_2",
    "prop_3_3",
    "prop_3_4",
    "prop_4_1_4_2",
    "thm_4_3",
    "sda",
    "logic_access",
    "logic_pipeline",
    "figures_1_2_3",
)
"""The paper's claims."""

BEYOND: tuple[str, ...] = (
    "beyond_transformer_vs_linear",
    "beyond_imperfect_prm",
    "beyond_no_cap",
    "beyond_outcome_reward",
    "beyond_compute_matched",
    "beyond_past_epsilon_max",
    "beyond_free_entries",
)
"""Questions that the paper leaves open, on the same graphs."""

NAMES = PAPER + BEYOND


def load(name: str) -> Experiment[Any]:
    """The experiment of that name; `InputError` with the nearest one where there is none."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, [*NAMES, "all", "list", "docs"], n=1)
        hint = f"did you mean {near[0]}?" if near else "`list` names them"
        raise InputError(f"there is no experiment {name!r}; {hint}")
    room = "claims" if name in PAPER else "questions"
    experiment: Experiment[Any] = import_module(f"mcot_torch.experiments.{room}.{name}").EXPERIMENT
    return experiment
