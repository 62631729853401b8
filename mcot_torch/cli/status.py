"""The one rule for exit statuses: how every command of the package ends.

0: done. 1: a bug, with its traceback, or whatever status the command itself gives. 2: bad input, training that diverged, or
a folder or disk that cannot be written: one line on stderr, no traceback. 130: interrupted. 141: the reader of the output
has gone, as in `train.py | head`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from mcot_torch.errors import InputError, NonFiniteError
from mcot_torch.system.launch import LOST, is_rank, lost_another

__all__ = ["exit_status"]


def exit_status(
    work: Callable[[], dict[str, Any] | int], prog: str, resume: str | None = None, as_json: bool = False
) -> int:
    """Do the work of a command and turn its end into an exit status; errors that a user can fix become one line on stderr.

    Args:
        work: the command; returns an exit status, or a result that is printed with `as_json`.
        prog: name of the program, which begins every line.
        resume: how to go on after an end that loses nothing, such as "the same command starts it again"; None where there
            is nothing to resume.
        as_json: print the result as JSON on stdout.
    """
    hint = "" if resume is None else f"; {resume}"
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
        return _tell(prog, f"stopped: nobody reads the output any more{hint}", 141)
    except (InputError, NonFiniteError) as error:
        return _tell(prog, f"error: {error}", 2)
    except OSError as error:
        if error.errno is None:  # not the operating system's: a library's own, with a traceback worth seeing
            raise
        place = f"{error.filename}: " if error.filename else ""
        fix = "nothing is half-written: choose another folder or free some space, then"
        return _tell(prog, f"error: {place}{error.strerror}" + ("" if resume is None else f"; {fix} {resume}"), 2)
    except KeyboardInterrupt:
        return _tell(prog, f"interrupted{hint}", 130)
    except RuntimeError as error:
        if not lost_another(error, os.environ):
            raise
        return _ended(LOST)  # who started the ranks tells which one ended, and why


def _ended(status: int) -> int:
    """The status of an error; a rank ends here and now.

    Were the error let go of, the tensors of an unfinished all-reduce in its frames would be freed. That may never end, because
    it waits for gloo's thread, which waits for Python's lock.
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
