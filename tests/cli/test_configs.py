"""The configurations that the README names, run to the end, and the figures that issue 2 asks of them. Minutes each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def evaluation(tmp_path: Path, *words: str) -> dict:
    folder = tmp_path / "run"
    command = [sys.executable, "train.py", *words, "--run_dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=2400)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "evaluation.json").read_text())


def covered(row: dict) -> bool:
    """Whether the Monte Carlo interval holds the exact (restricted) mean."""
    sampled = row["hitting_time_sampled"]
    return sampled["low"] <= sampled["restricted_mean_exact"] <= sampled["high"]


def test_default_run_on_three_seeds(tmp_path):
    hits = 0
    for seed in range(3):
        result = evaluation(tmp_path / str(seed), "--seed", str(seed), "--evaluation.figures", "false")
        models, graph = result["models"], result["graph"]
        exact, ideal = result["task"]["hitting_time"], result["task"]["hitting_time_at_epsilon_max"]
        assert models["pretrained"]["hitting_time_exact"] == pytest.approx(exact, rel=0.03)
        assert models["tuned"]["hard_step_recall"] == models["tuned"]["hard_step_precision"] == 1.0
        hard = models["tuned"]["hard_step_probability"]
        assert 0.9 * graph["epsilon_max"] <= hard["min"] <= hard["max"] <= 1.1 * graph["epsilon_max"]
        assert models["tuned"]["hitting_time_exact"] == pytest.approx(ideal, rel=0.1)
        assert models["tuned"]["row_tv_easy_max"] <= 0.02
        student = models["student"]
        assert student["hitting_time_exact"] == pytest.approx(student["hitting_time_reference"], rel=0.05)
        assert student["lifted_valid"] == 1.0
        hits += sum(covered(row) for row in models.values())
    assert hits >= 12  # of 15 intervals at 95 %


def test_hanoi_is_solved_by_every_model(tmp_path):
    result = evaluation(tmp_path, "--config", "configs/hanoi.yaml")
    models = result["models"]
    assert result["task"]["shortest_path"] == 31  # 2^5 - 1
    assert models["tuned"]["hard_step_recall"] == models["tuned"]["hard_step_precision"] == 1.0
    assert models["tuned"]["hitting_time_exact"] == pytest.approx(
        result["task"]["hitting_time_at_epsilon_max"], rel=0.1
    )
    assert models["student"]["n_clusters"] == 9
    assert models["student"]["lifted_valid"] == 1.0
    assert models["student"]["lifted_steps_min"] >= 31


def test_edge_list_runs_to_the_end(tmp_path):
    result = evaluation(tmp_path, "--config", "configs/edge_list.yaml")
    models = result["models"]
    assert models["tuned"]["hard_step_recall"] == models["tuned"]["hard_step_precision"] == 1.0
    assert models["student"]["lifted_valid"] == 1.0


def test_sequence_reads_history_and_still_goes_through_all_stages(tmp_path):
    result = evaluation(tmp_path, "--config", "configs/sequence.yaml")
    models, graph = result["models"], result["graph"]
    metrics = json.loads((tmp_path / "run" / "pretrain" / "metrics.json").read_text())["history"][-1]
    assert metrics["support_recall"] == metrics["support_precision"] == 1.0
    hard = models["pretrained"]["hard_step_probability"]
    assert 0.75 * graph["epsilon"] <= hard["min"] <= hard["max"] <= 1.25 * graph["epsilon"]
    assert models["pretrained"]["hitting_time_exact"] is None
    averaged = models["pretrained"]["hitting_time_context_averaged"]
    assert averaged == pytest.approx(result["task"]["hitting_time"], rel=0.1)
    before, after = (models[name]["hitting_time_sampled"]["mean"] for name in ("pretrained", "tuned"))
    assert after <= before / 2
    student = models[
        "student"
    ]  # each hop carries the pretrained model's error on its hard step: 2 % in all when written
    assert student["hitting_time_exact"] == pytest.approx(student["hitting_time_reference"], rel=0.1)
    assert models["student"]["lifted_valid"] == 1.0
