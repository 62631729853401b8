"""Exact hitting times: ours against deeptime and SciPy at ε = 1e-12, with the errors of each; ours alone up to 1e6 states."""

from __future__ import annotations

import json
import sys
import time
import warnings
from functools import partial

import numpy as np
from scipy import sparse as sp
from scipy.sparse.linalg import splu, spsolve

from benchmarks.timing import Benchmark, Mark, Settings, Work, peak_gib, peer, process, race, summary
from mcot_torch.chains import hitting_times
from mcot_torch.graphs import GraphConfig, MetastableGraph, build_graph

EPSILON = 1e-12


def circulant(n_clusters: int, cluster_size: int) -> tuple[MetastableGraph, np.ndarray]:
    """The default family at ε = 1e-12, and a target: the members of the cluster half-way around."""
    graph = build_graph(
        GraphConfig(n_clusters=n_clusters, cluster_size=cluster_size, epsilon=EPSILON, epsilon_max=1e-3)
    )
    return graph, graph.members(n_clusters // 2)


def truth(graph: MetastableGraph, target: np.ndarray, digits: int = 50) -> np.ndarray:
    """Hitting times by LU in float64, refined with residuals of `digits` digits until they stand still.

    The diagonal is the sum of the off-diagonal entries as stored, exactly: the chain that GTH solves too.
    """
    import mpmath

    mpmath.mp.dps = digits
    P = sp.csr_array(graph.to_scipy())
    P.setdiag(0)
    P.eliminate_zeros()
    exact = np.array([mpmath.mpf(float(x)) for x in P.data], dtype=object)
    diagonal = np.add.reduceat(exact, P.indptr[:-1])
    rest = np.setdiff1d(np.arange(P.shape[0]), target)
    system = sp.csc_array(sp.diags_array(diagonal.astype(float)) - P)[rest][:, rest]
    lu = splu(sp.csc_array(system))
    h = np.full(P.shape[0], mpmath.mpf(0), dtype=object)
    for _ in range(60):
        residual = 1 - diagonal * h + np.add.reduceat(exact * h[P.indices], P.indptr[:-1])
        scale = max(abs(r) for r in residual[rest])
        step = lu.solve((residual[rest] / scale).astype(float))
        h[rest] += np.array([mpmath.mpf(float(s)) * scale for s in step], dtype=object)
        if max(abs(float(s) * float(scale)) / float(x) for s, x in zip(step, h[rest], strict=True)) < 1e-18:
            return h.astype(float)
    raise RuntimeError("the refinement has not converged; no truth to compare with")


def scipy_solve(P: sp.csr_array, target: np.ndarray) -> np.ndarray:
    """(I − P) h = 1 outside the target, by SuperLU."""
    rest = np.setdiff1d(np.arange(P.shape[0]), target)
    h = np.zeros(P.shape[0])
    h[rest] = spsolve(sp.csc_array(sp.eye_array(len(rest)) - P[rest][:, rest]), np.ones(len(rest)))
    return h


def compared(n_clusters: int, cluster_size: int, limit: float, name: str, settings: Settings) -> Benchmark:
    """Ours and the peers on the same chain."""
    k, m = settings.size(n_clusters, 6), settings.size(cluster_size, 8)
    graph, target = circulant(k, m)
    P, skipped = sp.csr_array(graph.to_scipy()), []
    calls = {
        "block elimination (GTH)": lambda: hitting_times(P, target, graph.clusters),
        "SciPy spsolve": lambda: scipy_solve(P, target),
    }
    if deeptime := peer("deeptime.markov.tools.analysis", skipped):
        dense, old = P.toarray(), sp.csr_matrix(P)
        calls["deeptime mfpt, dense"] = lambda: deeptime.mfpt(dense, target)
        calls["deeptime mfpt, sparse"] = lambda: deeptime.mfpt(old, target)
    works = [Work(what, call, ours=what.startswith("block")) for what, call in calls.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ill-conditioned matrices: their errors are what the row shows
        if peer("mpmath", skipped):
            exact = truth(graph, target)
            outside = exact > 0
            for work in works:
                h = np.asarray(work.call())
                work.extra["error"] = float((np.abs(h - exact)[outside] / exact[outside]).max())
        entries = race(works, settings)
    row = Benchmark("hitting", name, f"N = {k * m:,} (K = {k}, M = {m}), ε = 1e-12", "solves", entries, skipped=skipped)
    ours = row.entries[0]
    row.marks = [
        Mark(f"≤ {limit * 1e3:g} ms", ours["median"], limit, at_least=False),
        Mark("relative error ≤ 1e-12", ours.get("error"), 1e-12, at_least=False),
    ]
    row.notes = ["Truth: LU refined with residuals of 50 digits. ε = 1e-12 throughout; times do not depend on ε."]
    return row


def large(n_clusters: int, limit: float, name: str, once: bool, settings: Settings) -> Benchmark:
    """Ours alone, each time in a process of its own, whose peak memory counts."""
    k, m = settings.size(n_clusters, 12), settings.size(100, 8)
    seconds, peaks = [], []
    for _ in range(1 if once else settings.runs):
        told = process("-m", "benchmarks.hitting", str(k), str(m))
        result = json.loads(told.splitlines()[-1])
        seconds.append(result["seconds"])
        peaks.append(result["peak_gib"])
    work = Work("block elimination (GTH)", lambda: None, ours=True, extra={"peak_gib": max(peaks)})
    row = Benchmark(
        "hitting", name, f"N = {k * m:,} (K = {k:,}, M = {m}), ε = 1e-12", "solves", [summary(work, seconds)]
    )
    row.marks = [
        Mark(f"≤ {limit:g} s", row.entries[0]["median"], limit, at_least=False),
        Mark("≤ 16 GiB", max(peaks), 16.0, at_least=False),
    ]
    row.notes = ["A single run, no median: it takes minutes."] if once else []
    return row


def alone(n_clusters: int, cluster_size: int) -> None:
    """Solve once and print the seconds and the peak memory of this process."""
    graph, target = circulant(n_clusters, cluster_size)
    P = sp.csr_array(graph.to_scipy())
    begin = time.perf_counter()
    h = hitting_times(P, target, graph.clusters)
    seconds = time.perf_counter() - begin
    assert np.isfinite(h).all()
    print(json.dumps({"seconds": seconds, "peak_gib": peak_gib()}))


ROWS = {
    "hitting_2000": partial(compared, 20, 100, 0.015, "hitting_2000"),
    "hitting_10000": partial(compared, 100, 100, 0.110, "hitting_10000"),
    "hitting_100000": partial(large, 1000, 10.0, "hitting_100000", False),
    "hitting_1000000": partial(large, 10_000, 240.0, "hitting_1000000", True),
}

if __name__ == "__main__":
    alone(int(sys.argv[1]), int(sys.argv[2]))
