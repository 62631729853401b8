"""Transitions a second of the samplers on the default graph: counts without walks, and explicit walkers.

python benchmarks/walks.py: medians of 7 runs on one thread, one warm-up run apart, the two interleaved.
"""

from __future__ import annotations

import statistics
import time

import torch

from mcot_torch.graphs import GraphConfig, build_graph
from mcot_torch.walks import StepTable, TableWalker, walk_counts

STEPS, COUNTED, EXPLICIT, RUNS = 256, 1_048_576, 16_384, 7


def main() -> None:
    torch.set_num_threads(1)
    table = StepTable.from_graph(build_graph(GraphConfig()))
    draw = torch.Generator().manual_seed(0)
    starts = torch.full((table.n_states,), COUNTED / table.n_states, dtype=torch.float64).round()
    walkers = torch.randint(table.n_states, (EXPLICIT,), generator=draw)
    work = {
        f"counts of {int(starts.sum()):,} walks": lambda: walk_counts(table, starts, STEPS, draw).sum(),
        f"{EXPLICIT:,} explicit walkers": lambda: TableWalker(table, walkers, draw).advance(STEPS),
    }
    transitions = dict(zip(work, (float(starts.sum()) * STEPS, EXPLICIT * STEPS), strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for run in range(RUNS + 1):
        for name, call in work.items():
            begin = time.perf_counter()
            call()
            if run:
                seconds[name].append(time.perf_counter() - begin)
    for name, times in seconds.items():
        print(f"{name:<28} {transitions[name] / statistics.median(times) / 1e6:10,.0f} million transitions a second")


if __name__ == "__main__":
    main()
