"""The table of models: a new model is one entry, and everything that shows models shows it."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcot_torch.evaluation.models import MODELS, ModelEntry, made_by, ordered
from mcot_torch.evaluation.subjects import reasoner_subject
from mcot_torch.reasoners import LinearReasoner
from mcot_torch.report import figures
from mcot_torch.runs import evaluate
from mcot_torch.runs.config import STAGES, parse_train
from mcot_torch.runs.pipeline import run

WORDS = [
    "--graph.n_clusters",
    "4",
    "--graph.cluster_size",
    "4",
    "--graph.cluster",
    "complete",
    "--graph.epsilon",
    "0.02",
    "--graph.epsilon_max",
    "0.1",
    "--reasoner.kind",
    "linear",
    "--pretrain.steps",
    "60",
    "--pretrain.steps_after_cut",
    "20",
    "--pretrain.transitions",
    "1000000",
    "--ppo.rounds",
    "2",
    "--ppo.transitions",
    "1000",
    "--ppo.path_length",
    "10",
    "--distill.transitions",
    "100000",
    "--distill.path_length",
    "20",
    "--distill.steps",
    "20",
    "--evaluation.walks",
    "20",
    "--trainer.accelerator",
    "cpu",
    "--trainer.progress",
    "false",
]


def fresh(entry, inputs):
    problem = inputs.problem
    reasoner = LinearReasoner(problem.graph.n_states)
    return reasoner_subject(
        entry.name, reasoner, problem.graph, entry.reference, problem.task, inputs.contexts, inputs.seed
    )


UNTRAINED = ModelEntry("untrained", "untrained model", "steps", "p^ε", "#123456", fresh)


def test_every_stage_makes_one_model():
    assert [made_by(stage).name for stage in STAGES] == ["pretrained", "guided", "tuned", "student"]
    assert [entry.stage for entry in MODELS.values() if entry.stage] == list(STAGES)
    assert [entry.name for entry in ordered({"student", "base", "other"})] == ["base", "student"]
    assert all(name == entry.name for name, entry in MODELS.items())


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """A run that is evaluated with one entry more, and the figures that were drawn of it."""
    monkeypatch.setitem(MODELS, "untrained", UNTRAINED)
    drawn = {}
    for name in ("hitting_time_figure", "kernel_figure", "survival_figure"):
        draw = getattr(figures, name)
        monkeypatch.setattr(figures, name, lambda *a, _draw=draw, _name=name: drawn.setdefault(_name, _draw(*a)))
    arguments = [*WORDS, "--run_dir", str(tmp_path / "run")]
    folder = run(parse_train(arguments), ["train.py", *arguments])
    return folder, capsys.readouterr().out, drawn


def texts(figure):
    return {text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))}


def test_a_new_model_is_one_entry(shown):
    folder, out, drawn = shown
    result = json.loads((folder / "evaluation.json").read_text())
    row = result["models"]["untrained"]
    assert list(result["models"])[-1] == "untrained"
    assert row["hitting_time_exact"] > 0
    assert row["speedup"] == pytest.approx(result["models"]["base"]["hitting_time_exact"] / row["hitting_time_exact"])
    assert "untrained" in result["survival"]
    table = {line["model"]: line for line in csv.DictReader(io.StringIO((folder / "evaluation.csv").read_text()))}
    assert float(table["untrained"]["hitting_time_exact"]) == row["hitting_time_exact"]
    assert len(re.findall(r"^ untrained +(steps|p\^ε) ", out, re.MULTILINE)) == 2  # in both tables

    page = (folder / "report.html").read_text()
    assert "--untrained: light-dark(#123456, #123456);" in page
    assert "untrained model" in page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])
    charts = data["charts"]
    for key in ("kernel-1", "kernel-2", "times-1"):
        assert "untrained" in {trace.get("name") for trace in charts[key]["data"]}, key

    assert {name for name, figure in drawn.items() if "untrained" in texts(figure)} == set(drawn)
    assert len(drawn) == 3

    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = {tag for tag in events.Tags()["scalars"] if tag.startswith("final/untrained/")}
    assert scalars == {
        f"final/untrained/{name}" for name in ("hitting_time", "speedup", "row_tv_max", "hard_step_mean")
    }
    assert events.Scalars("final/untrained/hitting_time")[0].value == pytest.approx(row["hitting_time_exact"], rel=1e-5)


def test_a_run_before_the_entry_stays_as_it_was(shown, monkeypatch):
    """Without the entry the same folder has the rows that it always had."""
    monkeypatch.delitem(MODELS, "untrained")
    assert list(evaluate.evaluate_run(shown[0], figures=False)["models"]) == list(MODELS)
