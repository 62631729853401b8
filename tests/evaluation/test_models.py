"""The table of models: a new model is one entry, and everything that shows models shows it."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcot_torch.algorithms.config import DistillConfig
from mcot_torch.algorithms.distill import distill
from mcot_torch.algorithms.prm import PRM
from mcot_torch.evaluation.models import MODELS, EvaluationInputs, ModelEntry, made_by, measure_models, ordered
from mcot_torch.evaluation.problem import Models, Problem
from mcot_torch.evaluation.subjects import measure_lift, reasoner_subject, student_subject
from mcot_torch.experiments.support import exact_reasoner
from mcot_torch.graphs.build import GraphConfig, build_graph
from mcot_torch.graphs.scales import Scales
from mcot_torch.graphs.task import TaskConfig, build_task
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


def untrained(entry, inputs):
    """The reasoner of the run before training, whichever kind the configuration names."""
    problem, reasoner = inputs.problem, inputs.fresh()
    return reasoner_subject(
        entry.name, reasoner, problem.graph, entry.reference, problem.task, inputs.contexts, inputs.seed
    )


UNTRAINED = ModelEntry(
    name="untrained",
    title="untrained model",
    unit="steps",
    reference="p^ε",
    colour="#123456",
    subject=untrained,
    competes=False,
)


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


def test_an_untrained_model_is_never_the_fastest_so_far(shown, monkeypatch):
    """A fresh model steps anywhere and arrives early, which is no achievement."""
    folder, _, _ = shown
    for stage in ("search", "ppo", "distill"):
        (folder / stage / "metrics.json").unlink()
    evaluate.evaluate_run(folder)
    rows = json.loads((folder / "evaluation.json").read_text())["models"]
    assert list(rows) == ["base", "pretrained", "untrained"]
    assert rows["untrained"]["hitting_time_exact"] < 0.9 * rows["base"]["hitting_time_exact"]
    lede = re.search(r'<p class="lede">(.*?)</p>', (folder / "report.html").read_text())[1]
    assert "untrained" not in lede


def test_each_lifted_entry_is_measured_on_its_own_student(monkeypatch):
    """A second student, trained for longer than the first, has lifted paths of its own."""
    graph = build_graph(GraphConfig(n_clusters=4, cluster_size=4, cluster="complete", epsilon=0.02, epsilon_max=0.1))
    task, scales = build_task(TaskConfig(), graph), Scales.of(graph, 0.1)
    teacher, prm = exact_reasoner(graph), PRM(graph.n_states, torch.from_numpy(graph.sparse_edges))
    first, second = (
        distill(teacher, prm, scales, DistillConfig(steps=steps, transitions=200_000)).model for steps in (1, 300)
    )

    def other(entry, inputs):
        return student_subject(second, inputs.problem.graph, inputs.problem.task)

    monkeypatch.setitem(MODELS, "other", replace(MODELS["student"], name="other", subject=other, stage=None))
    inputs = EvaluationInputs(Problem(graph, task, scales), Models(teacher, prm, teacher, first))
    rows = measure_models(inputs, 200, 12.0).rows
    alone = measure_lift(second, teacher, prm, graph, task, 200, 0)
    assert {key: rows["other"][key] for key in alone} == alone
    assert rows["student"]["lifted_steps"] != rows["other"]["lifted_steps"]
