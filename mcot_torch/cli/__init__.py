"""The commands train.py and evaluate.py: read the command line, then import what is expensive, and run it.

With --json, stdout gets what evaluation.json holds and nothing else; text for people goes to stderr. `status.py` holds the
exit statuses of all commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from mcot_torch.cli.status import exit_status
from mcot_torch.system.launch import is_rank, launch

__all__ = ["evaluate", "train"]

_TRAIN = "mcot_torch.cli:train"  # entry point of the ranks that train.py starts


def train(argv: Sequence[str] | None = None) -> int:
    """`train.py` and `mcot-train`; returns the exit status."""
    prog, words, as_json = _command(argv)

    def work() -> dict[str, Any] | int:
        from mcot_torch.runs.config import parse_train

        config = parse_train(words, prog)
        if config.trainer.devices > 1 and not is_rank(os.environ):
            return launch(prog, [*words, "--json"] if as_json else words, config.trainer.devices, _TRAIN)
        with _people_on_stderr(as_json):
            from mcot_torch.runs.pipeline import run
            from mcot_torch.system.files import read_json

            folder = run(config, [prog, *words])
            first = os.environ.get("RANK", "0") == "0"
            return {"run": str(folder), **read_json(folder / "evaluation.json")} if first else 0

    return exit_status(work, prog, "the same command continues where this one stopped", as_json)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """`evaluate.py` and `mcot-evaluate`; returns the exit status."""
    prog, words, as_json = _command(argv)

    def work() -> dict[str, Any]:
        from mcot_torch.runs.config import parse_evaluate

        options = parse_evaluate(words, prog)
        from mcot_torch.runs.folders import find_runs

        folders = find_runs(options.run)
        with _people_on_stderr(as_json):
            if len(folders) > 1:
                from mcot_torch.report.compare.files import as_dict
                from mcot_torch.runs.comparison import compare_runs

                return as_dict(compare_runs(folders, options))
            from mcot_torch.runs.evaluate import evaluate_run

            result = evaluate_run(folders[0], options.walks, options.seed, options.figures, device=options.device)
            return {"run": str(folders[0]), **result}

    return exit_status(work, prog, "the same command starts it again", as_json)


def _command(argv: Sequence[str] | None) -> tuple[str, list[str], bool]:
    """Name of the program, its arguments, and whether --json is among them: it is no part of a run's configuration."""
    words = list(sys.argv[1:] if argv is None else argv)
    return Path(sys.argv[0]).name or "mcot_torch", [w for w in words if w != "--json"], "--json" in words


def _people_on_stderr(as_json: bool) -> redirect_stdout[Any] | nullcontext[None]:
    return redirect_stdout(sys.stderr) if as_json else nullcontext()
