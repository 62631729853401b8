"""plotly figures as plain data: no plotly is imported, plotly.js reads them in the page.

A colour is the name of one of the page's CSS variables ("@tuned", or "@tuned/0.2" with an opacity), so that a figure
follows light and dark; report.js puts the colours in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mcot_torch.evaluation.models import MODELS
from mcot_torch.report.text import number

__all__ = ["Chart", "colour", "line", "log_axis", "numbers", "plain_axis", "rule", "thinned"]


@dataclass(frozen=True)
class Chart:
    """One plotly figure.

    Attributes:
        data: traces.
        layout: what differs from the page's own layout (report.js).
        height: pixels.
        label: what it shows, for those who cannot see it.
    """

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    label: str


def colour(model: str, opacity: float | None = None) -> str:
    """The colour of a model: its CSS variable, or that of the text for a name that is not in the table of models."""
    name = model if model in MODELS else "ink"
    return f"@{name}" if opacity is None else f"@{name}/{opacity}"


def numbers(values: ArrayLike) -> list[float | None]:
    """Numbers for JSON with five digits, None for what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in array.ravel()]


def thinned(count: int, most: int) -> np.ndarray:
    """At most `most` of 0 .. count - 1, evenly, ends included."""
    return np.arange(count) if count <= most else np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def line(x: ArrayLike, y: ArrayLike, name: str, stroke: str, width: float = 2.0, **more: Any) -> dict[str, Any]:
    """A line trace."""
    style = {"color": stroke, "width": width, **more.pop("style", {})}
    return {"type": "scatter", "mode": "lines", "x": numbers(x), "y": numbers(y), "name": name, "line": style, **more}


def log_axis(title: str, values: Sequence[float], pad: float = 0.12, **more: Any) -> dict[str, Any]:
    """A logarithmic axis over positive values: a tick a decade, or 1, 2 and 5 of each where they span few.

    Args:
        title: of the axis.
        values: what it must hold.
        pad: decades of room at both ends.
    """
    low, high = float(np.log10(min(values))) - pad, float(np.log10(max(values))) + pad
    digits = (1, 2, 5) if high - low < 2 else (1,)
    decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    every = max(1, -(-len(decades) // 9))
    ticks = [d * 10.0**n for n in decades if n % every == 0 for d in digits if low <= np.log10(d) + n <= high]
    text = [
        number(v) if 1e-3 <= v < 1e5 else f"{v / 10.0 ** (n := int(np.floor(np.log10(v) + 1e-9))):.0f}·10<sup>{n}</sup>"
        for v in ticks
    ]
    text = [t.removeprefix("1·") for t in text]
    scale = {"range": [low, high], "tickvals": numbers(ticks), "ticktext": text}
    return {"type": "log", "title": {"text": title}, **scale, **more}


def plain_axis(title: str, **more: Any) -> dict[str, Any]:
    """A linear axis."""
    return {"title": {"text": title}, **more}


def rule(at: float, text: str, horizontal: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """A dotted reference line across a logarithmic axis, and its name at the far end: (shape, annotation)."""
    a, b = ("y", "x") if horizontal else ("x", "y")
    shape = {"type": "line", f"{b}ref": "paper", f"{b}0": 0, f"{b}1": 1, f"{a}0": at, f"{a}1": at}
    shape |= {"line": {"color": "@muted", "width": 1, "dash": "dot"}, "layer": "below"}
    place = {f"{b}ref": "paper", b: 1, f"{a}": float(np.log10(at)), "showarrow": False, "text": text}
    anchors = {"xanchor": "right", "yanchor": "bottom"} if horizontal else {"xanchor": "left", "yanchor": "top"}
    return shape, {**place, **anchors, "font": {"color": "@muted", "size": 12}}
