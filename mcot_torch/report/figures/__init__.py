"""The figures of a run as PNG files: the graph with its hard steps, hitting times, kernels, survival, training curves.

Data in, picture out: `*_figure` returns a matplotlib `Figure` (no pyplot, no global state) and `save` writes it as a PNG.
A figure is 1,200 pixels wide and made to be read at 800. Models keep their colours from figure to figure, a palette
that colour-blind readers can tell apart (Okabe and Ito). The same data give the same bytes.

Nothing is computed here but layouts, empirical survival and the pair kernel q° beside the graph.
"""

from mcot_torch.report.figures.compare import compare_figure
from mcot_torch.report.figures.graph import graph_figure
from mcot_torch.report.figures.results import (
    empirical_survival,
    hitting_time_figure,
    kernel_figure,
    stairs,
    survival_figure,
)
from mcot_torch.report.figures.style import model_colour, save
from mcot_torch.report.figures.training import training_figure

__all__ = [
    "compare_figure",
    "empirical_survival",
    "graph_figure",
    "hitting_time_figure",
    "kernel_figure",
    "model_colour",
    "save",
    "stairs",
    "survival_figure",
    "training_figure",
]
