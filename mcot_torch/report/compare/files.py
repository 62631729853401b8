"""A comparison of runs as tables, on the terminal and as Markdown, LaTeX and CSV, and as curves in PNG and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape as escape_markup
from rich.table import Table

from mcot_torch.evaluation.aggregate import METRICS, Aggregate, SeedGroup, aggregate, models_of
from mcot_torch.report.text import number
from mcot_torch.system.files import write_text

__all__ = ["as_csv", "as_dict", "as_latex", "as_markdown", "cell", "terminal_table", "write"]

_NOTE = (
    "Interquartile mean over the runs of a group, which differ in the seed alone, with its 95 % bootstrap interval. "
    "Times are in steps, of the student in hops."
)
_FEW = "Fewer than ten runs: such an interval is too narrow, and with two runs it is their range."


def note(groups: Sequence[SeedGroup]) -> str:
    """What the numbers are, below every table."""
    return f"{_NOTE} {_FEW}" if min(len(group.runs) for group in groups) < 10 else _NOTE


def cell(value: Aggregate | None) -> str:
    """mean [low, high]."""
    if value is None:
        return "–"
    if value.low is None or number(value.low) == number(value.high) == number(value.mean):
        return number(value.mean)
    return f"{number(value.mean)} [{number(value.low)}, {number(value.high)}]"


def _lines(groups: Sequence[SeedGroup]) -> list[list[str]]:
    """Cells: group, model, runs, metrics; the group's name stands once."""
    out = []
    for group in groups:
        for i, model in enumerate(models_of(group)):
            cells = [cell(aggregate(group, model, metric)) for metric in METRICS]
            out.append([group.name if i == 0 else "", model, str(len(group.runs)) if i == 0 else "", *cells])
    return out


_HEAD = ["group", "model", "runs", *(metric.name for metric in METRICS)]


def as_markdown(groups: Sequence[SeedGroup]) -> str:
    """A Markdown table with its note."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("\\", "\\\\").replace("|", "\\|") for text in cells) + " |"

    ruler = "|" + "|".join(["---"] * 2 + ["---:"] * (len(_HEAD) - 2)) + "|"
    return "\n".join([row(_HEAD), ruler, *(row(line) for line in _lines(groups)), "", note(groups), ""])


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "[": "{[}", "]": "{]}",
}  # fmt: skip


def as_latex(groups: Sequence[SeedGroup]) -> str:
    """A table environment that needs the package booktabs."""

    def row(cells: Sequence[str]) -> str:
        return " & ".join("".join(_LATEX.get(c, c) for c in text) for text in cells) + r" \\"

    lines: list[str] = []
    for line in _lines(groups):
        if line[0] and lines:
            lines.append(r"\midrule")
        lines.append(row(line))
    caption = "".join(_LATEX.get(c, c) for c in note(groups))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{ll{'r' * (len(_HEAD) - 2)}}}",
            r"\toprule",
            row(_HEAD),
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def as_csv(groups: Sequence[SeedGroup]) -> str:
    """One line a group, model and metric, at full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["group", "model", "metric", "iqm", "low", "high", "runs", "folders"])
    for group in groups:
        folders = " ".join(str(run.path) for run in group.runs)
        for model in models_of(group):
            for metric in METRICS:
                value = aggregate(group, model, metric)
                if value is not None:
                    writer.writerow(
                        [group.name, model, metric.name, value.mean, value.low, value.high, value.n, folders]
                    )
    return buffer.getvalue()


def as_dict(groups: Sequence[SeedGroup]) -> dict[str, Any]:
    """The same at full precision for `evaluate.py --json`: groups, their runs, and metric by metric what each model has."""

    def values(group: SeedGroup, model: str) -> dict[str, Any]:
        found = {metric.name: aggregate(group, model, metric) for metric in METRICS}
        return {
            name: {"iqm": value.mean, "low": value.low, "high": value.high, "runs": value.n}
            for name, value in found.items()
            if value is not None
        }

    return {
        "groups": [
            {
                "group": group.name,
                "runs": [str(run.path) for run in group.runs],
                "models": {model: values(group, model) for model in models_of(group)},
            }
            for group in groups
        ]
    }


def terminal_table(groups: Sequence[SeedGroup]) -> Table:
    """The same for the terminal, without the columns that need a wide page."""
    table = Table(
        title="Runs compared", caption=note(groups), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.title_justify = table.caption_justify = "left"
    shown = METRICS[:3]
    for name in ("model", "runs", *(metric.name for metric in shown)):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for group in groups:
        if len(groups) > 1:
            table.add_row(f"[bold]{escape_markup(group.name)}[/bold]")
        for model in models_of(group):
            cells = [cell(aggregate(group, model, metric)) for metric in shown]
            table.add_row(model, str(len(group.runs)), *(escape_markup(text) for text in cells))
    return table


def write(groups: Sequence[SeedGroup], out: Path, figures: bool = True) -> list[Path]:
    """compare.md, compare.tex and compare.csv, with figures compare.png and compare.html too; returns what was written."""
    texts = {"md": as_markdown(groups), "tex": as_latex(groups), "csv": as_csv(groups)}
    for ending, text in texts.items():
        write_text(out / f"compare.{ending}", text)
    written = [out / f"compare.{ending}" for ending in texts]
    if not figures:
        return written
    from mcot_torch.report.compare.curves import panels
    from mcot_torch.report.compare.page import comparison_page
    from mcot_torch.report.figures import compare_figure, save

    drawn = panels(groups)
    save(compare_figure(drawn, [group.name for group in groups]), out / "compare.png")
    write_text(out / "compare.html", comparison_page(groups, drawn))
    return [*written, out / "compare.png", out / "compare.html"]
