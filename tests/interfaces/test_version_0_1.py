"""Run folders of version 0.1, kept in tests/fixtures/v0_1, are read and continued; those of a later format are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mcot_torch as mt

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "v0_1"
MADE = json.loads((FIXTURES / "smoke" / "evaluation.json").read_text())
# one version of torch gives the same bits on one kind of CPU; another one rounds float32 weights otherwise
EXACT = 1e-9 if torch.__version__ == MADE["versions"]["torch"] else 1e-5
SAMPLED = {"mean", "low", "high", "censored", "steps_per_second", "speedup", "lifted_speedup"}


@pytest.fixture
def smoke(tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(FIXTURES / "smoke", tmp_path / "smoke"))


@pytest.fixture
def half(tmp_path) -> Path:
    """A copy of the run that was stopped in the middle of PPO."""
    return Path(shutil.copytree(FIXTURES / "half", tmp_path / "half"))


def train(command, folder: Path, *words: str) -> tuple[int, str, str]:
    """train.py on the configuration that lies in a run folder."""
    return command("train.py", "--config", str(folder / "config.yaml"), "--run_dir", str(folder), *words)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Path -> what every file holds and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def check_numbers(found: dict, expected: dict) -> None:
    """Fail unless two evaluations agree: exact values nearly to the last digit, sampled ones within their intervals."""
    check_row(found["task"], expected["task"])
    assert found["graph"] == expected["graph"]
    assert found["transitions"] == expected["transitions"]
    assert list(found["models"]) == list(expected["models"])
    for name, row in expected["models"].items():
        check_row(found["models"][name], row)
        curve, made = found["survival"][name], expected["survival"][name]
        assert (curve["unit"], curve["times"]) == (made["unit"], made["times"])
        assert curve["exact"] == pytest.approx(made["exact"], rel=EXACT, abs=EXACT)


def check_row(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, dict):
            check_row(found[key], value)
        elif key == "mean" and "low" in expected:
            assert expected["low"] <= found["mean"] <= expected["high"]
        elif key == "lifted_steps":
            assert expected["lifted_steps_low"] <= found["lifted_steps"] <= expected["lifted_steps_high"]
        elif key not in SAMPLED and not key.startswith("lifted_steps"):
            assert found[key] == (pytest.approx(value, rel=EXACT, abs=EXACT) if isinstance(value, float) else value), (
                key
            )


# ---- reading ------------------------------------------------------------------------------------------------------------


def test_the_fixture_names_no_machine():
    """It was made in a folder of its own, with a relative --run_dir."""
    files = [path for path in FIXTURES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for path in files:
        for word in (b"/work", b"/tmp", b"/home", b"/root"):
            assert word not in path.read_bytes(), path


def test_evaluate_gives_the_numbers_of_a_finished_run(command, smoke):
    assert "format" not in json.loads((smoke / "manifest.json").read_text())
    status, printed, errors = command("evaluate.py", str(smoke), "--json")
    assert status == 0, errors
    found = json.loads(printed)
    assert found.pop("run") == str(smoke)
    assert found == json.loads((smoke / "evaluation.json").read_text())
    check_numbers(found, MADE)


def test_evaluate_opens_a_run_that_is_not_finished(command, half):
    status, printed, errors = command("evaluate.py", str(half), "--json")
    assert status == 0, errors
    models = json.loads(printed)["models"]
    assert list(models) == ["base", "pretrained", "guided"]
    for name, row in models.items():
        check_row(row, MADE["models"][name])


def test_evaluate_compares_runs(command, smoke, tmp_path):
    """Two folders that differ in the seed alone; the second is a copy that says that it has another one."""
    other = Path(shutil.copytree(smoke, tmp_path / "smoke2"))
    words = (str(tmp_path / "smoke*"), "--out", str(tmp_path / "compare"), "--figures", "false", "--json")
    status, _, errors = command("evaluate.py", *words)
    assert status == 2
    assert f"{smoke} and {other} are the same run, seed 0; name one of them" in errors
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("\nseed: 0\n", "\nseed: 1\n", 1))
    status, printed, errors = command("evaluate.py", *words)
    assert status == 0, errors
    (group,) = json.loads(printed)["groups"]
    assert group["runs"] == [str(smoke), str(other)]
    for name, row in MADE["models"].items():
        (time,) = [value for metric, value in group["models"][name].items() if metric == "time to the target"]
        assert (time["iqm"], time["runs"]) == (pytest.approx(row["hitting_time_exact"], rel=1e-9), 2)


# ---- going on -----------------------------------------------------------------------------------------------------------


def test_train_finds_a_finished_run_finished(command, smoke):
    before = contents(smoke)
    status, printed, errors = train(command, smoke)
    assert status == 0, errors
    for stage in ("pretrain", "search", "ppo", "distill"):
        assert f"{stage:>8}  found in {smoke / stage}" in printed
    after = contents(smoke)
    for name in before:
        if "/" in name:
            assert after[name] == before[name], name
    check_numbers(json.loads((smoke / "evaluation.json").read_text()), MADE)
    manifest = json.loads((smoke / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert manifest["created"] == "2026-11-28T06:35:21+0000"
    assert len(manifest["calls"]) == 2
    assert len(list(smoke.glob("events.out.tfevents*"))) == 1


def test_train_continues_a_run_to_the_numbers_of_one_that_was_left_alone(command, half):
    before = contents(half)
    status, printed, errors = train(command, half)
    assert status == 0, errors
    assert "found in" in printed
    after = contents(half)
    for name in before:
        if name.startswith(("pretrain/", "search/")):
            assert after[name] == before[name], name
    files = {str(path.relative_to(FIXTURES / "smoke")) for path in (FIXTURES / "smoke").rglob("*") if path.is_file()}
    assert {name for name in after if "tfevents" not in name} == {name for name in files if "tfevents" not in name}
    assert len(list(half.glob("events.out.tfevents*"))) == 1
    for stage in ("pretrain", "ppo", "distill"):
        found, expected = (load_file(run / stage / "model.safetensors") for run in (half, FIXTURES / "smoke"))
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert torch.allclose(found[key].double(), value.double(), rtol=0, atol=1e-6), f"{stage}: {key}"
    for stage in ("ppo", "distill"):
        found, expected = (
            json.loads((run / stage / "metrics.json").read_text())["history"] for run in (half, FIXTURES / "smoke")
        )
        assert found == [pytest.approx(line, rel=1e-4, abs=1e-6) for line in expected]
    check_numbers(json.loads((half / "evaluation.json").read_text()), MADE)
    manifest = json.loads((half / "manifest.json").read_text())
    assert (manifest["format"], len(manifest["calls"])) == (2, 2)


# ---- formats ------------------------------------------------------------------------------------------------------------


def write_format(folder: Path, value: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": value}))


def refusal(folder: Path, shown: str) -> str:
    return (
        f"error: {folder / 'manifest.json'}: format is {shown}, and this version of mcot_torch ({mt.__version__}) reads whole numbers "
        "from 1 to 2; use a newer mcot_torch, or another run folder\n"
    )


@pytest.mark.parametrize("value", [3, 0, 2.0, "2", True, None])
def test_a_format_that_is_not_known_is_refused_before_anything_is_written(command, half, value):
    """Also where the configuration has settings that are not known either, and where --overwrite would delete the run."""
    (half / "ppo" / "model.json.tmp").write_text("of a process that was killed")
    config = half.parent / "config.yaml"
    shutil.copy(half / "config.yaml", config)
    (half / "config.yaml").write_text("a_setting_of_a_newer_version: 1\n")
    write_format(half, value)
    before = contents(half)
    for words in (
        ("train.py", "--config", str(config), "--run_dir", str(half)),
        ("train.py", "--config", str(config), "--run_dir", str(half), "--overwrite", "true"),
        ("evaluate.py", str(half)),
    ):
        status, printed, errors = command(*words)
        assert (status, printed) == (2, "")
        assert errors == f"{words[0]}: {refusal(half, json.dumps(value))}"
        assert contents(half) == before


def test_a_comparison_refuses_a_format_that_is_not_known(command, smoke, tmp_path):
    other = Path(shutil.copytree(smoke, tmp_path / "smoke2"))
    write_format(other, 3)
    status, _, errors = command("evaluate.py", str(smoke), str(other), "--out", str(tmp_path / "compare"))
    assert (status, errors) == (2, f"evaluate.py: {refusal(other, '3')}")
    assert not (tmp_path / "compare").exists()


@pytest.mark.parametrize("value", [1, 2])
def test_known_formats_are_read(command, smoke, value):
    write_format(smoke, value)
    status, _, errors = command("evaluate.py", str(smoke))
    assert status == 0, errors
