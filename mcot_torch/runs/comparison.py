"""Compare finished runs: read what their evaluations left, group the runs by configuration, write tables and curves.

Nothing is evaluated again. `evaluation/aggregate.py` computes the numbers, `report/compare/` draws them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mcot_torch.errors import InputError
from mcot_torch.evaluation.aggregate import EvaluatedRun, SeedGroup
from mcot_torch.evaluation.models import made_by
from mcot_torch.runs.config import EvaluateOptions, flat_identity
from mcot_torch.runs.folder import RunFolder
from mcot_torch.system.files import read_json
from mcot_torch.system.progress import console, say

__all__ = ["compare_runs", "group_runs", "read_run"]


def read_run(path: Path) -> EvaluatedRun:
    """Read a run that is finished and evaluated.

    Raises:
        InputError: it is unfinished, or its evaluation lacks what is compared; the line says how to go on.
    """
    folder = RunFolder(path)
    folder.check_format()
    config = folder.config()
    for stage in config.stages:
        if not folder.is_finished(stage):
            raise InputError(
                f"{path} is not finished: {stage} has not run to its end; the train.py command of its manifest.json continues it"
            )
    fix = f"run evaluate.py {path} first"
    if not (path / "evaluation.json").is_file():
        raise InputError(f"{path} has no evaluation.json; {fix}")
    result = read_json(path / "evaluation.json")
    made = [made_by(stage).name for stage in config.stages]
    missing = [name for name in made if name not in result.get("models", {})]
    if missing or "survival" not in result:
        what = f"of {missing[0]}" if missing else "of survival curves"
        raise InputError(f"{path / 'evaluation.json'} says nothing {what}: it is older than the run; {fix}")
    histories = {stage: folder.history(stage) for stage in config.stages}
    return EvaluatedRun(path, config.name, flat_identity(config), config.distill.teacher, result, histories)


def group_runs(runs: Sequence[EvaluatedRun]) -> list[SeedGroup]:
    """Group runs by configuration, whatever their seeds; a group is named by what differs between the groups.

    Raises:
        InputError: two runs of the same configuration and seed, which would count one result twice.
    """
    seen: dict[str, Path] = {}
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        if (twin := seen.setdefault(json.dumps(run.settings), run.path)) != run.path:
            raise InputError(f"{twin} and {run.path} are the same run, seed {run.settings['seed']}; name one of them")
        groups.setdefault(json.dumps({**run.settings, "seed": 0}), []).append(run)
    settings = [{**members[0].settings, "seed": 0} for members in groups.values()]
    keys = sorted({key for these in settings for key in these if settings[0][key] != these[key]})
    return [
        SeedGroup(", ".join(f"{key}={these[key]}" for key in keys) or members[0].name, members)
        for these, members in zip(settings, groups.values(), strict=True)
    ]


def compare_runs(folders: Sequence[Path], options: EvaluateOptions) -> list[SeedGroup]:
    """Compare finished runs: tables on the terminal and as Markdown, LaTeX and CSV, curves as PNG and HTML.

    Args:
        folders: of the runs, at least two.
        options: `out` is where the files go; `figures` false leaves out PNG and HTML.

    Raises:
        InputError: an option that means nothing for several runs, a bad output folder, or a run that cannot be compared.
    """
    from mcot_torch.report.compare.files import terminal_table, write

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
    console.print(terminal_table(groups))
    written = write(groups, out, options.figures is not False)
    say(f"Written  {', '.join(str(path) for path in written)}")
    return groups
