"""Many runs beside one another: groups that differ in more than the seed, each with interquartile means and intervals.

Reads what every run's own evaluation left; nothing is evaluated again. The interquartile mean and its percentile
bootstrap over runs follow Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(NeurIPS 2021); the mean here is the integral of the quantile function from 1/4 to 3/4, which needs no multiple of four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcot_torch.errors import InputError
from mcot_torch.evaluation.subjects import Row
from mcot_torch.report.tables import expected_time
from mcot_torch.runs.config import Config, EvaluateOptions, config_hash, differences
from mcot_torch.runs.run_folder import RunFolder
from mcot_torch.system.files import read_json
from mcot_torch.system.progress import console, say

__all__ = [
    "METRICS",
    "Group",
    "Metric",
    "Run",
    "Summary",
    "compare_runs",
    "group_runs",
    "interquartile_mean",
    "read_run",
]

_RESAMPLES = 10_000
_LEFT = {"pretrain": "pretrained", "search": "guided", "ppo": "tuned", "distill": "student"}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One evaluated run.

    Attributes:
        path: its folder.
        config: its configuration.
        result: its evaluation.json.
        histories: stage -> logged lines.
    """

    path: Path
    config: Config
    result: dict[str, Any]
    histories: dict[str, list[dict[str, Any]]]

    @property
    def teacher(self) -> str:
        """Which model the student learned from."""
        return "tuned" if self.config.distill.teacher == "tuned" else "pretrained"


@dataclass(frozen=True)
class Group:
    """Runs whose configurations differ in the seed alone.

    Attributes:
        name: what sets the group apart from the others.
        runs: in the order given.
    """

    name: str
    runs: list[Run]


@dataclass(frozen=True)
class Summary:
    """One metric of one model over the runs of a group.

    Attributes:
        mean: interquartile mean.
        low, high: its 95 % bootstrap interval; None for a single run.
        n: runs that have the metric.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Metric:
    """A column of the tables: how a row of evaluation.json gives it."""

    name: str
    of: Callable[[Row], float | None]


METRICS = (
    Metric("time to the target", expected_time),
    Metric("lifted steps", lambda row: row.get("lifted_steps")),
    Metric("speed-up", lambda row: row["speedup"]),
    Metric("hard step", lambda row: row["hard_step_probability"]["mean"]),
    Metric("TV max", lambda row: row["row_tv_max"]),
    Metric("recall", lambda row: row["hard_step_recall"]),
    Metric("precision", lambda row: row["hard_step_precision"]),
)


# ---- statistics -------------------------------------------------------------------------------------------------


def interquartile_mean(values: ArrayLike) -> Array:
    """Mean of the middle half along the last axis: the quantile function integrated from 1/4 to 3/4, doubled."""
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    n = ordered.shape[-1]
    edges = np.clip(np.arange(n + 1) / n, 0.25, 0.75)
    return ordered @ (2.0 * np.diff(edges))


@cache
def summarise(values: tuple[float | None, ...]) -> Summary | None:
    """Interquartile mean with the 95 % percentile bootstrap interval over the runs; None where no run has a value."""
    known = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    n = len(known)
    if n == 0:
        return None
    mean = float(interquartile_mean(known))
    if n == 1:
        return Summary(mean, None, None, 1)
    picks = np.random.default_rng(n).integers(n, size=(_RESAMPLES, n))
    low, high = np.quantile(interquartile_mean(known[picks]), [0.025, 0.975])
    return Summary(mean, float(low), float(high), n)


# ---- runs -------------------------------------------------------------------------------------------------------


def read_run(path: Path) -> Run:
    """A finished and evaluated run.

    Raises:
        InputError: it is unfinished, or its evaluation lacks what is compared; the line says how to go on.
    """
    folder = RunFolder(path)
    config = folder.config()
    for stage in config.stages:
        if not folder.is_finished(stage):
            raise InputError(
                f"{path} is not finished: {stage} has not run to its end; the train.py command of its manifest.json continues it"
            )
    cure = f"run evaluate.py {path} first"
    if not (path / "evaluation.json").is_file():
        raise InputError(f"{path} has no evaluation.json; {cure}")
    result = read_json(path / "evaluation.json")
    missing = [_LEFT[stage] for stage in config.stages if _LEFT[stage] not in result.get("models", {})]
    if missing or "survival" not in result:
        what = f"of {missing[0]}" if missing else "of survival curves"
        raise InputError(f"{path / 'evaluation.json'} says nothing {what}: it is older than the run; {cure}")
    return Run(path, config, result, {stage: folder.history(stage) for stage in config.stages})


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs by configuration, whatever their seeds; named by what differs between the groups.

    Raises:
        InputError: two runs of the same configuration and seed, which would count one result twice.
    """
    seen: dict[str, Path] = {}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if (twin := seen.setdefault(config_hash(run.config), run.path)) != run.path:
            raise InputError(f"{twin} and {run.path} are the same run, seed {run.config.seed}; name one of them")
        groups.setdefault(config_hash(replace(run.config, seed=0)), []).append(run)
    configs = [replace(members[0].config, seed=0) for members in groups.values()]
    keys = sorted({key for config in configs for key in differences(configs[0], config)})
    out = []
    for config, members in zip(configs, groups.values(), strict=True):
        values = [f"{key}={_value(config, key)}" for key in keys]
        out.append(Group(", ".join(values) or members[0].config.name, members))
    return out


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def models_of(group: Group) -> list[str]:
    """The models that any run of a group has, in the order of the pipeline."""
    order = ["base", *_LEFT.values()]
    return [name for name in order if any(name in run.result["models"] for run in group.runs)]


def summary(group: Group, model: str, metric: Metric) -> Summary | None:
    """One cell of the tables."""
    rows = [run.result["models"].get(model) for run in group.runs]
    return summarise(tuple(None if row is None else metric.of(row) for row in rows))


# ---- the command ------------------------------------------------------------------------------------------------


def compare_runs(folders: Sequence[Path], options: EvaluateOptions) -> list[Group]:
    """Compare finished runs: tables on the terminal and as Markdown, LaTeX and CSV, curves as PNG and HTML.

    Args:
        folders: of the runs, at least two.
        options: `out` is where the files go; `figures` false leaves out PNG and HTML.
    """
    from mcot_torch.report.compare import files as compare_files

    for key in ("walks", "seed", "device"):
        if getattr(options, key) is not None:
            raise InputError(
                f"{key} is {getattr(options, key)}, but several runs are compared by what their own evaluations left; "
                f"give --{key} with one run at a time"
            )
    out = Path(options.out)
    if (out / "config.yaml").exists():
        raise InputError(f"out is {out}, which holds a run; give another folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"out is {out}, which is a file; give a folder")
    groups = group_runs([read_run(folder) for folder in folders])
    console.print(compare_files.terminal_table(groups))
    written = compare_files.write(groups, out, options.figures is not False)
    say(f"Written  {', '.join(str(path) for path in written)}")
    return groups
