"""The check of a GPU in its own time: parts that pass, fail and overrun; its files; the page that is made from what is kept."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_outcomes, gpu_page, gpu_parts, on_gpu
from benchmarks.on_gpu import Part
from mcot_torch.errors import InputError

ROOT = Path(__file__).parents[2]


def python(code):
    return (sys.executable, "-u", "-c", code)


def result_of(folder):
    assert {path.name for path in folder.iterdir()} == {"on_gpu.json", "on_gpu.md"}
    return json.loads((folder / "on_gpu.json").read_text()), (folder / "on_gpu.md").read_text()


@pytest.mark.slow
def test_a_part_that_fails_or_overruns_costs_no_other(tmp_path, monkeypatch, capsys):
    orphan = tmp_path / "orphan"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(orphan)!r}).touch()"
    over = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); print('so far'); time.sleep(60)"
    fails = "for i in range(100): print('line', i)\nraise ValueError('injected')"
    parts = (
        Part("environment", 120),
        Part("fails", 60, command=python(fails)),
        Part("overruns", 3, command=python(over)),
        Part("after", 60, command=python("print('fine')")),
        Part("asked", 60, asked=True, command=python("print('not run')")),
    )
    monkeypatch.setattr(on_gpu, "PARTS", parts)
    assert on_gpu.main(["--device", "cpu", "--minutes", "3", "--out", str(tmp_path / "out")]) == 1
    result, page = result_of(tmp_path / "out")
    told = {part["name"]: part for part in result["parts"]}
    assert {name: part["status"] for name, part in told.items()} == {
        "environment": "passed",
        "fails": "failed",
        "overruns": "overran",
        "after": "passed",
    }
    assert told["environment"]["data"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert len(told["fails"]["output"]) == 40
    assert told["fails"]["output"][-1] == "ValueError: injected"
    assert told["overruns"]["output"] == ["so far"]
    assert 3 <= told["overruns"]["seconds"] < 30
    for words in (
        "| fails | failed |",
        "ValueError: injected",
        "| overruns | overran |",
        "so far",
        "| after | passed |",
    ):
        assert words in page
    assert capsys.readouterr().out.count("passed") == 2
    time.sleep(max(0.0, 5 - told["after"]["seconds"]))
    assert not orphan.exists(), "what an ended part had started went on"


def test_parts_beyond_the_time_are_not_run(tmp_path, monkeypatch):
    parts = (Part("one", 60, command=python("print('fine')")), Part("two", 60, command=python("print('fine')")))
    monkeypatch.setattr(on_gpu, "PARTS", parts)
    assert on_gpu.main(["--device", "cpu", "--minutes", "0.01", "--out", str(tmp_path)]) == 0
    result, page = result_of(tmp_path)
    assert [part["status"] for part in result["parts"]] == ["not run", "not run"]
    assert "| two | not run (no time left) |" in page


def test_the_command_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.on_gpu",
        "--device",
        "cpu",
        "--minutes",
        "1",
        "--part",
        "environment",
        "laboratory",
    ]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result, _ = result_of(tmp_path)
    assert [part["status"] for part in result["parts"]] == ["passed", "passed"]
    assert result["parts"][1]["data"] == {"there": False}


def test_which_parts_are_chosen():
    everything = [part.name for part in on_gpu.chosen(None)]
    assert everything[:5] == ["environment", "pytest", "smoke", "default", "gpu_yaml"]
    assert not {"laboratory", "profile", "torch_floor"} & set(everything)
    assert [part.name for part in on_gpu.chosen(["rows"])] == ["peaks", *gpu_parts.ROWS]
    assert {part.name for part in on_gpu.PARTS} == set(gpu_parts.PARTS)


@pytest.mark.parametrize("words", [["--part", "smok"], ["--minutes", "0"], ["--device", "tpu"]])
def test_bad_command_lines(words):
    with pytest.raises(SystemExit) as stop:
        on_gpu.main(words)
    assert stop.value.code == 2


def test_outcomes_of_tests_are_kept_by_name(tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\n@pytest.mark.skip\ndef test_left(): pass\n"
    )
    log = tmp_path / "log"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "benchmarks.gpu_outcomes",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
    ]
    environment = {**os.environ, "MCOT_OUTCOMES": str(log), "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, check=False)
    with log.open("a") as file:
        file.write('{"test": "half-wri')
    read = gpu_outcomes.read(log)
    assert read["counts"] == {"failed": 1, "passed": 1, "skipped": 1}
    (failed,) = read["failed"]
    assert failed.endswith("test_bad")
    assert "assert 1 == 2" in read["why"][failed]


def test_figures_far_from_the_cpu_are_told():
    cpu = json.loads(gpu_parts.CPU_FIGURES.read_text())
    for name in ("smoke", "default"):
        assert gpu_parts.differences(cpu[name], cpu[name]) == []
        other = json.loads(json.dumps(cpu[name]))
        other["exact"]["tuned"] *= 1.1
        other["hard_steps"]["tuned"][0] = 0.0
        other["recall"] = 0.9
        assert len(gpu_parts.differences(other, cpu[name])) == 3


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_kept_results_say():
    assert (ROOT / "docs" / "gpu.md").read_text() == gpu_page.text(gpu_page.load())
    assert all(path.stat().st_size < 100_000 for path in gpu_page.KEPT.iterdir())


def test_claims_are_seen_or_untested():
    """Each claim names tests and parts that there are, and says so once they ran."""
    tests = "".join(path.read_text() + path.stem for path in (ROOT / "tests" / "gpu").glob("test_*.py"))
    for _, parts, words in gpu_page.CLAIMS:
        assert set(parts) <= set(gpu_parts.PARTS)
        assert all(word in tests for word in words)
    assert gpu_page.seen([], ("smoke",), ()) == "**untested on a GPU**"
    names = {"a.py::test_one": "passed", "a.py::test_two": "failed", "a.py::test_three": "skipped"}
    result = {"date": "today", "parts": [{"name": "pytest", "status": "failed", "data": {"outcomes": names}}]}
    assert gpu_page.seen([result], (), ("test_one",)) == "today, passed"
    assert gpu_page.seen([result], (), ("a.py",)) == "today, **1 of 2 not passed**"
    assert gpu_page.seen([result], (), ("three",)) == "**untested on a GPU**"


def test_rehearsals_are_kept_off_the_page(tmp_path):
    (tmp_path / "2026_cpu.json").write_text(json.dumps({"small": True, "parts": []}))
    with pytest.raises(InputError, match="rehearsal"):
        gpu_page.load(tmp_path)
