"""Comparing runs: the interquartile mean in closed form, groups by configuration, tables that can be read back."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import trim_mean

from mcot_torch.algorithms.config import PPOConfig
from mcot_torch.errors import InputError
from mcot_torch.evaluation.aggregate import aggregate_values, interquartile_mean
from mcot_torch.report.compare.files import as_csv, as_dict, as_latex, as_markdown
from mcot_torch.runs.comparison import compare_runs, group_runs, read_run
from mcot_torch.runs.config import Config, EvaluateOptions, to_yaml
from mcot_torch.runs.folders import find_runs

MODELS = ("base", "pretrained", "guided", "tuned", "student")


def row(time, unit="steps"):
    return {
        "unit": unit, "hitting_time_exact": time, "hitting_time_sampled": {"mean": time}, "speedup": 1000.0 / time,
        "hard_step_probability": {"mean": 0.01}, "row_tv_max": None, "hard_step_recall": 1.0, "hard_step_precision": None,
    }  # fmt: skip


def make_run(folder, seed=0, tuned=100.0, models=MODELS, **changes):
    """A run folder as far as comparing reads it."""
    config = replace(Config(seed=seed), **changes)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    for stage in config.stages:
        (folder / stage).mkdir()
        history = [
            {"step": s, "env_steps": 10 * s, "loss": 1.0 / s + seed, "row_tv_max": 0.1 / s, "hard_step_mean": 0.01 * s}
            for s in (1, 2, 3)
        ]
        (folder / stage / "metrics.json").write_text(
            json.dumps({"transitions": 9, "edges": 3, "n_clusters": 3, "history": history})
        )
    times = {"base": 1000.0, "pretrained": 990.0, "guided": 110.0, "tuned": tuned, "student": 8.0}
    curve = {"unit": "steps", "times": [1, 10, 100], "exact": [0.9, 0.5, 0.1], "sampled": [0.9, 0.5, 0.1]}
    result = {
        "models": {m: row(times[m], "hops" if m == "student" else "steps") for m in models},
        "survival": {m: curve for m in models},
    }
    (folder / "evaluation.json").write_text(json.dumps(result))
    return folder


# ---- statistics ----------------------------------------------------------------------------------------------------


def test_interquartile_mean_in_closed_form():
    draw = np.random.default_rng(0)
    for n in (4, 8, 40):
        values = draw.lognormal(size=n)
        assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25), rel=1e-12)
    assert interquartile_mean([7.0]) == 7.0
    assert interquartile_mean([1.0, 3.0]) == 2.0
    assert interquartile_mean([9.0, 0.0, 3.0]) == pytest.approx((0 + 4 * 3 + 9) / 6)  # 1/12, 1/3 and 1/12 of the mass
    # 1/5 of the mass each: 3/20 of the second, all of the third, 3/20 of the fourth, over 1/2
    assert interquartile_mean([1, 2, 3, 4, 100]) == pytest.approx((0.15 * 2 + 0.2 * 3 + 0.15 * 4) / 0.5)


def test_interquartile_mean_is_the_integral_of_the_quantile_function():
    values = np.random.default_rng(1).normal(size=7)
    u = (np.arange(200_000) + 0.5) / 400_000 + 0.25  # midpoints of [1/4, 3/4]
    assert interquartile_mean(values) == pytest.approx(np.sort(values)[(u * 7).astype(int)].mean(), abs=1e-5)


def test_intervals_cover():
    """Of 200 samples of 20 normal numbers, 95 % intervals cover the centre; below 170 would happen once in 10^7 at 95 %."""
    draw = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        s = aggregate_values(tuple(draw.normal(5.0, 1.0, 20)))
        inside += s.low <= 5.0 <= s.high
    assert 170 <= inside < 200


def test_summaries_of_little():
    assert aggregate_values(()) is None
    assert aggregate_values((None, float("inf"))) is None
    one = aggregate_values((3.0, None))
    assert (one.mean, one.low, one.high, one.n) == (3.0, None, None, 1)
    two = aggregate_values((1.0, 2.0))
    assert (two.mean, two.low, two.high) == (1.5, 1.0, 2.0)


# ---- which runs ----------------------------------------------------------------------------------------------------


def test_patterns_and_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/seed0", "runs/seed1", "runs/other", "odd[1]"):
        make_run(tmp_path / name)
    (tmp_path / "runs/compare").mkdir()
    names = [str(p) for p in find_runs(["runs/other", "runs/seed*", "runs/*", "./runs/seed0"])]
    assert names == ["runs/other", "runs/seed0", "runs/seed1"]
    assert [str(p) for p in find_runs(["odd[1]"])] == ["odd[1]"]
    for words, message in (
        (["runs/nix*"], "runs/nix* matches nothing; a run folder has a config.yaml, such as runs/default"),
        (["runs/comp*"], "runs/comp* matches 1 of which none is a run folder"),
        (["runs/seed0", "runs/nix"], "runs/nix holds no run"),
    ):
        with pytest.raises(InputError) as error:
            find_runs(words)
        assert str(error.value).startswith(message)


def test_unfinished_and_outdated_runs_are_named(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "ppo/metrics.json").unlink()
    with pytest.raises(InputError, match=r"a is not finished: ppo has not run to its end; the train.py command"):
        read_run(folder)
    folder = make_run(tmp_path / "b")
    (folder / "evaluation.json").unlink()
    with pytest.raises(InputError, match=r"b has no evaluation.json; run evaluate.py .*b first"):
        read_run(folder)
    folder = make_run(tmp_path / "c", models=MODELS[:3])
    with pytest.raises(InputError, match=r"says nothing of tuned: it is older than the run; run evaluate.py"):
        read_run(folder)


def test_groups_differ_in_more_than_the_seed(tmp_path):
    runs = [make_run(tmp_path / f"a{s}", seed=s) for s in range(3)]
    runs += [make_run(tmp_path / f"b{s}", seed=s, ppo=PPOConfig(rounds=7)) for s in range(2)]
    groups = group_runs([read_run(path) for path in runs])
    assert [(g.name, len(g.runs)) for g in groups] == [("ppo.rounds=60", 3), ("ppo.rounds=7", 2)]
    (alone,) = group_runs([read_run(path) for path in runs[:3]])
    assert alone.name == "default"
    twin = make_run(tmp_path / "twin", seed=1, name="another")
    with pytest.raises(InputError, match=r"a1 and .*twin are the same run, seed 1; name one of them"):
        group_runs([read_run(path) for path in [*runs, twin]])


# ---- what is written -----------------------------------------------------------------------------------------------


@pytest.fixture
def groups(tmp_path):
    times = [90.0, 100.0, 110.0, 400.0]
    runs = [make_run(tmp_path / f"a{s}", seed=s, tuned=t) for s, t in enumerate(times)]
    runs.append(make_run(tmp_path / "b", ppo=PPOConfig(rounds=7), stages=["pretrain"], models=MODELS[:2]))
    return group_runs([read_run(path) for path in runs])


def test_tables_hold_the_numbers(groups):
    markdown = as_markdown(groups).splitlines()
    assert markdown[0].startswith("| group | model | runs | time to the target |")
    tuned = next(line for line in markdown if "| tuned |" in line)
    assert tuned.split(" | ")[3].startswith("105 [")
    assert len({line.count("|") for line in markdown if line.startswith("|")}) == 1
    assert "Fewer than ten runs" in markdown[-1]
    rows = list(csv.DictReader(io.StringIO(as_csv(groups))))
    cell = next(r for r in rows if r["model"] == "tuned" and r["metric"] == "time to the target")
    assert float(cell["iqm"]) == 105.0  # of 90, 100, 110, 400
    assert float(cell["low"]) <= 105.0 <= float(cell["high"])
    assert (cell["runs"], len(cell["folders"].split())) == ("4", 4)
    assert {r["model"] for r in rows if r["group"] == "ppo.rounds=7"} == {"base", "pretrained"}


def test_json_holds_the_numbers(groups):
    told = json.loads(json.dumps(as_dict(groups), allow_nan=False))["groups"]
    assert told[0]["models"]["tuned"]["time to the target"]["iqm"] == 105.0  # of 90, 100, 110, 400
    assert len(told[0]["runs"]) == told[0]["models"]["tuned"]["recall"]["runs"] == 4
    assert "TV max" not in told[0]["models"]["tuned"]  # nobody has it
    assert (told[1]["group"], list(told[1]["models"])) == ("ppo.rounds=7", ["base", "pretrained"])


def test_latex_is_escaped_and_balanced(groups):
    named = [replace(group, name="a_b & 50% {x} \\y") for group in groups]
    text = as_latex(named)
    assert r"a\_b \& 50\% \{x\} \textbackslash{}y" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    assert {line.replace(r"\&", "").count("&") for line in body} == {len(columns) - 1}


def test_the_command_writes_everything(groups, tmp_path, browser, capsys):
    folders = [run.path for group in groups for run in group.runs]
    out = tmp_path / "out"
    compare_runs(folders, EvaluateOptions(["*"], out=str(out)))
    assert sorted(p.name for p in out.iterdir()) == [f"compare.{e}" for e in ("csv", "html", "md", "png", "tex")]
    page = browser.open((out / "compare.html").as_uri(), width=390)
    assert page.errors() == []
    assert page.run("document.querySelectorAll('.plot .scatterlayer').length") == 5
    assert page.run("document.documentElement.scrollWidth") <= 390


def test_options_that_make_no_sense_for_several(groups, tmp_path):
    folders = [run.path for group in groups for run in group.runs]
    with pytest.raises(
        InputError, match=r"walks is 9, but several runs are compared by what their own evaluations left"
    ):
        compare_runs(folders, EvaluateOptions(["*"], walks=9))
    with pytest.raises(InputError, match="which holds a run; give another folder"):
        compare_runs(folders, EvaluateOptions(["*"], out=str(folders[0])))
