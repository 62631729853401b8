"""Start a command as N ranks of one process group on this machine, and watch the ranks until all have ended.

Each rank is a process with the variables that torchrun would set. Signals go on to all ranks. When a rank fails, the
other ranks are given time to notice and are then ended; the cause is printed once. If this process is killed, the ranks
see their standard input end, save and stop. What a rank runs is an entry point, written "package.module:function".
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["LOST", "child_command", "child_environment", "child_main", "is_rank", "launch", "lost_another"]

_GRACE = 30.0  # seconds in which the other ranks may save and end once one has failed
LOST = 3  # status of a rank that ended because another had gone
_TOLD = (2, 130)  # statuses that come with a line of their own: bad input, interrupted
_LOST = re.compile(r"by peer|broken pipe|remote process exited|connection refused", re.IGNORECASE)


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether this process was started as one of several: by `launch`, by torchrun, or by srun."""
    return "WORLD_SIZE" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def lost_another(error: Exception, environment: Mapping[str, str]) -> bool:
    """Whether an error of a rank only says that another one has gone."""
    return is_rank(environment) and bool(_LOST.search(str(error)))


def launch(prog: str, words: Sequence[str], devices: int, entry: str) -> int:
    """Run the entry point as `prog words` on `devices` ranks of this machine; returns the exit status."""
    environment = {
        **child_environment(),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
    }
    with contextlib.ExitStack() as stack:
        asides = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(devices)]
        ranks = [
            subprocess.Popen(
                child_command(prog, words, entry),
                env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)},
                stdin=subprocess.PIPE,
                stdout=None if r == 0 else subprocess.DEVNULL,
                stderr=None if r == 0 else asides[r],
                start_new_session=True,  # a terminal's Ctrl-C comes once, through here
            )
            for r in range(devices)
        ]
        stack.enter_context(_forwarding(ranks))
        return _status(prog, ranks, asides, _watch(ranks))


def child_command(prog: str, words: Sequence[str], entry: str) -> list[str]:
    """Command line of a process that runs an entry point under the name `prog` and ends when its standard input does.

    Args:
        prog: name of the program in the messages of the process.
        words: arguments of the program.
        entry: "package.module:function"; the function takes no argument and returns the exit status.
    """
    return [
        sys.executable,
        "-P",
        "-c",
        f"from mcot_torch.system.launch import child_main; child_main({prog!r}, {entry!r})",
        *words,
    ]


def child_environment() -> dict[str, str]:
    """This process's environment, in which a child finds this very package."""
    inherited = os.environ.get("PYTHONPATH")
    path = [str(Path(__file__).parents[2]), *([inherited] if inherited else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def child_main(prog: str, entry: str) -> None:
    """Run the entry point in a child process: the parent holds the other end of the standard input while it lives."""
    module, _, function = entry.partition(":")
    main = getattr(importlib.import_module(module), function)

    def follow() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold at the end
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    sys.argv[0] = prog
    sys.exit(main())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _forwarding(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    def forward(number: int, frame: object) -> None:
        for process in ranks:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all ranks; returns the one that failed first, not counting those that only lost another."""
    failed, deadline = None, float("inf")
    while True:
        codes = [process.poll() for process in ranks]
        if failed is None:
            failed = next((r for r, code in enumerate(codes) if code not in (None, 0, LOST)), None)
        if None not in codes:
            return codes.index(LOST) if failed is None and LOST in codes else failed
        if any(codes):
            deadline = min(deadline, time.monotonic() + _GRACE)
        if time.monotonic() > deadline:
            for process in ranks:
                process.kill()
        time.sleep(0.05)


def _status(prog: str, ranks: list[subprocess.Popen[bytes]], asides: Sequence[IO[bytes]], failed: int | None) -> int:
    if failed is None:
        return 0
    if ranks[0].returncode in _TOLD:  # the first rank has said why
        return ranks[0].returncode
    code = ranks[failed].returncode
    asides[failed].seek(0)
    sys.stderr.write(asides[failed].read().decode(errors="replace"))
    if code in _TOLD:
        return code
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    print(
        f"{prog}: error: rank {failed} of {len(ranks)} {how}, and the others were ended; "
        "the same command continues from the last saved state",
        file=sys.stderr,
    )
    return 1
