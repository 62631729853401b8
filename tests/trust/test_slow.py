"""The long ones: kills at random moments of every stage; and a taste of the fuzzing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(*words: str) -> str:
    """The output of one of the programs in tools/."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / words[0]), *words[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_thirty_kills_in_every_stage():
    """Whatever differs from the run left alone ends the script; it counts the kills and names the places it spared."""
    told = script("kills.py", "--kills", "30", "--seed", "1")
    survived, tried = map(int, re.search(r"(\d+) of (\d+) SIGKILL survived, spared: nothing$", told.strip()).groups())
    assert survived == tried >= 30


@pytest.mark.slow
def test_signals_in_every_stage():
    told = script("kills.py", "--kills", "8", "--seed", "2", "--signal", "TERM")
    assert int(re.search(r"(\d+) of \1 SIGTERM survived", told)[1]) >= 8


@pytest.mark.slow
def test_a_taste_of_fuzzing():
    told = script("fuzz.py", "--inputs", "150")
    readers = ["edge list", "graph", "run folder", "state", "GraphML", "Matrix Market", "SciPy", "pandas"]
    assert re.findall(r"^(.*?) +150 inputs", told, re.MULTILINE) == readers
