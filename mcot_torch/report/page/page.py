"""The HTML shell: one file with its style, its script and plotly.js inside, so that it opens from disk anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from mcot_torch.evaluation.models import MODELS
from mcot_torch.report.page.charts import Chart
from mcot_torch.report.text import escape

__all__ = ["Section", "page", "plot", "style", "table"]

_HERE = files("mcot_torch.report.page")


@dataclass
class Section:
    """A question, one sentence that answers it, and the picture behind the answer.

    Attributes:
        key: its anchor.
        question: the heading, HTML.
        answer: HTML.
        body: HTML; `plot(section, chart)` puts a chart into it.
        charts: what report.js draws.
    """

    key: str
    question: str
    answer: str
    body: str = ""
    charts: list[Chart] = field(default_factory=list)


def plot(section: Section, chart: Chart, caption: str = "") -> str:
    """The place of a chart in the body of a section."""
    section.charts.append(chart)
    key = f"{section.key}-{len(section.charts)}"
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure><div class="plot" id="{key}" style="height:{chart.height}px" role="img" '
        f'aria-label="{escape(chart.label)}"></div>{below}</figure>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", text_columns: int = 1) -> str:
    """A table of HTML cells; the first `text_columns` are set to the left, the rest to the right."""
    kind = ['class="text"' if i < text_columns else "" for i in range(len(head))]
    heads = "".join(f"<th {k}>{cell}</th>" for k, cell in zip(kind, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td {k}>{cell}</td>" for k, cell in zip(kind, row, strict=True)) + "</tr>" for row in rows
    )
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure class="sheet"><div class="wide" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{below}</figure>"
    )


def _json(value: Any) -> str:
    """JSON that may stand inside a <script>: no character of it can end or open a tag."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def style() -> str:
    """The style sheet, with a CSS variable for the colour of each model of the table, on light and on dark paper."""
    colours = "".join(
        f"  --{name}: light-dark({entry.colour}, {entry.dark_colour or entry.colour});\n"
        for name, entry in MODELS.items()
    )
    return _HERE.joinpath("report.css").read_text(encoding="utf-8").replace("  /* models */\n", colours)


def page(title: str, header: str, sections: Sequence[Section], footer: str, data: dict[str, Any] | None = None) -> str:
    """A whole page.

    Args:
        title: of the window, plain text.
        header: HTML above the sections.
        sections: numbered in this order.
        footer: HTML.
        data: what the script needs beside the charts.
    """
    from plotly.offline import get_plotlyjs

    charts = {
        f"{s.key}-{i}": {"data": c.data, "layout": c.layout} for s in sections for i, c in enumerate(s.charts, start=1)
    }
    contents = "".join(f'<li><a href="#{s.key}">{s.question}</a></li>' for s in sections)
    body = "".join(
        f'<section id="{s.key}"><h2><span class="count">{i}</span>{s.question}</h2>'
        f'<p class="answer">{s.answer}</p>{s.body}</section>'
        for i, s in enumerate(sections, start=1)
    )
    script = _HERE.joinpath("report.js").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{style()}</style>
</head>
<body>
<button id="theme" type="button" aria-label="Switch between light and dark"></button>
<header>{header}<nav aria-label="Contents"><ol>{contents}</ol></nav></header>
<noscript><p class="answer">The curves below are drawn by a script that this page carries; the tables do without.</p></noscript>
<main>{body}</main>
<footer>{footer}</footer>
<div id="tip" role="status" hidden></div>
<script type="application/json" id="data">{_json({"charts": charts, **(data or {})})}</script>
<script>{get_plotlyjs()}</script>
<script>{script}</script>
</body>
</html>
"""
