"""What the models compute: valid paths and right values, on the terminal and in the report (Section 5)."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from mcot_torch.evaluation.models import ordered, title
from mcot_torch.report.page.material import Material
from mcot_torch.report.page.page import Section, table
from mcot_torch.report.tables import rich_table
from mcot_torch.report.text import escape, plural

__all__ = ["value_section", "value_table"]

_HEAD = ("model", "valid path", "right value")


def value_table(result: dict[str, Any]) -> Table:
    """How often each model of an evaluation with a logical task returns a valid path, and the right value with it."""
    lines = [(name, *shares) for name, *shares in _lines(result)]
    return rich_table(f"Values in {result['logic']['group']}", _learned(result), _HEAD, lines)


def value_section(m: Material) -> Section:
    """Does it return the right value?"""
    lines = [(title(name.strip()), *shares) for name, *shares in _lines(m.result)]
    best = next((e.name for e in reversed(ordered(m.rows)) if e.knows in ("hard steps", "hops")), None)
    answer = "Before search no hard step is known, and so none that computes. "
    if best is not None and "right_value" in m.rows[best]:
        answer = (
            f"The {title(best)} returns a valid path and its value in {m.rows[best]['right_value']['share']:.1%} of cases, the pretrained "
            f"model, which has not searched and takes every step for an easy one, in {m.rows['pretrained']['right_value']['share']:.1%}."
        )
    body = table(_HEAD, [[escape(cell) for cell in line] for line in lines], escape(_learned(m.result)))
    return Section("values", f"Does it return the right value in {escape(m.result['logic']['group'])}?", answer, body)


def _lines(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    lines = []
    for name, row in result["models"].items():
        for shown, prefix in ((name, ""), ("  lifted", "lifted_")):
            if f"{prefix}right_value" in row:
                lines.append((shown, _share(row[f"{prefix}valid_path"]), _share(row[f"{prefix}right_value"])))
    return lines


def _share(share: dict[str, float]) -> str:
    return f"{share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def _learned(result: dict[str, Any]) -> str:
    """From how much the actions were learned, and which were not."""
    logic, texts = result["logic"], ["share of walks with Wilson's 95 % interval"]
    for key, what in (("steps", "hard step"), ("hops", "hop")):
        if key not in logic:
            continue
        told = logic[key]
        known = told["edges"] - len(told["unknown"])
        text = f"actions of {known} of {plural(told['edges'], what)} learned from {told['labelled_paths']:,} labelled paths ({told['used']:,} used)"
        if told["unknown"]:
            text += f", unknown: {_some(told['unknown'])}"
        if told.get("wrong"):
            text += f", wrong: {_some(told['wrong'])}"
        if told["agreement"] is not None and told["agreement"] < 1:
            text += f", which agree with {told['agreement']:.1%} of them"
        texts.append(text)
    if logic["no_hop_values"]:
        texts.append(f"the student's hops cannot be judged: {logic['no_hop_values']}")
    return "; ".join(texts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
