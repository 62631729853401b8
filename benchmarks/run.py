"""python -m benchmarks.run [walks|hitting|pretrain|rollout|ppo|distill|pipeline|scaling|large|all|docs]: measure, or write it up.

Each row prints a table (median, quartiles, work a second, how many times ours) and writes JSON under results/benchmarks.
`all` keeps the rows that it finds there, so that it can be stopped and continued; --again measures them anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

STAGES = ("walks", "hitting", "pretrain", "rollout", "ppo", "distill", "pipeline", "scaling", "large")
_CPU_ONLY = ("hitting", "large")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", allow_abbrev=False, description=__doc__.split("\n\n")[1]
    )
    parser.add_argument(
        "what", nargs="?", default="all", choices=(*STAGES, "all", "docs"), help="a stage, all of them, or docs"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that everything runs; no figures worth quoting"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch and BLAS; the numba loops use one")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each entry, at least 5")
    parser.add_argument(
        "--nanogpt", type=Path, help="nanoGPT's checkout or its model.py; without it that peer is skipped"
    )
    parser.add_argument("--again", action="store_true", help="with all: measure rows that are there already")
    parser.add_argument(
        "--out", type=Path, help="folder of the JSON; by default results/benchmarks, or runs/benchmarks_quick"
    )
    options = parser.parse_args(argv)
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}; it must be at least 1")
    if options.runs < 5 and not options.quick:
        parser.error(f"--runs is {options.runs}; medians need at least 5 (or --quick)")
    if options.out is None:
        options.out = Path("runs/benchmarks_quick" if options.quick else "results/benchmarks")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 if a row failed, or 2 for bad input."""
    options = parse(argv)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # read by the libraries when they are imported, which is below
    import torch

    from mcot_torch.errors import InputError
    from mcot_torch.system.machine import settle

    settle(options.threads)
    try:
        if options.what == "docs":
            from benchmarks.documentation import write

            print(write(options.out))
            return 0
        if options.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda, and torch sees no CUDA device; use --device cpu")
        return measure(options)
    except InputError as error:
        print(f"benchmarks.run: error: {error}", file=sys.stderr)
        return 2


def measure(options: argparse.Namespace) -> int:
    """Measure the rows asked for; one that fails is told and the others go on."""
    from benchmarks.timing import Settings, lines, load, save
    from mcot_torch.errors import InputError

    settings = Settings(
        options.device,
        options.quick,
        options.threads,
        min(options.runs, 2) if options.quick else options.runs,
        options.nanogpt,
    )
    failed = 0
    for stage in STAGES if options.what == "all" else (options.what,):
        if options.device == "cuda" and stage in _CPU_ONLY:
            print(f"{stage}: runs on the CPU whatever the device; measure it with --device cpu")
            continue
        for name, row_of in import_module(f"benchmarks.{stage}").ROWS.items():
            path = options.out / options.device / f"{name}.json"
            if options.what == "all" and path.exists() and not options.again:
                print(f"{name}: kept ({path}; --again measures it anew)")
                continue
            begin = time.perf_counter()
            try:
                row = row_of(settings)
            except InputError:
                raise
            except Exception:  # a peer's failure must not cost the other rows
                traceback.print_exc()
                print(f"{name}: failed")
                failed = 1
                continue
            save(row, settings, options.out)
            print(
                "\n".join(
                    lines(
                        next(
                            r
                            for r in load(options.out)
                            if r["name"] == name and r["settings"]["device"] == options.device
                        )
                    )
                )
            )
            print(
                f"    {options.threads} thread(s), {options.device}; {time.perf_counter() - begin:.0f} s -> {path}",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    sys.exit(main())
