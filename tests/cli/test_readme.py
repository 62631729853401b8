"""What the README shows is what the tree holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mcot_torch.runs.config import parse_train

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_python_block_is_the_example():
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    assert code.strip() in (ROOT / "examples" / "in_python.py").read_text()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_train_commands_parse(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"`python train\.py ([^`]+)`", README)
    assert len(commands) >= 6
    for words in commands:
        if "--help" not in words:
            parse_train(words.split())


@pytest.mark.slow
def test_python_example_runs():
    command = [sys.executable, "examples/in_python.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [("base", "steps,"), ("tuned", "steps,"), ("student", "hops,")]
    base, tuned, hops = (float(row[1]) for row in rows)
    assert tuned < base / 5
    assert 5 < hops < 10
    assert all(float(row[5]) < 0.05 for row in rows)  # each beside the chain that it should be
    assert [float(row[3].rstrip("x,")) for row in rows] == pytest.approx(
        [1, base / tuned, base / hops], abs=0.2, rel=0.02
    )
