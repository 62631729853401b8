"""TensorBoard events of a run: logged lines, named charts of each stage, configuration, final metrics, HPARAMS.

Every run writes the same columns to the HPARAMS tab, whatever stages it ran, because TensorBoard takes them from one
run only: with `--logdir runs` all runs can then be sorted and compared by any setting that decides their numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mcot_torch.evaluation.models import MODELS
from mcot_torch.evaluation.rows import expected_time
from mcot_torch.runs.config import Config, flat_identity, to_yaml

__all__ = [
    "LAYOUT",
    "final_metrics",
    "final_tags",
    "fresh_writer",
    "log_hyperparameters",
    "log_line",
    "start_events",
]

_HARD = ("hard_step_min", "hard_step_mean", "hard_step_max")
_ERRORS = ("sup_error", "row_tv_max", "row_tv_mean", "row_tv_easy_max")
_CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "pretrain": {
        "loss": ("loss",),
        "distance to the graph's rows": _ERRORS,
        "probability of the hard steps": _HARD,
        "support": ("support_recall", "support_precision"),
    },
    "search": {"hard steps found": ("edges",), "steps sampled": ("transitions",)},
    "ppo": {
        "probability of the hard steps": _HARD,
        "distance to optimum and pretrained": ("tv_to_optimum_max", "tv_to_pretrained_max"),
        "distance to the rows at ε_max": _ERRORS,
        "reward": ("mean_reward",),
        "update": ("approx_kl", "clip_fraction"),
        "entropy": ("entropy",),
        "value": ("explained_variance",),
    },
    "distill": {"loss": ("loss",)},
}
_LIFTED = ("lifted_steps", "lifted_valid", "lifted_right_value")

LAYOUT = {
    **{
        f"{i} {stage}": {
            title: ["Multiline", [f"^{stage}/{re.escape(name)}$" for name in names]] for title, names in charts.items()
        }
        for i, (stage, charts) in enumerate(_CHARTS.items(), start=1)
    },
    "5 all stages": {"steps a second": ["Multiline", ["^time/.*_steps_per_second$"]]},
}
"""Category -> title -> chart of the CUSTOM SCALARS tab; tags are regular expressions."""


def final_tags() -> tuple[str, ...]:
    """Columns of the HPARAMS tab, the same in every run; a run has the columns of the stages that it has finished."""
    measured = ("hitting_time", "speedup", "row_tv_max", "hard_step_mean")
    models = MODELS.values()
    return (
        *(f"final/{entry.name}/{name}" for entry in models for name in measured),
        *(f"final/{entry.name}/{name}" for entry in models if entry.lifted for name in _LIFTED),
        *(f"final/{entry.name}/{name}" for entry in models if entry.knows for name in ("valid_path", "right_value")),
        *(f"final/search/{name}" for name in ("recall", "precision")),
    )


def fresh_writer(folder: Path) -> SummaryWriter:
    """A writer of one new event file, in place of those of earlier processes.

    TensorBoard's events are a view of the logged lines. They are written anew whenever a run is continued, so that a killed run
    leaves neither gaps nor doubles.
    """
    for file in folder.glob("events.out.tfevents*"):
        file.unlink()
    return SummaryWriter(str(folder))


def log_line(writer: SummaryWriter, stage: str, line: Mapping[str, float]) -> None:
    """Write one logged line as `stage/name`, a rate as `time/stage_name`."""
    for key, value in line.items():
        if key != "step":
            tag = f"time/{stage}_{key.removeprefix('time/')}" if key.startswith("time/") else f"{stage}/{key}"
            writer.add_scalar(tag, value, int(line["step"]))


def start_events(writer: SummaryWriter, config: Config, manifest: Mapping[str, Any]) -> None:
    """The layout and the texts, which every event file begins with."""
    writer.add_custom_scalars(LAYOUT)
    writer.add_text("run/configuration", _code("yaml", to_yaml(config)))
    shown = {key: value for key, value in manifest.items() if key not in ("pieces", "seconds")}
    writer.add_text("run/manifest", _code("json", json.dumps(shown, indent=2, ensure_ascii=False)))


def _code(language: str, text: str) -> str:
    """Text as a Markdown block that nothing in it can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def final_metrics(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The tags of `final_tags` that the rows of evaluation.json have, with their values."""
    tags = set(final_tags())
    found: dict[str, float | None] = {}
    for model, row in rows.items():
        found[f"final/{model}/hitting_time"] = expected_time(row)
        found[f"final/{model}/speedup"] = row["speedup"]
        found[f"final/{model}/row_tv_max"] = row["row_tv_max"]
        found[f"final/{model}/hard_step_mean"] = row["hard_step_probability"]["mean"]
        found |= {f"final/{model}/{key}": row.get(key) for key in ("lifted_steps", "lifted_valid")}
        judged = ("valid_path", "right_value", "lifted_right_value")
        found |= {f"final/{model}/{key}": row[key]["share"] for key in judged if key in row}
        if model in MODELS and MODELS[model].stage == "search":  # later models repeat what search found
            found["final/search/recall"] = row["hard_step_recall"]
            found["final/search/precision"] = row["hard_step_precision"]
    return {key: float(value) for key, value in found.items() if value is not None and key in tags}


def log_hyperparameters(writer: SummaryWriter, config: Config, metrics: Mapping[str, float]) -> None:
    """The settings that decide a run's numbers beside its final metrics, for the HPARAMS tab.

    A setting whose default is null is text in every run ("null", "0.05"), since a column has one type.
    """
    defaults = flat_identity(Config())
    plain = (bool, int, float, str)
    values = {
        key: value
        if isinstance(value, plain) and isinstance(defaults[key], plain)
        else "null"
        if value is None
        else str(value)
        for key, value in flat_identity(config).items()
    }
    columns, _, _ = hparams(values, dict.fromkeys(final_tags(), 0.0))
    _, begin, end = hparams(values, dict(metrics))
    events = writer._get_file_writer()
    for summary in (columns, begin, end):
        events.add_summary(summary)
    for key, value in metrics.items():
        writer.add_scalar(key, value, 0)
