"""train.py and evaluate.py: read the command line, then import what is heavy, run it, and end with a status.

0: done. 2: bad input, or a folder or disk that cannot be written: one line on stderr, no traceback. 130: interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mcot_torch.errors import InputError, NonFiniteError
from mcot_torch.launch import LOST, is_rank, launch, lost_another

__all__ = ["evaluate", "status", "train"]


def train(argv: Sequence[str] | None = None) -> int:
    """`train.py` and `mcot-train`; returns the exit status."""
    prog, words = _command(argv)

    def work() -> int:
        from mcot_torch.config import parse_train

        config = parse_train(words, prog)
        if config.trainer.devices > 1 and not is_rank(os.environ):
            return launch(prog, words, config.trainer.devices)
        from mcot_torch.pipeline import run

        run(config, [prog, *words])
        return 0

    return status(work, prog, "the same command continues where this one stopped")


def evaluate(argv: Sequence[str] | None = None) -> int:
    """`evaluate.py` and `mcot-evaluate`; returns the exit status."""
    prog, words = _command(argv)

    def work() -> int:
        from mcot_torch.config import parse_evaluate

        options = parse_evaluate(words, prog)
        folder = Path(options.run)
        if not (folder / "config.yaml").is_file():
            raise InputError(f"{folder} holds no run (no config.yaml); train.py makes one, by default in runs/default")
        from mcot_torch.report import evaluate_run

        evaluate_run(folder, options.walks, options.seed, options.figures, device=options.device)
        return 0

    return status(work, prog, "the same command starts it again")


def _command(argv: Sequence[str] | None) -> tuple[str, list[str]]:
    """Name of the program and its arguments."""
    return Path(sys.argv[0]).name or "mcot_torch", list(sys.argv[1:] if argv is None else argv)


def status(work: Callable[[], int], prog: str, comfort: str) -> int:
    """Do the work; what a user can mend is told in one line."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return work()
    except (InputError, NonFiniteError) as error:
        return _tell(prog, f"error: {error}", 2)
    except OSError as error:
        if error.errno is None:  # not the operating system's: a library's own, with a traceback worth seeing
            raise
        place = f"{error.filename}: " if error.filename else ""
        cure = "choose another folder or free some space"
        return _tell(prog, f"error: {place}{error.strerror}; nothing is half-written: {cure}, then {comfort}", 2)
    except KeyboardInterrupt:
        return _tell(prog, f"interrupted; {comfort}", 130)
    except RuntimeError as error:
        if not lost_another(error, os.environ):
            raise
        return LOST  # who started the ranks tells which one ended, and why


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM, as a cluster's scheduler sends it, is Ctrl-C."""
    raise KeyboardInterrupt


def _tell(prog: str, message: str, status: int) -> int:
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return status
