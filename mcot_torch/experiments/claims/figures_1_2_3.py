"""The paper's figures, drawn from real objects.

Figure 1 is the state graph with its hard steps and the meta-chain beside it: here a graph of the default family, the
hard steps that search found on it, and q°. Figures 2 and 3 are the parity tasks of Section 5: `LiftedUnits` with ρ = 0, where
the rows on a path hide the concept, and with ρ = 1, where its neighbourhood does too; two concepts each, and one path.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary, judge
from mcot_torch.experiments.fits import select
from mcot_torch.experiments.support import exact_reasoner, synthetic
from mcot_torch.graphs.families.lifts import LiftedUnits

_CONCEPTS, _BITS = ("10", "01"), (1, 0)
_SEEDS = (4, 15)  # few crossings and two levels: legible


@dataclass
class Settings:
    """The graphs that are drawn."""

    n_clusters: int = 6
    """K of Figure 1."""
    cluster_size: int = 10
    """M of Figure 1."""
    epsilon: float = 0.01
    """ε."""
    seed: int = 0
    """Of the graph of Figure 1 and of search."""


def points(settings: Settings) -> list[Point]:
    """A figure each."""
    first = {"K": settings.n_clusters, "M": settings.cluster_size, "epsilon": settings.epsilon, "seed": settings.seed}
    lifts = [{"figure": 2 + rho, "rho": rho, "epsilon": settings.epsilon} for rho in (0, 1)]
    return [{"figure": 1, **first}, *lifts]


def measure(point: Point) -> Measurement:
    """Figure 1: the hard steps that search finds with the exact reasoner. Figures 2 and 3: what the two concepts share."""
    if point["figure"] > 1:
        return _compare(_lifts(point["rho"], point["epsilon"]))
    from mcot_torch.algorithms.search import search
    from mcot_torch.graphs.scales import Scales
    from mcot_torch.training.loop import Context

    graph = synthetic("circulant", point["K"], point["M"], point["epsilon"], point["seed"])
    prm = search(exact_reasoner(graph), Scales.of(graph, graph.epsilon), context=Context(point["seed"])).model
    edges, true = set(map(tuple, prm.edges.tolist())), set(map(tuple, graph.sparse_edges.tolist()))
    return {"edges": prm.edges.tolist(), "missed": len(true - edges), "false": len(edges - true)}


def _lifts(rho: int, epsilon: float) -> LiftedUnits:
    """The units of Figure 2 (ρ = 0) and Figure 3 (ρ = 1)."""
    return LiftedUnits(2, 14 + 6 * rho, epsilon, rho, _SEEDS[rho])


def _compare(units: LiftedUnits) -> Measurement:
    """How many rows in sight and one step farther differ between the two graphs, and the two values of the path."""
    import torch

    from mcot_torch.logic import ball, concept_actions, task_paths

    path = task_paths(units, torch.tensor([_BITS]))
    graphs = [units.graph(concept) for concept in _CONCEPTS]
    rows = [graph.kernel() for graph in graphs]

    def differing(radius: int) -> int:
        seen = sorted({int(x) for graph in graphs for x in ball(graph, path, radius)})
        return int((rows[0][seen] != rows[1][seen]).any(axis=1).sum())

    values = [1 - 2 * int(concept_actions(units, graph).values(path)[0]) for graph in graphs]
    return {"near": differing(units.radius), "far": differing(units.radius + 1), "values": values}


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Whether the drawings show the whole truth."""
    numbers = [
        Number("hard steps that search missed", float(rows[0]["missed"]), at_most=0.0),
        Number("steps that search took for hard ones", float(rows[0]["false"]), at_most=0.0),
    ]
    for n in (2, 3):
        (row,) = select(rows, figure=n)
        sight = f"within {row['rho']} of the path" if row["rho"] else "on the path"
        numbers += [
            Number(f"Figure {n}: rows {sight} that differ between the concepts", row["near"], at_most=0, expected="0"),
            Number(f"Figure {n}: rows within {row['rho'] + 1} that do", row["far"], at_least=1, expected="> 0"),
            Number(f"Figure {n}: product of the path's two values", row["values"][0] * row["values"][1], at_most=-1),
        ]
    why = (
        "Every hard step in Figure 1 was found by search, and nothing else. In Figures 2 and 3 one path has the values −1 and +1 "
        "under two concepts, and every row in sight of it is the same under both."
    )
    return judge(numbers, why)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> list[Figure]:
    """Figures 1, 2 and 3."""
    from mcot_torch.graphs.task import TaskConfig, build_task
    from mcot_torch.report.figures import graph_figure
    from mcot_torch.report.figures.logic import concept_figure

    graph = synthetic("circulant", settings.n_clusters, settings.cluster_size, settings.epsilon, settings.seed)
    first = graph_figure(graph, rows[0]["edges"], build_task(TaskConfig(), graph))
    return [first, *(concept_figure(_lifts(rho, settings.epsilon), _CONCEPTS, _BITS) for rho in (0, 1))]


EXPERIMENT = Experiment(
    "figures_1_2_3",
    "Figures 1 to 3: hard steps, the meta-chain, and what a path does not show",
    "A chain of thought is a walk among dense clusters joined by rare hard steps, and on a slow time scale a chain over "
    "clusters (Figure 1); which of its rare steps are hard, and so compute, cannot be seen from the path (Figure 2) nor from its "
    "neighbourhood (Figure 3).",
    Settings,
    lambda: Settings(n_clusters=5),
    points,
    measure,
    summarise,
    figure,
)
