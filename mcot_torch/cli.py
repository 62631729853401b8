"""train.py and evaluate.py: read the command line, then import what is heavy, run it, and end with a status.

0: done. 2: bad input, or a folder or disk that cannot be written: one line on stderr, no traceback. 130: interrupted.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from mcot_torch.errors import InputError, NonFiniteError

__all__ = ["evaluate", "train"]


def train(argv: Sequence[str] | None = None) -> int:
    """`train.py` and `mcot-train`; returns the exit status."""
    prog, words = _command(argv)

    def work() -> None:
        from mcot_torch.config import parse_train

        config = parse_train(words, prog)
        from mcot_torch.pipeline import run

        run(config, [prog, *words])

    return _status(work, prog, "the same command continues where this one stopped")


def evaluate(argv: Sequence[str] | None = None) -> int:
    """`evaluate.py` and `mcot-evaluate`; returns the exit status."""
    prog, words = _command(argv)

    def work() -> None:
        from mcot_torch.config import parse_evaluate

        options = parse_evaluate(words, prog)
        from mcot_torch.folders import find_runs

        folders = find_runs(options.run)
        if len(folders) > 1:
            from mcot_torch.report.compare import compare_runs

            compare_runs(folders, options)
            return
        from mcot_torch.report import evaluate_run

        evaluate_run(folders[0], options.walks, options.seed, options.figures, device=options.device)

    return _status(work, prog, "the same command starts it again")


def _command(argv: Sequence[str] | None) -> tuple[str, list[str]]:
    """Name of the program and its arguments."""
    return Path(sys.argv[0]).name or "mcot_torch", list(sys.argv[1:] if argv is None else argv)


def _status(work: Callable[[], None], prog: str, comfort: str) -> int:
    """Do the work; what a user can mend is told in one line."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.excepthook = _of_a_thread
    try:
        work()
        return 0
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


def _of_a_thread(error: threading.ExceptHookArgs) -> None:
    """A full disk in TensorBoard's thread is raised again where the next event is added: once is enough to tell it."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM, as a cluster's scheduler sends it, is Ctrl-C."""
    raise KeyboardInterrupt


def _tell(prog: str, message: str, status: int) -> int:
    line = " ".join(message.split())  # and nothing in it that a terminal would obey, such as a state's name from a file
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    print(f"{prog}: {line}", file=sys.stderr)
    return status
