"""`python -m mcot_torch.assumptions GRAPH`: the table of A1 to A5 for a graph in a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mcot_torch.chains import assumptions
from mcot_torch.chains.assumptions import check_assumptions, shown_offenders, verdict
from mcot_torch.cli.status import exit_status
from mcot_torch.errors import InputError
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task, TaskConfig, build_task

__all__ = ["main"]


def _load(path: Path) -> tuple[MetastableGraph, Task | None]:
    """The graph in a file, and the task: the configuration's, else the default one where the graph has it."""
    if path.suffix in (".yaml", ".yml"):
        from mcot_torch.graphs.build import build_graph
        from mcot_torch.runs.config import load_config

        config = load_config(path)
        graph = build_graph(config.graph)
        return graph, build_task(config.task, graph)
    if path.suffix in (".csv", ".tsv", ".tab"):
        from mcot_torch.graphs.formats.edge_list import read_edge_list

        graph = read_edge_list(path)
    elif path.suffix in (".npz", ".graphml", ".mtx"):
        from mcot_torch.graphs.formats.interchange import load_graph

        graph = load_graph(path)
    else:
        raise InputError(f"{path}: give a graph.npz, an edge list (.csv, .tsv) or a configuration (.yaml)")
    return graph, build_task(TaskConfig(), graph)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m mcot_torch.assumptions GRAPH`; returns the exit status."""
    prog, words = "python -m mcot_torch.assumptions", list(sys.argv[1:] if argv is None else argv)
    if words in (["-h"], ["--help"]):
        print(assumptions.__doc__)
        return 0
    if len(words) != 1:
        print(f"{prog}: error: give one file: a graph.npz, an edge list or a configuration", file=sys.stderr)
        return 2
    return exit_status(lambda: _show(Path(words[0])), prog)


def _show(path: Path) -> int:
    """Print the table of A1 to A5 for the graph in a file."""
    graph, task = _load(path)
    from rich.table import Table

    from mcot_torch.system.progress import console

    heading = f"{graph.n_states:,} states, {graph.n_clusters} clusters, ε = {graph.epsilon:g}"
    table = Table("", "assumption", "verdict", "measured", "broken by", title=heading, title_justify="left")
    for check in check_assumptions(graph, task):
        table.add_row(check.name, check.title, verdict(check), check.text, shown_offenders(check.offenders, 4))
    console.print(table, highlight=False, markup=False)
    return 0
