"""The commands of the README, at smoke size: train.py, evaluate.py, a killed run, and what they leave behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcot_torch.graphs import MetastableGraph
from mcot_torch.reasoners import Student, load_reasoner

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ["--config", "configs/smoke.yaml"]


def call(script: str, *words: str, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, script, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, **kwargs)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    result = call("train.py", *SMOKE, "--run_dir", str(folder))
    assert result.returncode == 0, result.stderr
    return folder, result


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_train_tells_the_story(run):
    folder, result = run
    assert result.stderr == ""
    for word in ("pretrain", "search", "ppo", "distill", "student", "lifted", "tensorboard --logdir", "evaluate.py"):
        assert word in result.stdout
    for name in ("config.yaml", "manifest.json", "graph.npz", "evaluation.json", "evaluation.csv", "report.html"):
        assert (folder / name).is_file()
    figures = ["graph", "hitting_times", "kernels", "survival", "training"]
    assert sorted(p.stem for p in (folder / "figures").glob("*.png")) == figures
    assert not list(folder.rglob("*.tmp"))


def test_evaluation_holds_what_the_issue_names_and_the_claims(run):
    folder, _ = run
    result = json.loads((folder / "evaluation.json").read_text())
    models = result["models"]
    assert list(models) == ["base", "pretrained", "guided", "tuned", "student"]
    fields = {
        "unit", "parameters", "hitting_time_exact", "hitting_time_exact_raw", "hitting_time_sampled", "row_tv_mean",
        "row_tv_max", "row_tv_reference", "hard_step_probability", "hard_step_recall", "hard_step_precision", "speedup",
        "steps_per_second",
    }  # fmt: skip
    for row in models.values():
        assert fields <= set(row)
        assert {"mean", "low", "high", "n", "censored", "horizon"} <= set(row["hitting_time_sampled"])
    exact, ideal = result["task"]["hitting_time"], result["task"]["hitting_time_at_epsilon_max"]
    assert models["base"]["hitting_time_exact"] == pytest.approx(exact, rel=1e-9)
    assert models["pretrained"]["hitting_time_exact"] == pytest.approx(exact, rel=0.1)
    assert models["tuned"]["hitting_time_exact"] == pytest.approx(ideal, rel=0.1)
    assert models["tuned"]["hard_step_recall"] == models["tuned"]["hard_step_precision"] == 1.0
    student = models["student"]
    assert student["unit"] == "hops"
    assert student["lifted_valid"] == 1.0
    assert student["mislabelled_states"] == 0
    assert student["hitting_time_exact"] == pytest.approx(student["hitting_time_reference"], rel=0.1)


def test_tensorboard_has_every_logged_line_once(run):
    folder, _ = run
    found = scalars(folder)
    for stage in ("pretrain", "search", "ppo", "distill"):
        history = json.loads((folder / stage / "metrics.json").read_text())["history"]
        for key in set(history[-1]) - {"step"}:
            expected = [(int(line["step"]), np.float32(line[key])) for line in history if key in line]
            assert found[f"{stage}/{key}"] == expected, f"{stage}/{key}"
    assert "final/student/hitting_time" in found
    assert all(value > 0 for _, value in found["time/ppo_steps_per_second"])


def test_tensorboard_shows_charts_texts_and_figures(run):
    from mcot_torch.runs.events import LAYOUT

    folder, _ = run
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    for title, charts in LAYOUT.items():
        for chart, (_, patterns) in charts.items():
            for pattern in patterns:  # a metric that is renamed leaves its chart empty
                assert any(re.match(pattern, tag) for tag in tags["scalars"]), f"{title}: {chart}: {pattern}"
    assert {"run/configuration/text_summary", "run/manifest/text_summary", "run/result/text_summary"} <= set(
        tags["tensors"]
    )
    assert set(tags["images"]) == {f"figures/{p.stem}" for p in (folder / "figures").glob("*.png")}
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)


def test_evaluate_again_gives_the_same_numbers(run):
    folder, _ = run
    before = json.loads((folder / "evaluation.json").read_text())
    result = call("evaluate.py", str(folder), "--figures", "false")
    assert result.returncode == 0, result.stderr
    after = json.loads((folder / "evaluation.json").read_text())
    for models in (before["models"], after["models"]):
        for row in models.values():
            del row["steps_per_second"]
    assert after["models"] == before["models"]


def test_the_student_stands_alone(run):
    folder, _ = run
    student = load_reasoner(folder / "distill")
    assert isinstance(student, Student)
    graph = MetastableGraph.load(folder / "distill" / "graph.npz")
    assert graph.n_states == graph.n_clusters == student.n_states == 6
    assert np.abs(graph.kernel() - student.kernel().numpy()).max() < 1e-12


def test_another_configuration_is_refused_and_nothing_changes(run):
    folder, _ = run
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    result = call("train.py", *SMOKE, "--run_dir", str(folder), "--seed", "5")
    assert result.returncode == 2
    assert result.stderr.strip().count("\n") == 0
    assert "holds a run with seed = 0, not 5" in result.stderr
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def final_numbers(folder: Path) -> dict:
    result = json.loads((folder / "evaluation.json").read_text())
    for row in result["models"].values():
        del row["steps_per_second"]
    weights = {p: (folder / p / "model.safetensors").read_bytes() for p in ("pretrain", "ppo", "distill")}
    curves = {tag: curve for tag, curve in scalars(folder).items() if not tag.startswith("time/")}
    return {"models": result["models"], "weights": weights, "scalars": curves}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("delays", [(7, 9, 11), (8, 10, 13)])
def test_a_killed_run_ends_with_the_same_numbers(run, tmp_path, number, delays):
    folder = tmp_path / "killed"
    words = [*SMOKE, "--run_dir", str(folder), "--trainer.save_every", "0.3", "--evaluation.figures", "false"]
    for delay in delays:
        process = subprocess.Popen(
            [sys.executable, "train.py", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(delay)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        if number == signal.SIGTERM:
            assert process.returncode in (130, -signal.SIGTERM), errors
    result = call("train.py", *words)
    assert result.returncode == 0, result.stderr
    expected, found = final_numbers(run[0]), final_numbers(folder)
    assert found["models"] == expected["models"]
    assert found["weights"] == expected["weights"]
    assert found["scalars"] == expected["scalars"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    result = call("train.py", *SMOKE, "--run_dir", str(tmp_path / "run"))
    assert result.returncode == 2
    assert result.stderr.strip().count("\n") == 0
