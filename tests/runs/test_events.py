"""TensorBoard: layout, texts and HPARAMS, read back from the event file as TensorBoard reads it."""

from __future__ import annotations

import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from mcot_torch.algorithms.config import PPOConfig
from mcot_torch.runs.config import Config, to_yaml
from mcot_torch.runs.events import LAYOUT, final_metrics, final_tags, log_hyperparameters, start_events

MANIFEST = {"git_commit": "abc", "pieces": {"secret": 1}, "seconds": {}}


def row(time, **more):
    base = {"hitting_time_exact": time, "hitting_time_sampled": {"mean": 9.0}, "speedup": 2.0, "row_tv_max": None}
    return base | {"hard_step_probability": {"mean": 0.25}, "hard_step_recall": 0.5, "hard_step_precision": 1.0} | more


def written(folder, config, rows):
    writer = SummaryWriter(str(folder))
    start_events(writer, config, MANIFEST)
    log_hyperparameters(writer, config, final_metrics(rows))
    writer.close()
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.fixture
def events(tmp_path):
    rows = {"base": row(100.0), "guided": row(None), "student": row(7.0, lifted_steps=40.0, lifted_valid=1.0)}
    return written(tmp_path, Config(seed=3), rows)


def plugin(events, kind):
    return HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/{kind}").plugin_data.content)


def test_the_layout_has_charts_of_every_stage(events):
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {category.title: {c.title: list(c.multiline.tag) for c in category.chart} for category in layout.category}
    assert [title.split()[1] for title in charts] == ["pretrain", "search", "ppo", "distill", "all"]
    assert charts["3 ppo"]["probability of the hard steps"] == [f"^ppo/hard_step_{x}$" for x in ("min", "mean", "max")]


def test_the_texts_are_the_configuration_and_the_manifest(events):
    (text,) = events.Tensors("run/configuration/text_summary")
    told = text.tensor_proto.string_val[0].decode()
    assert told == f"```yaml\n{to_yaml(Config(seed=3)).rstrip()}\n```"
    manifest = events.Tensors("run/manifest/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"git_commit": "abc"' in manifest
    assert "secret" not in manifest


def test_a_name_cannot_close_the_block(tmp_path):
    told = written(tmp_path, Config(name="a```b"), {}).Tensors("run/configuration/text_summary")
    text = told[0].tensor_proto.string_val[0].decode()
    assert text.startswith("````yaml\n")
    assert text.endswith("\n````")


def test_final_metrics_are_scalars(events):
    found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert found["final/base/hitting_time"] == 100.0
    assert found["final/guided/hitting_time"] == 9.0  # no exact value: the sampled mean
    assert found["final/student/lifted_steps"] == 40.0
    assert found["final/search/recall"] == 0.5
    assert set(found) <= set(final_tags())


def test_runs_share_the_columns_of_the_hparams_tab(events, tmp_path):
    other = written(tmp_path / "other", Config(ppo=PPOConfig(kl_coefficient=0.05, rounds=7)), {"base": row(1.0)})
    columns = [plugin(e, "experiment").experiment for e in (events, other)]
    assert columns[0].hparam_infos == columns[1].hparam_infos
    assert (
        {m.name.tag for m in columns[0].metric_infos}
        == {m.name.tag for m in columns[1].metric_infos}
        == set(final_tags())
    )
    ours, theirs = (plugin(e, "session_start_info").session_start_info.hparams for e in (events, other))
    assert (ours["seed"].number_value, theirs["seed"].number_value) == (3, 0)
    assert (ours["ppo.rounds"].number_value, theirs["ppo.rounds"].number_value) == (60, 7)
    assert (ours["ppo.kl_coefficient"].string_value, theirs["ppo.kl_coefficient"].string_value) == ("null", "0.05")
    assert not {"name", "run_dir", "trainer.threads"} & set(ours)  # what decides no number


def test_every_tag_of_the_layout_is_a_pattern():
    for charts in LAYOUT.values():
        for _, tags in charts.values():
            assert all(re.compile(tag) for tag in tags)
