"""The report of an estimation: the same parts on the terminal, in Markdown and in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mcot_torch.estimation.clusters import METASTABLE
from mcot_torch.estimation.estimate import Estimate
from mcot_torch.estimation.traces import TraceAnalysis

__all__ = ["Table", "as_json", "estimate_parts", "markdown", "show", "trace_parts", "write_estimate"]

_SHOWN = 12  # rows of a table on the terminal
_TIMES = 8


@dataclass(frozen=True)
class Table:
    """A titled table with a line of text to each row below it; the terminal shows the first of both, Markdown all."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()


Part = str | Table


def estimate_parts(found: Estimate) -> list[Part]:
    """All there is to say about an estimated chain: see `_chain_parts`, then the hitting time and the hard steps."""
    parts = _chain_parts(found)
    if found.hitting_time is not None:
        time = found.hitting_time
        parts.append(
            f"Expected time {time.task}: {time.steps:,.0f} steps (95 % credible interval {time.low:,.0f} to {time.high:,.0f})."
        )
    rows = [
        (
            step.source,
            step.target,
            f"{step.count:,} of {step.visits:,}",
            f"{step.probability:.3g}",
            f"{step.low:.2g} - {step.high:.2g}",
            f"{step.confidence:.0%}",
        )
        for step in found.hard_steps
    ]
    if rows:
        parts.append(Table("Hard steps", ("from", "to", "seen", "probability", "95 % interval", "confidence"), rows))
    return parts


def _chain_parts(found: Estimate) -> list[Part]:
    """Verdict, what was left out, spectrum, warnings and the Chapman-Kolmogorov check."""
    parts: list[Part] = [found.verdict[0].upper() + found.verdict[1:] + "."]
    used = found.steps - found.steps_lost
    left = f", {len(found.left_out)} left out" if found.left_out else ""
    parts.append(f"{used:,} of {found.steps:,} steps between {len(found.names):,} states were used{left}.")
    if len(found.rates) > 1:
        times = ", ".join(f"{1 / max(rate, 1e-12):.3g}" for rate in found.rates[1 : _TIMES + 1])
        more = ", ..." if len(found.rates) > _TIMES + 1 else ""
        parts.append(
            f"Relaxation times in steps, longest first: {times}{more}; widest gap a factor {found.separation:.3g} "
            f"({METASTABLE:g} or more shows clusters)."
        )
    parts += [f"Warning: {warning}." for warning in found.warnings]
    if found.chapman_kolmogorov:
        worst = max(abs(row.observed - row.predicted) / row.error for row in found.chapman_kolmogorov)
        lags = sorted({row.lag for row in found.chapman_kolmogorov})
        verdict = "holds" if all(row.consistent for row in found.chapman_kolmogorov) else "FAILS"
        parts.append(
            f"Chapman-Kolmogorov check {verdict} at lags {lags[0]} to {lags[-1]}: at most {worst:.2g} standard errors (3 allowed)."
        )
    return parts


def trace_parts(traces: TraceAnalysis) -> list[Part]:
    """The same for traces, with clusters, passages and examples in their own words."""
    right, wrong = (sum(trace.correct is value for trace in traces.traces) for value in (True, False))
    known = f", {right:,} correct and {wrong:,} incorrect" if right + wrong else ""
    steps = sum(len(trace.steps) for trace in traces.traces)
    parts: list[Part] = [f"{len(traces.traces):,} traces{known}, {steps:,} steps of {len(traces.kind_list)} kinds."]
    parts += _chain_parts(traces.estimate)
    if traces.estimate.graph is None:
        kinds = [(kind.name, f"{kind.share:.1%}", f"{kind.last:.1%}") for kind in traces.kind_list]
        return [*parts, Table("Kinds of steps", ("kind: commonest text", "of all steps", "of last steps"), kinds)]
    if traces.stuck:
        parts.append(traces.stuck)
    rows = [
        (
            f"C_{basin.cluster}",
            f"{basin.kinds}",
            f"{basin.share:.1%}",
            f"{basin.stay:.0f}" if math.isfinite(basin.stay) else "never left",
            _percent(basin.ends_correct),
            _percent(basin.ends_incorrect),
        )
        for basin in traces.basins
    ]
    columns = ("", "kinds", "of all steps", "steps to leave", "correct end here", "incorrect end here")
    notes = tuple(f"C_{basin.cluster}: " + " / ".join(basin.examples) for basin in traces.basins)
    parts.append(Table("Clusters", columns, rows, notes))
    passages = [
        (
            f"C_{p.source} -> C_{p.target}",
            f"{p.count}",
            f"{p.probability:.3g} ({p.low:.2g} - {p.high:.2g})",
            _percent(p.correct),
            _percent(p.incorrect),
            "-" if p.p_value is None else f"{p.p_value:.2g}",
        )
        for p in traces.passages
    ]
    columns = ("passage", "seen", "probability a step", "correct take it", "incorrect", "p")
    notes = tuple(f"C_{p.source} -> C_{p.target}: " + " -> ".join(p.examples[0]) for p in traces.passages)
    return [*parts, Table("Passages between clusters: the hard steps", columns, passages, notes)]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


