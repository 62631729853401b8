"""Beyond the paper (f): the exact chain at ε beyond ε_max, up to the limit of the domain.

The theory stops at ε_max = Θ(M^-1 (log M)^-4), where clusters cease to be metastable. What happens there: hitting times to
the entry of C_{K/2} and to its farthest state, A1's pseudo-spectral gap, the metastability ratio, whether search and a
spectral method still find the clusters, and what a student distilled there is worth.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment

from mcot_torch.chains import hitting_time, hitting_times, metastability_ratio, stationary_law
from mcot_torch.experiments.base import Experiment, Measurement, Number, Point, Summary
from mcot_torch.experiments.fits import select
from mcot_torch.experiments.plots import GREY, legend, log_axis, panels, trend
from mcot_torch.experiments.questions.beyond_common import answer, make_problem, median
from mcot_torch.experiments.support import exact_reasoner
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.scales import Scales


@dataclass
class Settings:
    """The grid."""

    epsilons: list[float] = field(
        default_factory=lambda: [0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 0.999]
    )
    """Values of ε; the limit of the domain is 1."""
    n_clusters: int = 8
    """K."""
    cluster_size: int = 16
    """M; ε_max is .96/M."""
    distill_transitions: int = 30_000_000
    """T_dist of the student at each ε."""
    seeds: int = 5
    """Graphs."""


def points(settings: Settings) -> list[Point]:
    """Every ε on every graph."""
    size = {"K": settings.n_clusters, "M": settings.cluster_size, "dist": settings.distill_transitions}
    return [{"epsilon": e, **size, "seed": s} for e in settings.epsilons for s in range(settings.seeds)]


def measure(point: Point) -> Measurement:
    """Exact times and constants, what is recovered, and a student."""
    from mcot_torch.algorithms.config import DistillConfig
    from mcot_torch.algorithms.distill import distill
    from mcot_torch.algorithms.prm import PRM
    from mcot_torch.algorithms.search import search
    from mcot_torch.chains.assumptions import check_assumptions
    from mcot_torch.evaluation.measures import edge_precision_recall
    from mcot_torch.evaluation.subjects import measure_lift
    from mcot_torch.training.loop import Context

    problem = make_problem(point)
    graph, task = problem.graph, problem.task
    P = graph.to_scipy()
    dense = {report.name: report for report in check_assumptions(graph)}["A1"].constants
    members = graph.members(graph.n_clusters // 2)
    far = max(hitting_time(P, task.start, [int(x)], graph.clusters) for x in members)
    home = hitting_times(P, members, graph.clusters)
    row: Measurement = {
        "time": problem.base,
        "constant": problem.base * point["epsilon"] / graph.n_states,
        "far": far,
        "from_everywhere": float(home.mean()),
        "gap": dense["gap"],
        "law_min": dense["law_min"],
        "ratio": metastability_ratio(P, graph.entries, graph.clusters),
        "spectral": _spectral_accuracy(graph),
    }
    reasoner = exact_reasoner(graph)
    found = search(reasoner, problem.scales, None, Context(point["seed"])).model
    precision, recall = edge_precision_recall(found.edges, graph.sparse_edges)
    row |= {"recall": recall, "precision": precision}
    prm = PRM.simulated(graph)
    config = DistillConfig(transitions=point["dist"], steps=800)
    student = distill(reasoner, prm, problem.scales, config, Context(point["seed"])).model
    labels = student.labels.numpy()
    start, end = int(labels[graph.entries[0]]), int(labels[task.target[0]])
    row["hops"] = hitting_time(student.kernel().numpy(), start, [end]) if start != end else None
    lifted = measure_lift(student, reasoner, prm, graph, task, 500, point["seed"])
    return row | {"lifted": lifted["lifted_steps"], "lifted_valid": lifted["lifted_valid"]}


def _spectral_accuracy(graph: MetastableGraph) -> float:
    """Share of states that the K leading eigenvectors of the reversible part, by k-means, put into the right cluster."""
    P, k = graph.kernel(), graph.n_clusters
    law = stationary_law(graph.to_scipy(), graph.clusters)
    flow = law[:, None] * P
    root = np.sqrt(law)
    _, vectors = np.linalg.eigh((flow + flow.T) / (2 * root[:, None] * root))
    features = vectors[:, -k:] / root[:, None]
    best, accuracy = np.inf, 0.0
    for seed in range(20):
        centres, labels = kmeans2(features, k, minit="++", rng=seed, missing="warn")
        distortion = float(((features - centres[labels]) ** 2 * law[:, None]).sum())
        if distortion < best:
            best, accuracy = distortion, _matched(labels, graph.clusters, k)
    return accuracy


def _matched(labels: NDArray[np.integer], truth: NDArray[np.integer], k: int) -> float:
    table = np.zeros((k, k))
    np.add.at(table, (labels, truth), 1)
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / len(truth))


def _last(settings: Settings, rows: list[Measurement], good) -> float:  # type: ignore[no-untyped-def]
    """Largest ε up to which `good(median row)` holds; 0 where it never does."""
    last = 0.0
    for epsilon in sorted(settings.epsilons):
        if not good(select(rows, epsilon=epsilon)):
            break
        last = epsilon
    return last


def summarise(settings: Settings, rows: list[Measurement]) -> Summary:
    """Until where each thing holds."""
    aim = 0.96 / settings.cluster_size
    low, high = min(settings.epsilons), max(settings.epsilons)
    middle = {
        key: {e: median(select(rows, epsilon=e), key) for e in settings.epsilons}
        for key in ("time", "far", "gap", "ratio", "hops", "lifted", "recall", "precision", "spectral")
    }
    best = {}
    for key in ("time", "far"):
        times = [middle[key][e] or np.inf for e in settings.epsilons]
        best[key] = settings.epsilons[int(np.argmin(times))]
    numbers = [
        Number("ε of the smallest E[τ] to the entry, in units of 1/M", best["time"] * settings.cluster_size),
        Number("that E[τ]", middle["time"][best["time"]]),
        Number("ε of the smallest E[τ] to the farthest state, in units of 1/M", best["far"] * settings.cluster_size),
        Number("that E[τ] ", middle["far"][best["far"]]),
        Number(f"E[τ] to the farthest state at ε = {high:g}", middle["far"][high]),
        Number(
            "largest ε with search recall and precision ≥ .99 (median)",
            _last(settings, rows, lambda p: min(median(p, "recall") or 0, median(p, "precision") or 0) >= 0.99),
        ),
        Number(
            "largest ε with 99 % of states in the right spectral cluster (median)",
            _last(settings, rows, lambda p: (median(p, "spectral") or 0) >= 0.99),
        ),
        Number(
            "largest ε with metastability ratio < 1 (median)",
            _last(settings, rows, lambda p: (median(p, "ratio") or 0) < 1),
        ),
        Number(f"pseudo-spectral gap at ε = {low:g}", middle["gap"][low]),
        Number(f"pseudo-spectral gap at ε = {high:g}", middle["gap"][high]),
        Number(f"lifted steps at ε = {low:g}", middle["lifted"][low]),
        Number(f"lifted steps at ε = {high:g}", middle["lifted"][high]),
    ]
    by_name = {n.name: n.value or 0.0 for n in numbers}
    search_end = numbers[5].value or 0.0
    why = (
        f"E[τ] goes on falling: to the entry until ε = {best['time']:g} ({by_name['that E[τ]']:.0f} steps), to the farthest state of the target cluster "
        f"only until {best['far']:g}, and {middle['far'][high]:.3g} at {high:g}; search is right up to ε = {search_end:g} ({search_end * settings.cluster_size:.2g}/M), "
        f"spectral clusters up to {numbers[6].value:g}, and the metastability ratio is below 1 up to {numbers[7].value:g}: past ε_max = {aim:g} "
        "speed is bought with the clusters."
    )
    overtaken = [e for e in sorted(settings.epsilons) if (middle["time"][e] or 0) < (middle["lifted"][e] or 0)]
    cover = Scales(settings.n_clusters, settings.cluster_size, low, aim).cover_steps
    notes = [
        "The lifted student walks inside clusters with hard steps cut, so that its steps do not depend on ε; the chain's own walk "
        + (f"is faster from ε = {overtaken[0]:g} on only." if overtaken else "is slower at every ε."),
        f"Search fails first, for want of two time scales: it takes T_0 = 2.5 M ln M = {cover} steps to see a cluster, more than the T_max = M/ε "
        f"after which walks have left it from ε = {settings.cluster_size / cover:.2g} on. The spectral method, which reads the exact kernel, needs no walks.",
        "Easy steps from the sources vanish as ε nears 1: the states behind them are reached rarely (the smallest law of S_kk), so A1 goes, and hitting times to "
        "them rise, while the entry, which every hard step into the cluster hits, is reached ever faster.",
    ]
    return answer(numbers, why, notes)


def figure(settings: Settings, rows: list[Measurement], summary: Summary) -> Figure:
    """Times; A1 and metastability; what is recovered."""
    fig, axes = panels(3, height=3.5)
    for i, (key, label) in enumerate(
        (("time", "entry of C_{K/2}"), ("far", "its farthest state"), ("lifted", "entry, lifted student"))
    ):
        part = [r for r in rows if r[key] is not None]
        trend(axes[0], [r["epsilon"] for r in part], [r[key] for r in part], label, i)
    axes[0].set(ylabel="steps", title="time to the target")
    for i, (key, label) in enumerate(
        (
            ("gap", "pseudo-spectral gap of S_kk"),
            ("ratio", "metastability ratio"),
            ("law_min", "M · smallest law of S_kk"),
        )
    ):
        trend(axes[1], [r["epsilon"] for r in rows], [r[key] for r in rows], label, i)
    axes[1].set(title="A1 and Proposition 2.1")
    for i, (key, label) in enumerate(
        (("recall", "recall of search"), ("precision", "precision of search"), ("spectral", "spectral clusters"))
    ):
        trend(axes[2], [r["epsilon"] for r in rows], [r[key] for r in rows], label, i)
    axes[2].set(title="recovered", ylim=(0, 1.05))
    for axis, where in zip(axes, ("upper right", "best", "lower left"), strict=True):
        if axis is not axes[2]:
            log_axis(axis, "y")
        log_axis(axis, "x", None)
        axis.axvline(0.96 / settings.cluster_size, color=GREY, ls=":", lw=1.1)
        axis.set_xlabel("ε (dotted: ε_max = .96/M)")
        legend(axis, where)
    return fig


def quick() -> Settings:
    """A small graph at four ε."""
    return Settings([0.01, 0.1, 0.5, 0.95], 4, 8, 1_000_000, seeds=1)


EXPERIMENT = Experiment(
    "beyond_past_epsilon_max",
    "Past ε_max",
    "What happens to hitting times, clusters and students when hard steps become likelier than ε_max?",
    Settings,
    quick,
    points,
    measure,
    summarise,
    figure,
)
