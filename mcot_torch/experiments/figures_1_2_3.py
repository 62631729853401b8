"""The paper's figures, drawn from real objects.

Figure 1 is the state graph with its hard steps and the meta-chain beside it: here a graph of the default family, the
hard steps that search found on it, and q°. Figures 2 and 3 illustrate the parity tasks of Section 5; the logic module
does not exist yet, and they will be drawn where those tasks are built.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from mcot_torch.experiments.base import Experiment, Number, Point, Row, Summary, judge
from mcot_torch.experiments.support import exact_reasoner, synthetic


@dataclass
class Settings:
    """The graph that is drawn."""

    n_clusters: int = 6
    """K."""
    cluster_size: int = 10
    """M."""
    epsilon: float = 0.01
    """ε."""
    seed: int = 0
    """Of the graph and of search."""


def points(settings: Settings) -> list[Point]:
    """One."""
    return [{"K": settings.n_clusters, "M": settings.cluster_size, "epsilon": settings.epsilon, "seed": settings.seed}]


def measure(point: Point) -> Row:
    """The hard steps that search finds with the exact reasoner."""
    from mcot_torch.algorithms.search import search
    from mcot_torch.scales import Scales
    from mcot_torch.training import Context

    graph = synthetic("circulant", point["K"], point["M"], point["epsilon"], point["seed"])
    found = search(exact_reasoner(graph), Scales.of(graph, graph.epsilon), context=Context(point["seed"]))
    edges, true = set(map(tuple, found.edges.tolist())), set(map(tuple, graph.sparse_edges.tolist()))
    return {"edges": found.edges.tolist(), "missed": len(true - edges), "false": len(edges - true)}


def summarise(settings: Settings, rows: list[Row]) -> Summary:
    """Whether the drawing shows the whole truth."""
    numbers = [
        Number("hard steps that search missed", float(rows[0]["missed"]), at_most=0.0),
        Number("steps that search took for hard ones", float(rows[0]["false"]), at_most=0.0),
    ]
    why = "Every hard step in Figure 1 was found by search, and nothing else."
    return judge(
        numbers, why, notes=["Figures 2 and 3 (Section 5, parity tasks) are not drawn yet: they need the logic module."]
    )


def figure(settings: Settings, rows: list[Row], summary: Summary) -> Figure:
    """Figure 1."""
    from mcot_torch.figures import graph_figure
    from mcot_torch.graphs.task import TaskConfig, build_task

    graph = synthetic("circulant", settings.n_clusters, settings.cluster_size, settings.epsilon, settings.seed)
    return graph_figure(graph, rows[0]["edges"], build_task(TaskConfig(), graph))


EXPERIMENT = Experiment(
    "figures_1_2_3",
    "Figure 1: clusters, hard steps and the meta-chain",
    "A chain of thought is a walk among dense clusters joined by rare hard steps, and on a slow time scale a chain over "
    "clusters.",
    Settings,
    lambda: Settings(n_clusters=5),
    points,
    measure,
    summarise,
    figure,
)
