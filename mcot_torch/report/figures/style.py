"""What the figures share: colours of the models, sizes, and how a figure becomes a PNG."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from mcot_torch.evaluation.models import MODELS
from mcot_torch.system.files import whole_file

__all__ = [
    "BLACK",
    "BLUE",
    "DPI",
    "GREEN",
    "GREY",
    "LIGHT",
    "ORANGE",
    "PURPLE",
    "SKY",
    "SMALL",
    "TEXT",
    "TITLE",
    "VERMILION",
    "WIDTH",
    "Array",
    "few_decades",
    "model_colour",
    "plain",
    "save",
    "thousands",
]

Array = NDArray[np.float64]

BLACK, GREY, LIGHT = "#222222", "#6b6b6b", "#c4c4c4"
BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"

DPI = 150
WIDTH = 8.0  # inches
SMALL, TEXT, TITLE = 8, 9, 10  # points: 11, 12.5 and 14 pixels at 800


def model_colour(name: str) -> str:
    """The colour of a model in every figure, from the table of models; one of two spare colours for other names."""
    return MODELS[name].colour if name in MODELS else (SKY, VERMILION)[sum(map(ord, name)) % 2]


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG without metadata; the name appears only when the file is whole."""
    path = Path(path)
    FigureCanvasAgg(figure)
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a state name in a script that the font lacks
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return path


def plain(axes: Axes, grid: str = "both") -> None:
    """Light grid, no box, text of one size."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e4e4e4", lw=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=max(SMALL, 8))


def few_decades(axes: Axes) -> None:
    """Ticks of a logarithmic y axis: a decade each, or 1, 2 and 5 of each where they are few."""
    low, high = axes.get_ylim()
    if high / low < 50:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def thousands(value: float, _: Any) -> str:
    """1500000 as 1.5M, 2000 as 2k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
