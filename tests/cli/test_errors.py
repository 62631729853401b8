"""train.py and evaluate.py on bad input: status 2, one line, nothing written, and nothing heavy imported."""

import subprocess
import sys

import pytest

from mcot_torch import cli
from mcot_torch.errors import InputError

PROBE = """
import sys
from mcot_torch.cli import train
status = train(sys.argv[1:])
assert "lightning" not in sys.modules, "parsing imports Lightning"
assert "matplotlib" not in sys.modules, "parsing imports matplotlib"
raise SystemExit(status)
"""


def test_bad_key_ends_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "train.py").write_text(PROBE)
    result = subprocess.run(
        [sys.executable, "train.py", "--run_dir", "here", "--graph.n_cluster", "8"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == "train.py: error: unknown key --graph.n_cluster; did you mean --graph.n_clusters?\n"
    assert (result.returncode, result.stdout) == (2, "")
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


@pytest.fixture
def told(monkeypatch, capsys):
    """What a command says on stderr when its work ends with an exception."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py"])

    def run(command, *argv):
        status = command(list(argv))
        return status, capsys.readouterr().err

    return run


def ends_with(error):
    def raise_it(*_, **__):
        raise error

    return raise_it


def test_evaluate_of_no_run(told, tmp_path):
    status, line = told(cli.evaluate, str(tmp_path))
    assert status == 2
    assert (
        line
        == f"train.py: error: {tmp_path} holds no run (no config.yaml); train.py makes one, by default in runs/default\n"
    )


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a is b;\n  use c"), 2, "error: a is b; use c"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues where this one stopped"),
        (
            PermissionError(13, "Permission denied", "/root/runs"),
            2,
            "error: /root/runs: Permission denied; nothing is half-written: choose another folder or free some space, then "
            "the same command continues where this one stopped",
        ),
        (
            OSError(28, "No space left on device"),
            2,
            "error: No space left on device; nothing is half-written: choose another folder or free some space, then the "
            "same command continues where this one stopped",
        ),
    ],
)
def test_what_ends_a_run(told, monkeypatch, error, status, line):
    monkeypatch.setattr("mcot_torch.runs.config.parse_train", ends_with(error))
    assert told(cli.train) == (status, f"train.py: {line}\n")


def test_a_bug_keeps_its_traceback(told, monkeypatch):
    monkeypatch.setattr("mcot_torch.runs.config.parse_train", ends_with(OSError("a library's own")))
    with pytest.raises(OSError, match="a library's own"):
        told(cli.train)
