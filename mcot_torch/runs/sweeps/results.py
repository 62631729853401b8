"""The runs of a sweep side by side: what varied, what came out; on the terminal, as CSV, as Markdown, as a figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mcot_torch.errors import InputError
from mcot_torch.evaluation.aggregate import SeedGroup
from mcot_torch.evaluation.models import MODELS, made_by
from mcot_torch.evaluation.rows import known_time
from mcot_torch.report.compare.files import write as write_comparison
from mcot_torch.report.figures.parallel import parallel_figure
from mcot_torch.report.figures.style import save
from mcot_torch.report.text import plural
from mcot_torch.runs.comparison import group_runs, read_run
from mcot_torch.runs.config import resolve_run_dir
from mcot_torch.runs.sweeps.engines import is_done
from mcot_torch.runs.sweeps.spec import Sweep, SweepPoint
from mcot_torch.system.files import read_json, write_text

__all__ = ["SweepRow", "collect", "compare", "last_line", "table", "write"]

SweepRow = dict[str, Any]

_SHOWN = {  # column of the terminal and the figure -> its heading
    "base_time": "base",
    "tuned_time": "tuned",
    "tuned_speedup": "tuned: speed-up",
    "tuned_tv_max": "tuned: TV max",
    "student_speedup": "student: speed-up",
    "hard_step_recall": "recall",
    "seconds": "seconds",
}


def collect(sweep: Sweep, failed: Collection[str] = ()) -> list[SweepRow]:
    """A row for each run: its settings, its state, and what evaluation.json says of its models.

    Columns: run, state ("done", "failed" for those named, else "unfinished"), a column a setting, `<model>_time` (expected steps to X_out, exact where
    the model is Markov, else sampled), `<model>_speedup`, `<model>_tv_max`, hard_step_recall (of search), seconds (of the stages).
    """
    return [_row(run, sweep.keys, "failed" if run.name in failed else "unfinished") for run in sweep.runs]


def _row(run: SweepPoint, keys: Sequence[str], otherwise: str) -> SweepRow:
    row: SweepRow = {"run": run.name, "state": "done" if is_done(run) else otherwise}
    row |= {key: run.settings.get(key) for key in keys}
    if row["state"] != "done":
        return row
    result = read_json(resolve_run_dir(run.config) / "evaluation.json")
    models: Mapping[str, Any] = result["models"]
    for name in MODELS:
        model = models.get(name, {})
        row |= {
            f"{name}_time": known_time(model),
            f"{name}_speedup": model.get("speedup"),
            f"{name}_tv_max": model.get("row_tv_max"),
        }
    row["hard_step_recall"] = models.get(made_by("search").name, {}).get("hard_step_recall")
    row["seconds"] = round(sum(result["seconds"].values()), 2)
    return row


def last_line(sweep: Sweep, run: SweepPoint) -> str:
    """The last line that a run printed: of a failed one, its error."""
    log = sweep.folder / "logs" / f"{run.name}.txt"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def table(sweep: Sweep, rows: Sequence[SweepRow]) -> Table:
    """The terminal's table."""
    columns = _columns(sweep, rows)
    result = Table(title=f"{sweep.folder}: {len(rows)} runs", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for key, heading in columns.items():
        result.add_column(
            heading,
            justify="left" if key in sweep.keys else "right",
            overflow="fold",
            min_width=10 if key == "state" else None,
        )
    for row in rows:
        result.add_row(*(_text(row.get(key)) for key in columns), style=None if row["state"] == "done" else "dim")
    return result


def _columns(sweep: Sweep, rows: Sequence[SweepRow]) -> dict[str, str]:
    """Column -> heading: what varies, then the results that any run has."""
    leaves = [key.rpartition(".")[2] for key in sweep.keys]
    settings = {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(sweep.keys, leaves, strict=True)}
    shown = {key: heading for key, heading in _SHOWN.items() if any(row.get(key) is not None for row in rows)}
    state = {} if all(row["state"] == "done" for row in rows) else {"state": "state"}
    return {**settings, **state, **shown}


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def write(sweep: Sweep, rows: Sequence[SweepRow]) -> list[Path]:
    """sweep.csv (every column, full precision), sweep.md and parallel_coordinates.png; returns what was written."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    csv_file, markdown = sweep.folder / "sweep.csv", sweep.folder / "sweep.md"
    write_text(csv_file, text.getvalue())
    columns = _columns(sweep, rows)
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_text(row.get(key)).replace("|", "\\|") for key in columns) + " |" for row in rows]
    write_text(markdown, "\n".join(lines) + "\n")
    written = [csv_file, markdown]
    done = [row for row in rows if row["state"] == "done"]
    columns.pop("seconds", None)  # says more of the machine than of the run
    axes = {key: heading for key, heading in columns.items() if len({str(row.get(key)) for row in done}) > 1}
    if len(axes) > 1:
        results = [key for key in axes if key in _SHOWN]
        colour = next((key for key in ("student_speedup", "tuned_speedup", *results) if key in axes), None)
        levels = [heading for key, heading in axes.items() if key in sweep.keys]
        lines_of = [{axes[key]: row.get(key) for key in axes} for row in done]
        figure = parallel_figure(lines_of, axes[colour] if colour else None, levels)
        written.append(save(figure, sweep.folder / "parallel_coordinates.png"))
    return written


def compare(sweep: Sweep) -> str:
    """compare/ in the sweep's folder: the finished runs beside one another, as evaluate.py compares several.

    Returns:
        One line that says where it lies; "" with fewer than two finished runs, which are no comparison.
    """
    done = [resolve_run_dir(run.config) for run in sweep.runs if is_done(run)]
    if len(done) < 2:
        return ""
    try:
        groups = group_runs([read_run(folder) for folder in done])
    except InputError as error:  # an evaluation of an older version, or two runs that differ in nothing that counts
        return f"not compared: {error}"
    if len(groups) == 1:  # its own name would be that of one of its runs
        groups = [SeedGroup(sweep.folder.name, groups[0].runs)]
    out = sweep.folder / "compare"
    write_comparison(groups, out)
    what = plural(len(groups), "group") + (" that differ in more than the seed" if len(groups) > 1 else " of seeds")
    return f"compared {out / 'compare.html'}: {len(done)} runs in {what}"
