"""`python -m mcot_torch.sweep SPEC`: many runs, a table, a figure, a comparison; `--help` says the rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mcot_torch.cli.status import exit_status
from mcot_torch.errors import InputError
from mcot_torch.system.arguments import Parser

__all__ = ["SweepOptions", "main"]

PROG = "python -m mcot_torch.sweep"


@dataclass
class SweepOptions:
    """What a sweep is asked to do."""

    spec: str
    """YAML file of what varies, such as configs/sweep.yaml."""
    engine: Literal["local", "ray"] = "local"
    """ "local" runs processes on this machine; "ray" hands them to Ray Tune (a cluster where RAY_ADDRESS names one)."""
    jobs: int | None = None
    """Runs at a time; null means as many as there are CPUs for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and carry the sweep out; returns the exit status, 1 if a run failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: _sweep(words), PROG, "the same command continues where this one stopped")


def _sweep(words: Sequence[str]) -> int:
    options: SweepOptions = Parser(PROG, "Run train.py on every point of a sweep.", SweepOptions).read(words)
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"jobs is {options.jobs}; it must be at least 1")
    from mcot_torch.runs.sweeps.spec import SweepPoint, read_spec

    sweep = read_spec(Path(options.spec))
    from mcot_torch.runs.sweeps.engines import ENGINES, default_jobs, is_done
    from mcot_torch.runs.sweeps.results import collect, compare, last_line, table, write
    from mcot_torch.system.progress import console, progress_bar, say

    waiting = [run for run in sweep.runs if not is_done(run)]
    jobs = options.jobs or default_jobs(sweep.runs)
    kept = f", {len(sweep.runs) - len(waiting)} of them done already" if len(waiting) < len(sweep.runs) else ""
    say(f"Sweep    {sweep.folder}: {len(sweep.runs)} runs{kept}; {jobs} at a time, engine {options.engine}")
    begin, failed, width = time.perf_counter(), list[str](), max(len(run.name) for run in sweep.runs)
    with progress_bar("runs", len(waiting)) as bar:
        ended = 0

        def tell(run: SweepPoint, code: int) -> None:
            nonlocal ended
            ended += 1
            bar.update(ended)
            if code != 0:
                failed.append(run.name)
            note = "done" if code == 0 else f"FAILED: {last_line(sweep, run)}"
            say(f"{time.perf_counter() - begin:7.1f} s  {run.name:<{width}}  {note}")

        if waiting:
            ENGINES[options.engine](sweep, waiting, jobs, tell)
    rows = collect(sweep, failed)
    console.print(table(sweep, rows))
    for path in write(sweep, rows):
        say(f"wrote    {path}")
    if line := compare(sweep):
        say(line)
    if failed:
        say(f"{len(failed)} of {len(sweep.runs)} runs failed; what they printed is in {sweep.folder / 'logs'}")
    return 1 if failed else 0
