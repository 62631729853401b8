"""How a run ends when it must: a full disk, a read-only folder, a signal, a number that is none; and that it goes on after."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcot_torch import cli
from mcot_torch.algorithms.pretrain import PretrainStage
from mcot_torch.errors import InputError
from mcot_torch.runs.folder import RunFolder
from mcot_torch.training.loop import load_state

ROOT = Path(__file__).resolve().parents[2]
TINY = shlex.split(
    "--graph.n_clusters 4 --graph.cluster_size 4 --graph.cluster complete --graph.epsilon .02 --graph.epsilon_max .1 "
    "--reasoner.width 16 --reasoner.n_layers 1 --reasoner.n_heads 2 --pretrain.steps 150 --pretrain.steps_after_cut 50 "
    "--pretrain.transitions 1000000 --ppo.rounds 6 --ppo.transitions 1000 --ppo.path_length 10 --ppo.log_every 1 "
    "--distill.transitions 100000 --distill.path_length 20 --distill.steps 20 --evaluation.walks 2 "
    "--evaluation.figures false --trainer.accelerator cpu --trainer.progress false --trainer.save_every 0.05"
)
WEIGHTS = ("pretrain", "ppo", "distill")


@pytest.fixture
def train(monkeypatch, capsys):
    """train.py in this process: (status, what it says on stderr)."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(folder, *words):
        status = cli.train([*TINY, "--run_dir", str(folder), *words])
        return status, capsys.readouterr().err

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def weights(folder: Path) -> list[bytes]:
    return [(folder / stage / "model.safetensors").read_bytes() for stage in WEIGHTS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run left alone."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert cli.train([*TINY, "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def disk(tmp_path):
    """Mounts a tmpfs of so many bytes, or skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if "remount" not in options and os.path.ismount(place):
            subprocess.run(["umount", "-l", str(place)], check=True)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk_is_one_line_and_the_last_state_is_whole(train, disk, whole):
    """Disks from a page to nearly enough: each ends in one line, and with room the run goes on to the same bits."""
    files = [p for p in whole.rglob("*") if p.is_file() and p.name != "report.html"]  # the last and by far the largest
    needed = sum(4096 * -(-p.stat().st_size // 4096) for p in files)
    places = set()
    for share in (0.05, 0.3, 0.9):
        folder = disk(f"size={int(share * needed)}") / "run"
        status, told = train(folder)
        assert status == 2
        assert told.count("\n") == 1
        assert told.startswith(f"train.py: error: {folder}")
        assert "No space left on device; nothing is half-written: " in told
        assert told.endswith("then the same command continues where this one stopped\n")
        places.add(told.split(":")[2])
        assert not list(folder.rglob("*.tmp*"))
        for state in folder.rglob("state.safetensors"):
            assert load_state(state) is not None
        for model in folder.rglob("metrics.json"):
            json.loads(model.read_text())
    assert len(places) == 3
    disk("remount,size=100m")
    assert train(folder)[0] == 0
    assert weights(folder) == weights(whole)


def test_read_only_folder_is_one_line_and_nothing_changes(train, disk):
    folder = disk("size=100m") / "run"
    assert train(folder, "--stages", "pretrain")[0] == 0
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    disk("remount,ro")
    status, told = train(folder)
    assert status == 2
    assert told.count("\n") == 1
    assert "Read-only file system; nothing is half-written: choose another folder or free some space" in told
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("stage", ["pretrain", "search", "ppo", "distill"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_once_and_says_how_to_go_on(train, whole, tmp_path, monkeypatch, number, stage):
    """save_every is a day: the state that lies there is the one saved at the signal, sent as the stage logs a line."""
    folder, long = (
        tmp_path / "run",
        ("--trainer.save_every", "86400", "--distill.log_every", "5", "--pretrain.log_every", "10"),
    )
    logged, log = [], RunFolder.log

    def strike(self, name, line):
        log(self, name, line)
        if name == stage:
            logged.append(line["step"])
            if len(logged) == 3:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(RunFolder, "log", strike)
    status, told = train(folder, *long)
    assert (status, told) == (130, "train.py: interrupted; the same command continues where this one stopped\n")
    step = load_state(folder / stage / "state.safetensors")[1]["history"][-1]["step"]
    assert step == logged[2]
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert train(folder, *long)[0] == 0
    assert weights(folder) == weights(whole)


@pytest.mark.parametrize(
    ("words", "stage", "at"),
    [
        (("--pretrain.learning_rate", "9e15"), "pretrain", range(1, 5)),
        (("--ppo.learning_rate", "9e15"), "ppo", range(6)),
        (("--distill.learning_rate", "9e15", "--distill.student", "transformer"), "distill", range(1, 5)),
    ],
)
def test_a_number_that_is_none_stops_with_stage_step_and_last_good_state(train, tmp_path, words, stage, at):
    folder = tmp_path / "run"
    status, told = train(folder, *words, "--trainer.save_every", "1e-9")
    assert status == 2
    assert told.count("\n") == 1
    step = int(told.partition(" at step ")[2].partition(";")[0])
    assert step in at
    assert told.startswith(f"train.py: error: {stage}: loss ")
    assert told.endswith(
        f"the last good state is {folder / stage / 'state.safetensors'}; try a smaller {stage}.learning_rate\n"
    )
    tensors, meta = load_state(folder / stage / "state.safetensors")
    assert meta["step"] == step
    assert all(bool(value.isfinite().all()) for value in tensors.values() if value.is_floating_point())


def test_a_name_from_a_file_cannot_command_the_terminal_nor_break_the_line():
    """Found by fuzzing: a tensor called by a line break."""
    assert str(InputError("state \x1b[2J\u202e is\nwrong")) == "state \\x1b[2J\\u202e is wrong"


def test_a_signal_after_the_last_step_is_not_lost(train, whole, tmp_path, monkeypatch):
    """Found by kills.py: after the last step of a stage nobody looked any more, and the run went on to its end."""
    folder = tmp_path / "run"
    begin = PretrainStage.on_train_epoch_end
    monkeypatch.setattr(
        PretrainStage, "on_train_epoch_end", lambda self: (begin(self), os.kill(os.getpid(), signal.SIGTERM))
    )
    status, told = train(folder, "--trainer.save_every", "86400")
    assert (status, told) == (130, "train.py: interrupted; the same command continues where this one stopped\n")
    assert load_state(folder / "pretrain" / "state.safetensors")[1]["step"] == 200
    monkeypatch.setattr(PretrainStage, "on_train_epoch_end", begin)
    assert train(folder, "--trainer.save_every", "86400")[0] == 0
    assert weights(folder) == weights(whole)


@pytest.mark.slow
def test_more_threads_give_the_same_bits_at_this_size(whole, tmp_path):
    """Two threads, in a process of its own: sums of these sizes are not split."""
    for threads in ("1", "2"):
        folder = tmp_path / threads
        command = [sys.executable, "train.py", *TINY, "--run_dir", str(folder), "--trainer.threads", threads]
        subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": threads}
        )
        assert json.loads((folder / "manifest.json").read_text())["threads"] == int(threads)
        assert weights(folder) == weights(whole)


def test_deterministic_is_set_for_the_whole_run(train, whole, tmp_path):
    try:
        assert train(tmp_path / "run", "--trainer.deterministic", "true")[0] == 0
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
    assert weights(tmp_path / "run") == weights(whole)
