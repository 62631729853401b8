"""Numbers and names as text: for the terminal, for HTML (escaped), for LaTeX."""

from __future__ import annotations

import html
import math
import re
from typing import Any

__all__ = ["amount", "cluster", "escape", "interval", "not_yet", "number", "plural", "seconds", "span", "typeset"]


def number(value: float | None) -> str:
    """55,569 or 13.8 or 0.002; "–" for what is missing or infinite."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interval(mean: float | None, high: float | None) -> str:
    """mean ± half the width of its interval."""
    return "–" if mean is None or high is None else f"{number(mean)} ± {number(high - mean)}"


def span(low: float | None, high: float | None) -> str:
    """From low to high, in one piece: no line ends within."""
    return f"{number(low)}\u00a0–\u2060\u00a0{number(high)}"


def amount(value: float | None) -> str:
    """A large count in words: 2.4 million."""
    if value is None:
        return "–"
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """How long something took: 12.4 s, 8 min, 3.1 h."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"


def plural(count: float, noun: str) -> str:
    """1 step, 2 steps."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def escape(text: Any) -> str:
    """Text that a user may have written, for HTML and for plotly, which reads tags as well."""
    return html.escape(str(text), quote=True)


def cluster(k: int) -> str:
    """The name of a cluster in HTML."""
    return f"C<sub>{k}</sub>"


def typeset(text: str) -> str:
    """A task's description as HTML: names escaped, C_12 with its index below the line, a proper arrow."""
    return re.sub(r"\bC_(\d+)", lambda m: cluster(int(m[1])), escape(text)).replace("-&gt;", "→")


def not_yet(stage: str) -> str:
    """What stands where a stage has not run."""
    return f'<span class="missing">Not measured yet: {stage} has not run.</span>'
