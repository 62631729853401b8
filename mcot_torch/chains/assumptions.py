"""The paper's assumptions A1-A5 (Section 2), checked on any graph, each with the constant that it has there.

An assumption is asymptotic: "at least γ > 0", "Ω(K)". On one graph a constant can be measured, and it passes if it lies on
the right side of a bound that is ours and stated below. A4 is about all K at once: one graph gives a constant only; watch it
over a sweep in K (2, 1.5, 1.42, 1.41 at K = 4, 8, 16, 32 on the circulant; 4/K on the bidirectional ring, where A4 fails).

`python -m mcot_torch.assumptions GRAPH` prints the table; GRAPH is a graph.npz, an edge list (.csv, .tsv) or a
configuration (.yaml).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse as sp
from scipy.sparse.csgraph import shortest_path

from mcot_torch.chains import meta_chain, pseudo_spectral_gap, stationary_law, stochastic_complement
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task

__all__ = ["AssumptionCheck", "check_assumptions", "shown_offenders", "summary_lines", "verdict"]

SMALLEST_GAP = 0.05
"""A1 [ours]: least pseudo-spectral gap of a dense cluster. Gaps above it show within 1/.05 = 20 powers of the kernel."""
LAW_RANGE = (0.1, 10.0)
"""A1 [ours]: M_k times the stationary law of S_kk, pointwise."""
SMALLEST_SHARE = 0.15
"""A3 [ours]: least number of hard steps to the target, in units of K."""
LARGEST_GRAPH = 3_000
"""States up to which A1 and A4 are measured."""


@dataclass
class AssumptionCheck:
    """One assumption on one graph.

    Attributes:
        name: A1 .. A5.
        title: what it asks for, in words.
        passed: None where one graph gives a constant only, or where it was not measured.
        constants: what was measured.
        text: the constants in one line.
        offenders: clusters, states or edges that break it.
    """

    name: str
    title: str
    passed: bool | None
    constants: dict[str, float] = field(default_factory=dict)
    text: str = ""
    offenders: list[str] = field(default_factory=list)


def check_assumptions(graph: MetastableGraph, task: Task | None = None) -> list[AssumptionCheck]:
    """A1 to A5 on `graph`; A3 is about the task and is not measured without one."""
    return [_dense_clusters(graph), _sparse_edges(graph), _difficulty(graph, task), _escape(graph), _inbound(graph)]


def _too_large(graph: MetastableGraph, name: str, title: str) -> AssumptionCheck | None:
    if graph.n_states <= LARGEST_GRAPH:
        return None
    text = f"not measured: {graph.n_states:,} states, more than {LARGEST_GRAPH:,}"
    return AssumptionCheck(name, title, None, text=text)


def _dense_clusters(graph: MetastableGraph) -> AssumptionCheck:
    """A1: γ†(S^ε_kk) >= γ > 0, and the stationary law of S^ε_kk is Θ(1/M) pointwise."""
    title = "dense clusters: γ†(S_kk) ≥ γ, law Θ(1/M)"
    if (skipped := _too_large(graph, "A1", title)) is not None:
        return skipped
    P, offenders = graph.to_scipy(), []
    gaps, least, most = [], [], []
    for cluster in range(graph.n_clusters):
        members = graph.members(cluster)
        watched = stochastic_complement(P, members, graph.clusters)
        law = stationary_law(watched)
        gaps.append(pseudo_spectral_gap(watched, law, max_power=round(1 / SMALLEST_GAP)))
        least.append(len(members) * float(law.min()))
        most.append(len(members) * float(law.max()))
        if gaps[-1] < SMALLEST_GAP:
            offenders.append(f"cluster {cluster} (γ† = {gaps[-1]:.2g})")
        elif least[-1] < LAW_RANGE[0] or most[-1] > LAW_RANGE[1]:
            x = members[law.argmin() if least[-1] < LAW_RANGE[0] else law.argmax()]
            offenders.append(f"state {graph.name(int(x))} (M·law between {least[-1]:.2g} and {most[-1]:.2g})")
    constants = {"gap": min(gaps), "law_min": min(least), "law_max": max(most)}
    text = f"γ† ≥ {min(gaps):.3g}; M·law in [{min(least):.3g}, {max(most):.3g}]"
    return AssumptionCheck("A1", title, not offenders, constants, text, offenders)


def _sparse_edges(graph: MetastableGraph) -> AssumptionCheck:
    """A2: few sources, few edges each, at most one edge an ordered pair of clusters, at least one out of each cluster."""
    tails, heads = graph.sparse_edges.T
    leaving, entering = graph.clusters[tails], graph.clusters[heads]
    sources = np.unique(tails)
    n_out = np.bincount(graph.clusters[sources], minlength=graph.n_clusters)
    d_out = np.bincount(tails, minlength=graph.n_states)
    pairs, count = np.unique(np.stack([leaving, entering], axis=1), axis=0, return_counts=True)
    offenders = [f"clusters {k} → {m}: {n} edges" for (k, m), n in zip(pairs, count, strict=True) if n > 1]
    offenders += [f"cluster {k}: no edge out" for k in np.flatnonzero(n_out == 0)]
    constants = {
        "n_out": float(n_out.max()),
        "d_out": float(d_out.max()),
        "edges_per_pair": float(count.max(initial=0)),
    }
    text = f"n_out = {n_out.max()}, d_out = {d_out.max()}, {count.max(initial=0)} edge(s) a pair of clusters"
    title = "sparse edges: one a pair of clusters, one out of each"
    return AssumptionCheck("A2", title, not offenders, constants, text, offenders)


def _difficulty(graph: MetastableGraph, task: Task | None) -> AssumptionCheck:
    """A3: every valid path from X_in to X_out uses Ω(K) sparse edges in expectation over the task.

    Measured as the least number of hard steps on any path, easy steps being free: inside a cluster every state reaches
    every other, so that it is a shortest path over clusters; averaged over the law of X_in.
    """
    title = "difficulty: fewest hard steps on a valid path is Ω(K)"
    if task is None:
        return AssumptionCheck("A3", title, None, text="not measured: no task given")
    k = graph.n_clusters
    tails, heads = graph.clusters[graph.sparse_edges].T
    joined = sp.csr_array((np.ones(len(tails)), (heads, tails)), shape=(k, k))  # backwards
    goals = np.unique(graph.clusters[task.target])
    steps = shortest_path(joined, unweighted=True, indices=goals).min(axis=0)  # (K,)
    mean = float(task.start @ np.where(np.isin(np.arange(graph.n_states), task.target), 0.0, steps[graph.clusters]))
    share = mean / k
    passed = share >= SMALLEST_SHARE
    text = f"{mean:.3g} hard step{'s' * (mean != 1)} on the shortest path = {share:.2g}·K"
    offenders = [] if passed else [f"task {task.description}: {mean:.3g} hard steps for K = {k}"]
    return AssumptionCheck("A3", title, passed, {"hard_steps": mean, "share": share}, text, offenders)


def _escape(graph: MetastableGraph) -> AssumptionCheck:
    """A4: q*(C_l|C_k) = Ω(ε/M) for all k ≠ l; on one graph a constant only."""
    title = "uniform escape: q* = Ω(ε/M) (judge it over a sweep in K)"
    if (skipped := _too_large(graph, "A4", title)) is not None:
        return skipped
    scaled = meta_chain(graph) * graph.cluster_size / graph.epsilon
    np.fill_diagonal(scaled, np.inf)
    source, target = np.unravel_index(int(scaled.argmin()), scaled.shape)
    least = float(scaled.min())
    text = f"min q*·M/ε = {least:.3g}, from cluster {source} to {target}; K·min = {graph.n_clusters * least:.3g}"
    return AssumptionCheck("A4", title, None, {"escape": least, "escape_times_k": graph.n_clusters * least}, text)


def _inbound(graph: MetastableGraph) -> AssumptionCheck:
    """A5: all sparse edges into a cluster end at one state."""
    heads = np.unique(graph.sparse_edges[:, 1])
    n_heads = np.bincount(graph.clusters[heads], minlength=graph.n_clusters)
    offenders = [f"cluster {k}: {n} entry states" for k, n in enumerate(n_heads) if n > 1]
    offenders += [f"cluster {k}: no edge in" for k in np.flatnonzero(n_heads == 0)]
    title = "inbound: one entry state a cluster (distillation only)"
    text = f"at most {n_heads.max()} entry state(s) a cluster"
    return AssumptionCheck("A5", title, not offenders, {"entries": float(n_heads.max())}, text, offenders)


# ---- telling --------------------------------------------------------------------------------------------------------


def verdict(check: AssumptionCheck) -> str:
    """The outcome of a check in one word, for tables: holds, fails, constant, or - where nothing was measured."""
    if check.passed is None:
        return "constant" if check.constants else "-"
    return "holds" if check.passed else "FAILS"


def shown_offenders(offenders: Sequence[str], most: int) -> str:
    """The first `most` offenders as text, and how many more there are."""
    return "; ".join(offenders[:most]) + (f"; and {len(offenders) - most} more" if len(offenders) > most else "")


def summary_lines(checks: Sequence[AssumptionCheck]) -> list[str]:
    """One line an assumption, for train.py."""
    lines = []
    for check in checks:
        broken = f"  ({shown_offenders(check.offenders, 2)})" if check.offenders else ""
        lines.append(f"{check.name} {verdict(check):<8} {check.text}{broken}")
    return lines
