"""An evaluation as tables: on the terminal, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mcot_torch.evaluation.rows import ModelRow, expected_time
from mcot_torch.report.text import interval, number

__all__ = ["as_markdown", "flat", "result_tables", "rich_table", "rows_as_csv"]


def flat(row: ModelRow, prefix: str = "") -> dict[str, Any]:
    """A row without nesting: {"a": {"b": 1}} as {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in row.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def rows_as_csv(rows: dict[str, ModelRow]) -> str:
    """One line a model, a column for whatever any of them has."""
    lines = [{"model": name, **flat(row)} for name, row in rows.items()]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def as_markdown(rows: dict[str, ModelRow]) -> str:
    """Model, time and speed-up as a Markdown table."""
    lines = ["| model | time to the target | speed-up |", "|---|---:|---:|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {number(expected_time(row))} {row['unit']} | {number(row['speedup'])} |")
        if row.get("lifted_steps") is not None:
            lines.append(f"| {name}, lifted | {number(row['lifted_steps'])} steps | {number(row['lifted_speedup'])} |")
    return "\n".join(lines)


def rich_table(title: str, caption: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table for the terminal."""
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    for name in columns:
        table.add_column(name, justify="left" if name in ("model", "unit", "against") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def result_tables(result: dict[str, Any]) -> tuple[Table, Table]:
    """The two tables that a run closes with: how long each model takes, and how close it is to what it should be."""
    task, models = result["task"], result["models"]
    times, fits = [], []
    averaged = False
    for name, row in models.items():
        sampled, hard, exact = row["hitting_time_sampled"], row["hard_step_probability"], row["hitting_time_exact"]
        averaged |= row["hitting_time_context_averaged"] is not None
        times.append(
            (
                name,
                row["unit"],
                number(row["hitting_time_context_averaged"]) + "*"
                if row["hitting_time_context_averaged"]
                else number(exact),
                number(row["hitting_time_exact_raw"]),
                interval(sampled["mean"], sampled["high"]),
                f"{number(row['speedup'])}x",
                "–" if row["parameters"] is None else f"{row['parameters']:,}",
            )
        )
        if "lifted_steps" in row:
            length = interval(row["lifted_steps"], row["lifted_steps_high"])
            valid = f"{row['lifted_valid']:.0%} valid"
            times.append(("  lifted", "steps", "–", "–", length, f"{number(row['lifted_speedup'])}x", valid))
        fits.append(
            (
                name,
                row["row_tv_reference"],
                "–" if row["row_tv_mean"] is None else f"{row['row_tv_mean']:.0e}",
                "–" if row["row_tv_max"] is None else f"{row['row_tv_max']:.0e}",
                f"{hard['min']:.3g}",
                f"{hard['max']:.3g}",
                "–" if row["hard_step_precision"] is None else f"{row['hard_step_precision']:.2f}",
                "–" if row["hard_step_recall"] is None else f"{row['hard_step_recall']:.2f}",
            )
        )
    note = (
        "exact: solved from the model's kernel after the cut (raw: before it); sampled: mean of walks ± 95 % interval"
    )
    if averaged:
        note += "; *: of predictions averaged over contexts, since the model reads history"
    return (
        rich_table(
            f"{escape(task['description'])}, seed {result['seed']}; shortest path {task['shortest_path']} steps",
            note,
            ("model", "unit", "exact", "raw", "sampled", "speed-up", "params"),
            times,
        ),
        rich_table(
            "How close",
            "TV: total variation of a row; hard: probability of the hard steps (hops of the student); "
            "P, R: precision and recall of those found",
            ("model", "against", "TV mean", "TV max", "hard min", "max", "P", "R"),
            fits,
        ),
    )
