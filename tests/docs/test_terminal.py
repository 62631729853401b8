"""The terminal user: --json, exit statuses, NO_COLOR, lines instead of bars where nobody watches."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mcot_torch import cli
from mcot_torch.system import progress

ROOT = Path(__file__).resolve().parents[2]
TINY = """
    --graph.n_clusters 4 --graph.cluster_size 6 --graph.epsilon 0.02 --graph.epsilon_max 0.15 --reasoner.kind linear
    --pretrain.steps 300 --pretrain.steps_after_cut 20 --pretrain.transitions 10000000 --stages pretrain,search
    --evaluation.walks 50 --evaluation.figures false"""


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def out(monkeypatch):
    """The console writing into a string; `tty` as given."""

    def to(tty, **environment):
        stream = Terminal() if tty else io.StringIO()
        console = type(progress.console)(
            file=stream, width=100, _environ={"TERM": "xterm-256color", **environment}, legacy_windows=False
        )
        monkeypatch.setattr(progress, "console", console)
        return stream

    return to


def drawn(**kwargs):
    with progress.progress_bar("pretrain", 10, **kwargs) as bar:
        bar.update(10, "a note")
    progress.console.print("[red]done[/red]")


@pytest.mark.parametrize(
    ("tty", "enabled", "environment", "bar", "colour"),
    [
        (True, True, {}, True, True),
        (True, False, {}, False, True),
        (True, True, {"NO_COLOR": "1"}, True, False),
        (True, True, {"TERM": "dumb"}, False, False),
        (False, True, {}, False, False),
        (False, True, {"FORCE_COLOR": "1"}, False, True),  # as in CI: colours in the log, no bars
    ],
)
def test_bars_and_colours(out, tty, enabled, environment, bar, colour):
    stream = out(tty, **environment)
    drawn(enabled=enabled)
    text = stream.getvalue()
    assert ("pretrain" in text and "10/10" in text and "a note" in text) == bar
    assert ("\x1b[31m" in text) == colour
    assert "done" in text


@pytest.mark.parametrize("enabled", [True, False])
def test_a_line_a_minute_where_no_bar_can_be_drawn(out, enabled, monkeypatch):
    """Taken up at step 100 of 1,200; 50 steps in 59 s, 250 in 100: 850 are left at 2.5 a second."""
    stream, now = out(False), [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_bar("pretrain", 1200, enabled) as bar:
        for seconds, done in [(0, 100), (59, 150), (100, 350), (120, 400), (159, 450), (161, 460), (300, 1200)]:
            now[0] = 1000.0 + seconds
            bar.update(done, "loss 1.5")
    lines = [
        "  pretrain 350/1,200, some 0:05:40 left  loss 1.5",  # 100 s / 250 steps · 850 steps
        "  pretrain 460/1,200, some 0:05:31 left  loss 1.5",  # 161 s / 360 steps · 740 steps
        "  pretrain 1,200/1,200, some 0:00:00 left  loss 1.5",
    ]
    assert stream.getvalue().splitlines() == lines * enabled


def test_a_stage_that_has_not_moved_has_no_time_left(out, monkeypatch):
    stream, now = out(False), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_bar("runs", 3) as bar:
        for seconds in (0, 61):
            now[0] = float(seconds)
            bar.update(0)
    assert stream.getvalue() == "      runs 0/3\n"


def test_say_prints_as_it_is(out):
    stream = out(True)
    progress.say("[red]x[/red] " + "long " * 40 + "12.5")
    assert stream.getvalue() == "[red]x[/red] " + "long " * 40 + "12.5\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("json") / "run"
    command = [sys.executable, "train.py", "--json", *TINY.split(), "--run_dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_train_json_is_the_evaluation_and_nothing_else(trained):
    folder, result = trained
    told = json.loads(result.stdout)
    assert told.pop("run") == str(folder)
    assert told == json.loads((folder / "evaluation.json").read_text())
    for word in ("Graph", "pretrain", "search", "How close", "tensorboard --logdir"):
        assert word in result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    assert "\njson" not in (folder / "config.yaml").read_text()  # how it is shown is no part of a run


def test_evaluate_json(trained, capsys):
    folder, _ = trained
    assert cli.evaluate([str(folder), "--json", "--walks", "20"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["run"] == str(folder)
    assert told["evaluation"]["walks"] == 20
    assert "guided" in captured.err


def test_evaluate_without_json_has_its_table_on_stdout(trained, capsys):
    assert cli.evaluate([str(trained[0]), "--walks", "20"]) == 0
    captured = capsys.readouterr()
    assert "guided" in captured.out
    assert captured.err == ""


def test_an_error_leaves_stdout_empty(capsys, tmp_path):
    assert cli.evaluate([str(tmp_path), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "holds no run" in captured.err


@pytest.mark.slow
def test_nobody_reads_any_more(trained):
    """`evaluate.py RUN | true`: one line, no traceback."""
    command = f"{sys.executable} evaluate.py {trained[0]} --walks 20 --figures false | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 141
    assert result.stderr == (
        "evaluate.py: stopped: nobody reads the output any more; the same command starts it again\n"
    )


def test_help_tells_exit_status_and_json(capsys):
    with pytest.raises(SystemExit):
        cli.evaluate(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--json prints the result as JSON on stdout" in text
    assert "Exit status: 0 done, 2 bad input" in text
