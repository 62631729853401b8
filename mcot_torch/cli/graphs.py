"""`python -m mcot_torch.graphs`: graphs from one file format to another, and the table of the puzzles.

    python -m mcot_torch.graphs convert IN OUT [--clusters FILE] [--threshold P]
    python -m mcot_torch.graphs puzzles

convert reads .npz (a run's graph.npz or SciPy's), .graphml, .mtx, .csv and .tsv, writes the format of OUT's suffix
(.scipy.npz for SciPy's) and says what that cannot hold. puzzles prints which of A1 to A5 each puzzle of configs/ satisfies.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mcot_torch.cli.status import exit_status

PUZZLES = ("hanoi", "rooms", "sliding", "rewriting", "river")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and convert a graph or print the table of puzzles; returns the exit status."""
    prog = "python -m mcot_torch.graphs"
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="from one file format to another")
    convert.add_argument("source", metavar="IN")
    convert.add_argument("target", metavar="OUT")
    convert.add_argument("--clusters", metavar="FILE", help="of an edge list: lines of state, cluster")
    convert.add_argument("--threshold", type=float, metavar="P", help="steps less probable than this are hard")
    puzzles = commands.add_parser("puzzles", help="table of the puzzles and their assumptions, in Markdown")
    puzzles.add_argument("--configs", default="configs", metavar="FOLDER", help="where hanoi.yaml, rooms.yaml ... are")
    options = parser.parse_args(argv)

    def work() -> int:
        if options.command == "puzzles":
            print(puzzle_table(Path(options.configs)))
        else:
            _convert(options.source, options.target, options.clusters, options.threshold)
        return 0

    return exit_status(work, prog)


def _convert(source: str, target: str, clusters: str | None, threshold: float | None) -> None:
    from mcot_torch.graphs.formats.interchange import LOSSES, load_graph, save_graph, suffix_of

    suffix = suffix_of(target)  # a mistyped name is told before anything is read
    graph = load_graph(source, clusters, threshold)
    written = save_graph(graph, target)
    print(
        f"{' and '.join(map(str, written))}: {graph.n_states:,} states, {graph.n_clusters} clusters, ε = {graph.epsilon:g}"
    )
    if LOSSES[suffix]:
        print(f"not in the file: {LOSSES[suffix]}")


def puzzle_table(folder: Path) -> str:
    """Markdown: sizes of every puzzle, what A1 to A5 come to on its configuration, and its exact hitting times."""
    from mcot_torch.chains import hitting_time
    from mcot_torch.chains.assumptions import check_assumptions
    from mcot_torch.graphs.build import build_graph, resolve_epsilon_max
    from mcot_torch.graphs.task import build_task
    from mcot_torch.runs.config import load_config

    head = "puzzle | N | K | M | hard steps | ε | A1 | A2 | A3 | A4: min q*·M/ε | A5 | E[τ] at ε | at ε_max"
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for name in PUZZLES:
        config = load_config(folder / f"{name}.yaml")
        graph = build_graph(config.graph)
        task = build_task(config.task, graph)
        a1, a2, a3, a4, a5 = check_assumptions(graph, task)
        times = [
            hitting_time(g.to_scipy(), task.start, task.target, g.clusters)
            for g in (graph, graph.with_epsilon(resolve_epsilon_max(config.graph, graph)))
        ]
        cells = [
            name,
            f"{graph.n_states:,}",
            graph.n_clusters,
            graph.cluster_size,
            int(graph.hard.sum()),
            f"{graph.epsilon:g}",
            f"{_holds(a1.passed)} (γ† {a1.constants['gap']:.2g})",
            f"{_holds(a2.passed)} ({a2.constants['edges_per_pair']:.0f} a pair)",
            f"{_holds(a3.passed)} ({a3.constants['hard_steps']:.3g})",
            f"{a4.constants['escape']:.2g}",
            f"{_holds(a5.passed)} ({a5.constants['entries']:.0f} entries)",
            *(f"{time:,.0f}" for time in times),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _holds(passed: bool | None) -> str:
    return "holds" if passed else "fails"
