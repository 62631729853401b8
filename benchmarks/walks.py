"""Walks of the graph: explicit walkers and counts, against QuantEcon, deeptime and torch.multinomial."""

from __future__ import annotations

from unittest import mock

import torch

from benchmarks.timing import Benchmark, Mark, Settings, Work, copy_bandwidth, peer, race
from mcot_torch.graphs import GraphConfig, build_graph
from mcot_torch.sampling import walks
from mcot_torch.sampling.walks import StepTable, TableWalker, walk_counts

# float64 uniform written and read, column and fraction written and read, two gathers of 8 bytes, state read and written,
# the index taken written and read, the path written: the traffic of the torch loop where the table stays in the cache
_BYTES = 8 * 14


def walk_rates(settings: Settings) -> Benchmark:
    """4,096 walkers on 2,000 states."""
    device = settings.device
    k, m = settings.size(20, 4), settings.size(100, 8)
    walkers = settings.size(4096 if device == "cpu" else 2**22, 64)
    many, steps = settings.size(2**20, 4096), settings.size(256 if device == "cpu" else 64, 8)
    graph = build_graph(GraphConfig(n_clusters=k, cluster_size=m, epsilon=1e-3))
    table = StepTable.from_graph(graph, device)
    draw = torch.Generator(device).manual_seed(0)
    start = torch.randint(table.n_states, (walkers,), generator=draw, device=device)
    few_starts = torch.bincount(start, minlength=table.n_states).double()
    many_starts = torch.full((table.n_states,), many // table.n_states, dtype=torch.float64, device=device)

    def rows(n: int) -> object:
        state = start
        for _ in range(n):
            column = torch.multinomial(table.probabilities[state], 1, generator=draw)
            state = table.successors[state].gather(1, column)[:, 0]
        return state

    def in_numpy() -> object:
        with mock.patch.object(walks, "_compiled", lambda: None):  # noqa: PT008
            return TableWalker(table, start, draw).advance(steps)

    loop = "torch" if device == "cuda" else "numba" if walks._compiled() else "NumPy"
    explicit, counted = f"explicit walkers ({loop})", f"counts of {int(many_starts.sum()):,} walks"
    works = [Work(explicit, lambda: TableWalker(table, start, draw).advance(steps), walkers * steps, True)]
    if loop == "numba":
        works.append(Work("explicit walkers (NumPy)", in_numpy, walkers * steps, True))
    works += [
        Work("counts of the same walkers", lambda: walk_counts(table, few_starts, steps, draw), walkers * steps, True),
        Work(counted, lambda: walk_counts(table, many_starts, steps, draw), float(many_starts.sum()) * steps, True),
        Work("torch.multinomial", lambda: rows(8), walkers * 8, note="on lists of successors"),
    ]
    skipped: list[str] = []
    if device == "cpu" and (quantecon := peer("quantecon", skipped)):
        chain, begin = quantecon.MarkovChain(graph.to_scipy().tocsr()), start.numpy()
        works.append(Work("QuantEcon simulate", lambda: chain.simulate(steps, init=begin), walkers * steps))
    if device == "cpu" and (deeptime := peer("deeptime.markov.msm", skipped)):
        model, length = deeptime.MarkovStateModel(graph.kernel()), settings.size(2000, 20)
        works.append(Work("deeptime simulate", lambda: model.simulate(length, start=0), length))
    setup = f"K = {k}, M = {m}, ε = 1e-3; {walkers:,} walkers of {steps} steps"
    row = Benchmark("walks", "walks", setup, "steps", race(works, settings), skipped=skipped)
    fast, count = row.entry(explicit), row.entry(counted)
    assert fast
    assert count
    if device == "cuda":
        fast["bandwidth_share"] = fast["rate"] * _BYTES / copy_bandwidth(device)
        row.marks = [Mark("explicit walkers ≥ 5 G steps/s", fast["rate"], 5e9)]
    else:
        row.marks = [Mark("≥ 3 x QuantEcon", row.ratio(explicit, "QuantEcon simulate"), 3.0)]
    row.marks.append(Mark("counts-only faster than explicit walkers", count["rate"] / fast["rate"], 1.0))
    row.notes = [
        "Below 64 walkers a state the counts are those of walkers that are moved one by one, and cost about what explicit "
        "ones cost; above it no walker is kept and the cost no longer grows with their number.",
        "numba and NumPy read the same uniforms and give the same paths, bit for bit.",
    ]
    return row


ROWS = {"walks": walk_rates}
