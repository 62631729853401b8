"""`python -m mcot_torch.estimation`: from observed sequences or reasoning traces to a graph and a report.

    python -m mcot_torch.estimation trajectories FILE      one sequence of states a line, by name
    python -m mcot_torch.estimation traces FILE.jsonl      {"id": ..., "steps": [text, ...], "correct": true} a line

The report is printed and written to a folder (estimates/FILE, or --out) as report.md and report.json; where the data are
metastable, so are graph.npz, which train.py takes, and graph.png. Where they are not, the report says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mcot_torch.cli.status import exit_status
from mcot_torch.errors import InputError

if TYPE_CHECKING:
    from mcot_torch.estimation.texts import Embedding
    from mcot_torch.graphs.graph import MetastableGraph

_PROG = "python -m mcot_torch.estimation"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("file")
    both.add_argument(
        "--clusters", type=int, metavar="K", help="number of clusters; the widest gap in the spectrum decides"
    )
    both.add_argument(
        "--method", choices=["spectral", "pcca"], default="spectral", help="how states are put into clusters"
    )
    both.add_argument(
        "--min_visits", type=int, default=10, metavar="N", help="states left less often are left out (10)"
    )
    both.add_argument("--draws", type=int, default=200, metavar="N", help="kernels drawn for the interval (200)")
    both.add_argument("--seed", type=int, default=0)
    both.add_argument("--out", metavar="FOLDER", help="folder of the report (estimates/ and the file's name)")
    one = commands.add_parser("trajectories", parents=[both], help="sequences of named states")
    one.add_argument("--start", default="cluster:0", help="of the hitting time, as task.start of train.py")
    one.add_argument("--target", default="auto", help="of the hitting time, as task.target of train.py")
    two = commands.add_parser("traces", parents=[both], help="reasoning traces, JSON lines")
    two.add_argument("--kinds", type=int, metavar="N", help="kinds of steps; one in 300 steps, at most 200")
    two.add_argument("--keep_numbers", action="store_true", help="numbers name the state; else they are masked")
    two.add_argument(
        "--embedding", metavar="E", help="FILE.npy, one row a step, or MODULE:FUNCTION from texts to an array; TF-IDF"
    )
    two.add_argument("--no_kinetic_map", action="store_true", help="cluster the embedding as it is")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and estimate a graph; returns the exit status, 0 also where nothing is metastable."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: _run(options), _PROG)


def _run(options: argparse.Namespace) -> int:
    from mcot_torch.estimation.estimate import Estimate, EstimationConfig, estimate
    from mcot_torch.estimation.traces import TraceAnalysis, analyse_traces, read_traces
    from mcot_torch.estimation.trajectories import read_trajectories
    from mcot_torch.graphs.task import TaskConfig
    from mcot_torch.report.estimation import estimate_parts, show, trace_parts, write_estimate
    from mcot_torch.system.progress import say

    config = EstimationConfig(options.clusters, options.method, options.min_visits, options.draws, options.seed)
    estimated: Estimate | TraceAnalysis
    if options.command == "trajectories":
        estimated = found = estimate(
            read_trajectories(options.file), config, TaskConfig(start=options.start, target=options.target)
        )
        parts = estimate_parts(found)
    else:
        embedding = None if options.embedding is None else read_embedding(options.embedding)
        estimated = traces = analyse_traces(
            read_traces(options.file),
            options.kinds,
            embedding,
            options.keep_numbers,
            not options.no_kinetic_map,
            config,
        )
        found, parts = traces.estimate, trace_parts(traces)
    show(parts)
    folder = Path(options.out) if options.out else Path("estimates") / Path(options.file).stem
    for file in write_estimate(estimated, f"{options.command.capitalize()} of {Path(options.file).name}", folder):
        say(f"Written  {file}")
    if found.graph is not None:
        say(f"Train    {train_command(found.graph, folder)}")
    return 0


def train_command(graph: MetastableGraph, folder: Path) -> str:
    """How to train on the estimated graph; with an ε_max of its own where the hard steps are above the default one."""
    from mcot_torch.graphs.build import GraphConfig, resolve_epsilon_max

    words = f"python train.py --graph.family saved --graph.path {folder / 'graph.npz'} --name {folder.name}"
    try:
        resolve_epsilon_max(GraphConfig(), graph)
    except InputError:
        words += (
            f" --graph.epsilon_max {min(3 * graph.epsilon, (graph.epsilon + min(graph.epsilon_limit, 1.0)) / 2):.3g}"
        )
    return words


def read_embedding(text: str) -> Embedding:
    """An array from FILE.npy, or a function from MODULE:FUNCTION, MODULE in the working directory or installed."""
    import importlib

    import numpy as np

    if text.endswith(".npy"):
        try:
            array: Embedding = np.load(text, allow_pickle=False)
        except FileNotFoundError:
            raise InputError(f"{text}: no such file") from None
        except ValueError as error:
            raise InputError(f"{text}: not a readable .npy file ({str(error).splitlines()[0]})") from None
        return array
    module, colon, name = text.partition(":")
    if not colon:
        raise InputError(f"embedding is {text!r}; give FILE.npy or MODULE:FUNCTION")
    sys.path.insert(0, "")
    try:
        function: Embedding = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"embedding is {text!r}: {error}") from None
    return function
