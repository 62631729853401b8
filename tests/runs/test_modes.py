"""Settings beside the default ones, through the whole pipeline in this process, on a graph of 20 states."""

import json

import pytest

from mcot_torch.errors import InputError
from mcot_torch.runs.config import STAGES, parse_train
from mcot_torch.runs.digests import stage_digests
from mcot_torch.runs.evaluate import evaluate_run
from mcot_torch.runs.folder import RunFolder
from mcot_torch.runs.pipeline import run

TINY = """\
graph: {n_clusters: 4, cluster_size: 5, epsilon: 0.02, epsilon_max: 0.1}
reasoner: {width: 32}
pretrain: {steps: 200, steps_after_cut: 100, transitions: 2000000}
search: {rounds: 40}
ppo: {rounds: 4, epochs: 2, transitions: 2000, path_length: 16}
distill: {transitions: 200000, path_length: 64, steps: 60}
evaluation: {walks: 20, figures: false}
trainer: {accelerator: cpu, progress: false}
"""


@pytest.mark.parametrize(
    "words",
    [
        "--search.mode rl",
        "--search.mode rl --ppo.form sign --reasoner.kind linear",
        "--ppo.reward outcome",
        "--search.mode rl --ppo.reward outcome",
    ],
)
def test_mode_runs_to_the_table(words, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    config = ["--config", str(tmp_path / "tiny.yaml"), "--run_dir", str(tmp_path / "run")]
    run(parse_train([*config, *words.split()]), ["train.py"])
    models = json.loads((tmp_path / "run" / "evaluation.json").read_text())["models"]
    assert list(models) == ["base", "pretrained", "guided", "tuned", "student"]
    if "rl --ppo.reward outcome" not in words:  # raises the steps towards X_out only, and search walks by them
        assert models["tuned"]["hard_step_recall"] == 1
        assert models["tuned"]["hard_step_probability"]["max"] > 0.02
        assert models["student"]["lifted_valid"] == 1


def test_student_of_too_few_pairs_is_told_so(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["--config", str(tmp_path / "tiny.yaml"), "--run_dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=r"the student's clusters are no graph: .*; use a larger distill\.transitions"):
        run(parse_train([*words, "--distill.transitions", "1", "--distill.beta", "1"]), ["train.py"])
    assert not (tmp_path / "run" / "distill" / "model.safetensors").exists()


def test_each_stage_stores_its_cost(tmp_path, capsys):
    """Transitions by hand where they are: whole walks, and for distillation at least the recorded ones."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["--config", str(tmp_path / "tiny.yaml"), "--run_dir", str(tmp_path / "run")]
    run(parse_train(words), ["train.py"])
    cost = {stage: RunFolder(tmp_path / "run").metrics(stage)["cost"] for stage in STAGES}
    assert cost["pretrain"]["transitions"] == 256 * round(2_000_000 / 256)
    assert cost["ppo"]["transitions"] == 4 * 16 * (2000 // 16)
    assert cost["distill"]["transitions"] > 64 * (200_000 // 64)  # and the walks that label the states
    assert [cost[stage]["rounds"] for stage in STAGES] == [300, 40, 4, 60]
    assert all(cost[stage]["forward_passes"] > 0 for stage in STAGES)
    shown = json.loads((tmp_path / "run" / "evaluation.json").read_text())["transitions"]
    assert shown == {stage: cost[stage]["transitions"] for stage in ("search", "ppo")}


def test_a_run_without_stored_costs_is_evaluated_as_before(tmp_path, capsys):
    """Runs of version 0.1 have none: PPO's transitions are those of its last logged line."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["--config", str(tmp_path / "tiny.yaml"), "--run_dir", str(tmp_path / "run")]
    run(parse_train(words), ["train.py"])
    before = json.loads((tmp_path / "run" / "evaluation.json").read_text())["transitions"]
    folder = RunFolder(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    for stage in STAGES:
        metrics = folder.metrics(stage)
        del metrics["cost"]
        text = json.dumps(metrics)
        (folder.stage(stage) / "metrics.json").write_text(text)
        manifest["pieces"][stage] = stage_digests(folder.stage(stage), text)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert evaluate_run(tmp_path / "run", figures=False)["transitions"] == before
