"""train.py and evaluate.py: read the command line, then import what is heavy, run it, and end with a status.

0: done. 1: a bug, with its traceback. 2: bad input, training that diverged, or a folder or disk that cannot be written: one
line on stderr, no traceback. 130: interrupted. 141: who read the output has gone, as in `train.py | head`.

With --json, stdout gets what evaluation.json holds and nothing else; all that is meant for people goes to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from mcot_torch.errors import InputError, NonFiniteError
from mcot_torch.system.launch import LOST, is_rank, launch, lost_another

__all__ = ["evaluate", "status", "train"]


def train(argv: Sequence[str] | None = None) -> int:
    """`train.py` and `mcot-train`; returns the exit status."""
    prog, words, as_json = _command(argv)

    def work() -> dict[str, Any] | int:
        from mcot_torch.runs.config import parse_train

        config = parse_train(words, prog)
        if config.trainer.devices > 1 and not is_rank(os.environ):
            return launch(prog, [*words, "--json"] if as_json else words, config.trainer.devices)
        with _people_on_stderr(as_json):
            from mcot_torch.runs.pipeline import run
            from mcot_torch.system.files import read_json

            folder = run(config, [prog, *words])
            first = os.environ.get("RANK", "0") == "0"
            return {"run": str(folder), **read_json(folder / "evaluation.json")} if first else 0

    return status(work, prog, "the same command continues where this one stopped", as_json)


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
                from mcot_torch.report.compare.groups import compare_runs

                return as_dict(compare_runs(folders, options))
            from mcot_torch.runs.evaluate import evaluate_run

            result = evaluate_run(folders[0], options.walks, options.seed, options.figures, device=options.device)
            return {"run": str(folders[0]), **result}

    return status(work, prog, "the same command starts it again", as_json)


def _command(argv: Sequence[str] | None) -> tuple[str, list[str], bool]:
    """Name of the program, its arguments, and whether --json is among them: it is no part of a run's configuration."""
    words = list(sys.argv[1:] if argv is None else argv)
    return Path(sys.argv[0]).name or "mcot_torch", [w for w in words if w != "--json"], "--json" in words


def _people_on_stderr(as_json: bool) -> redirect_stdout[Any] | nullcontext[None]:
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def status(work: Callable[[], dict[str, Any] | int], prog: str, comfort: str, as_json: bool = False) -> int:
    """Do the work, which ends with a status or a result to print; what a user can mend is told in one line."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.excepthook = _of_a_thread
    try:
        result = work()
        if isinstance(result, int):
            return result
        if as_json:
            print(json.dumps(result, indent=2, ensure_ascii=False))
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again when it ends
        return _tell(prog, f"stopped: nobody reads the output any more; {comfort}", 141)
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
        return _ended(LOST)  # who started the ranks tells which one ended, and why


def _ended(status: int) -> int:
    """The status of an error; a rank ends here and now.

    Were the error let go of, DDP's buffers in its frames would be freed, which may never end: that waits for gloo's thread,
    which waits for Python's lock.
    """
    if is_rank(os.environ):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _of_a_thread(error: threading.ExceptHookArgs) -> None:
    """A full disk in TensorBoard's thread is raised again where the next event is added: once is enough to tell it."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM, as a cluster's scheduler sends it, is Ctrl-C."""
    raise KeyboardInterrupt


def _tell(prog: str, message: str, status: int) -> int:
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return _ended(status)