# ---- showing --------------------------------------------------------------------------------------------------------


def show(parts: Sequence[Part]) -> None:
    """Print the parts on the terminal."""
    from rich.table import Table as RichTable

    from mcot_torch.system.progress import console

    for part in parts:
        if isinstance(part, str):
            console.print(part, highlight=False, markup=False)
            continue
        table = RichTable(*part.columns, title=part.title, title_justify="left")
        for row in part.rows[:_SHOWN]:
            table.add_row(*row)
        console.print(table, highlight=False, markup=False)
        for note in part.notes[:_SHOWN]:
            console.print(note, highlight=False, markup=False)
        if len(part.rows) > _SHOWN:
            console.print(f"and {len(part.rows) - _SHOWN} more in report.md", highlight=False)


def markdown(title: str, parts: Sequence[Part]) -> str:
    """The parts as Markdown."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    lines = [f"# {title}", ""]
    for part in parts:
        if isinstance(part, str):
            lines += [part, ""]
        else:
            lines += [f"## {part.title}", "", row(part.columns), "|" + "---|" * len(part.columns)]
            lines += [*map(row, part.rows), "", *(f"- {note}" for note in part.notes), ""]
    return "\n".join(lines)


def as_json(estimated: Estimate | TraceAnalysis) -> dict[str, Any]:
    """Everything but the arrays: numbers, names, examples."""
    found = estimated.estimate if isinstance(estimated, TraceAnalysis) else estimated
    result: dict[str, Any] = {
        "metastable": found.graph is not None and found.separation >= METASTABLE,
        "verdict": found.verdict,
        "warnings": found.warnings,
        "steps": found.steps,
        "steps_lost": found.steps_lost,
        "left_out": list(found.left_out),
        "relaxation_rates": found.rates.tolist(),
        "separation": found.separation,
        "hitting_time": None if found.hitting_time is None else asdict(found.hitting_time),
        "hard_steps": [asdict(step) for step in found.hard_steps],
        "chapman_kolmogorov": [asdict(row) for row in found.chapman_kolmogorov],
    }
    if found.graph is not None:
        graph = found.graph
        result["clusters"] = [[graph.name(int(x)) for x in graph.members(k)] for k in range(graph.n_clusters)]
    if isinstance(estimated, TraceAnalysis):
        result["kinds"] = [asdict(kind) for kind in estimated.kind_list]
        result["basins"] = [
            {**asdict(basin), "stay": basin.stay if math.isfinite(basin.stay) else None} for basin in estimated.basins
        ]
        result["passages"] = [asdict(passage) for passage in estimated.passages]
        result["stuck"] = estimated.stuck
    return result


def write_estimate(estimated: Estimate | TraceAnalysis, title: str, folder: Path) -> list[Path]:
    """Write report.md, report.json and, of a metastable chain, graph.npz and graph.png; returns the files."""
    from mcot_torch.graphs.task import TaskConfig, build_task
    from mcot_torch.report.figures import graph_figure, save

    found = estimated.estimate if isinstance(estimated, TraceAnalysis) else estimated
    parts = trace_parts(estimated) if isinstance(estimated, TraceAnalysis) else estimate_parts(found)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "report.md": markdown(title, parts),
        "report.json": json.dumps(as_json(estimated), indent=1, ensure_ascii=False),
    }
    for name, text in files.items():
        temporary = folder / (name + ".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(folder / name)
    written = [folder / name for name in files]
    for name in ("graph.npz", "graph.png"):  # of an earlier estimation, which may have found a graph
        (folder / name).unlink(missing_ok=True)
    if found.graph is not None:
        found.graph.save(folder / "graph.npz")
        save(graph_figure(found.graph, task=build_task(TaskConfig(), found.graph)), folder / "graph.png")
        written += [folder / "graph.npz", folder / "graph.png"]
    return written
