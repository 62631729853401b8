"""A comparison of runs as one HTML page, in the manner of a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mcot_torch.evaluation.aggregate import METRICS, SeedGroup, aggregate, models_of
from mcot_torch.evaluation.models import MODELS, made_by, ordered
from mcot_torch.report.compare.files import cell, note
from mcot_torch.report.figures.compare import GROUP_COLOURS, Panel
from mcot_torch.report.page.charts import Chart, line, log_axis, numbers, plain_axis
from mcot_torch.report.page.page import Section, page, plot, table
from mcot_torch.report.text import escape, plural

__all__ = ["comparison_page"]


def _tone(group: int) -> str:
    """CSS variable of a group's colour, which is the colour in the PNG: that of a model, else that of missed hard steps."""
    colour = GROUP_COLOURS[group % len(GROUP_COLOURS)]
    return next((name for name, entry in MODELS.items() if entry.colour == colour.lower()), "missed")


def comparison_page(groups: Sequence[SeedGroup], panels: Sequence[Panel]) -> str:
    """The page; `panels` are the curves."""
    runs = sum(len(group.runs) for group in groups)
    header = (
        f'<p class="eyebrow">{plural(runs, "run")} in {plural(len(groups), "group")}</p><h1>Runs compared</h1>'
        f'<p class="lede">{note(groups)}</p>'
    )
    folders = "".join(
        f"<li>{escape(group.name)}: {', '.join(escape(run.path) for run in group.runs)}</li>" for group in groups
    )
    return page("Runs compared", header, [_times(groups), _along_the_way(groups, panels)], f"<ul>{folders}</ul>")


def _times(groups: Sequence[SeedGroup]) -> Section:
    section = Section("times", "Which models are fast, and how much does the seed matter?", _verdict(groups))
    data: list[dict[str, Any]] = []
    places, labels, every = [], [], []
    place = 0.0
    models = [entry.name for entry in ordered({name for group in groups for name in models_of(group)})]
    for model in models:
        places.append(place + (len(groups) - 1) / 2)
        labels.append(model)
        for i, group in enumerate(groups):
            value = aggregate(group, model, METRICS[0])
            if value is not None:
                ends = (value.mean, value.mean) if value.low is None or value.high is None else (value.low, value.high)
                every += [value.mean, *ends]
                own = [
                    METRICS[0].of(run.result["models"][model]) for run in group.runs if model in run.result["models"]
                ]
                tone = _tone(i)
                data.append(
                    {
                        "type": "scatter", "mode": "markers", "x": numbers([v for v in own if v is not None]),
                        "y": [place + i] * len(own), "showlegend": False, "hoverinfo": "skip",
                        "marker": {"size": 5, "color": f"@{tone}/0.35"},
                    }
                )  # fmt: skip
                data.append(
                    {
                        "type": "scatter", "mode": "markers", "x": numbers([value.mean]), "y": [place + i],
                        "name": escape(group.name), "legendgroup": str(i), "showlegend": model == models[0],
                        "marker": {"size": 10, "color": f"@{tone}"},
                        "hovertemplate": f"{escape(group.name)}<br>{model}: {cell(value)}<extra></extra>",
                        "error_x": {"type": "data", "symmetric": False, "array": numbers([ends[1] - value.mean]),
                                    "arrayminus": numbers([value.mean - ends[0]]), "color": f"@{tone}", "width": 0},
                    }
                )  # fmt: skip
        place += len(groups) + 0.8
    layout = {
        "xaxis": log_axis("expected time to the target, steps (student: hops)", every, 0.15),
        "yaxis": {"tickvals": places, "ticktext": labels, "range": [place - 0.8, -0.9], "showgrid": False, "ticks": ""},
    }
    height = 110 + round(26 * place)
    section.body = plot(section, Chart(data, layout, height, "Expected time of each model in each group of runs"))
    rows = []
    for i, group in enumerate(groups):
        for model in models_of(group):
            name = f'<span class="swatch" style="--c:var(--{_tone(i)})"></span>{escape(group.name)}'
            cells = [cell(aggregate(group, model, metric)).replace(", ", ",&nbsp;") for metric in METRICS]
            rows.append([name, model, str(len(group.runs)), *cells])
    section.body += table(["group", "model", "runs", *(metric.name for metric in METRICS)], rows, text_columns=2)
    return section


def _verdict(groups: Sequence[SeedGroup]) -> str:
    """How fast the teachers are, and the students."""
    speed = next(metric for metric in METRICS if metric.name == "speed-up")
    teachers, hops = [], []
    for group in groups:
        teacher = group.runs[0].teacher
        found = aggregate(group, teacher if teacher in models_of(group) else models_of(group)[-1], speed)
        where = f" with {escape(group.name)}" if len(groups) > 1 else ""
        if found is not None:
            teachers.append(f"{cell(found)} times{where}")
        if (student := aggregate(group, made_by("distill").name, METRICS[0])) is not None:
            hops.append(cell(student))
    answer = f"The teacher beats the base chain {'; '.join(teachers[:4])}" if teachers else "No model arrives"
    answer += f"; and so on for {len(teachers) - 4} more groups" if len(teachers) > 4 else ""
    return answer + (f". The student needs {' and '.join(hops[:4])} hops." if hops else ".")


def _along_the_way(groups: Sequence[SeedGroup], panels: Sequence[Panel]) -> Section:
    section = Section(
        "curves",
        "How did teacher and student get there?",
        "Thin lines are single runs, thick ones the interquartile mean of a group; the student is dashed.",
    )
    body = []
    for panel in panels:
        data, seen = [], set()
        for curve in panel.curves:
            style = {"dash": "solid" if curve.who == "teacher" else "dash"}
            tone = _tone(curve.group)
            stroke = f"@{tone}" if curve.middle else f"@{tone}/0.35"
            first = curve.middle and curve.group not in seen
            seen |= {curve.group} if curve.middle else set()
            data.append(
                line(curve.x, curve.y, escape(groups[curve.group].name), stroke, 2.6 if curve.middle else 1.0,
                     style=style, showlegend=first and len(groups) > 1, hoverinfo="x+y" if curve.middle else "skip")
            )  # fmt: skip
        xs = [v for c in panel.curves for v in c.x if v > 0]
        ys = [v for c in panel.curves for v in c.y if v > 0]
        layout = {
            "xaxis": log_axis(panel.xlabel, xs, 0.03) if panel.log_x else plain_axis(panel.xlabel),
            "yaxis": log_axis(panel.ylabel, ys) if panel.log_y else plain_axis(panel.ylabel),
        }
        body.append(f"<div><h3>{panel.title}</h3>{plot(section, Chart(data, layout, 320, panel.title))}</div>")
    section.body = f'<div class="pair">{"".join(body)}</div>'
    return section
