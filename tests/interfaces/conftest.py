"""What the tests of interfaces share: the two commands, run in this process as if from the command line."""

from __future__ import annotations

import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(monkeypatch, capsys) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs train.py or evaluate.py with its arguments; returns the exit status, stdout and stderr.

    The script itself is run, so that no test depends on the module that its work stands in. It runs in this process, since
    a process of its own would take seconds to import torch.
    """

    def call(script: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    before, hook = signal.getsignal(signal.SIGTERM), threading.excepthook
    yield call
    signal.signal(signal.SIGTERM, before)
    threading.excepthook = hook
