"""`python -m mcot_torch.experiments`: list, run and document the experiments.

    list                       names, titles and the verdicts so far
    NAME ... [--quick]         run some; `all` runs all of them, `paper` the paper's claims
    NAME --settings.key value  with other settings; also --config FILE.yaml
    docs                       write docs/results.md from the results

An interrupted command goes on behind the last finished point; `cli/status.py` holds the exit statuses.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy is imported
    os.environ.setdefault(_name, "1")

from mcot_torch.cli.status import exit_status  # noqa: E402
from mcot_torch.errors import InputError  # noqa: E402
from mcot_torch.experiments import NAMES, PAPER, load  # noqa: E402

PROG = "python -m mcot_torch.experiments"


@dataclass
class Options:
    """How to run experiments."""

    quick: bool = False
    """Seconds instead of minutes: a few small points each."""
    jobs: int | None = None
    """Worker processes; null means one a CPU core."""
    results_dir: str | None = None
    """Where the results go; null means results, with --quick results/quick."""
    overwrite: bool = False
    """Throw away earlier points instead of going on behind them."""


@dataclass
class DocsOptions:
    """Where results are read and documentation is written."""

    results_dir: str = "results"
    """Folder of the results."""
    docs_dir: str = "docs"
    """Folder of results.md and figures/."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and list, run or document experiments; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: _dispatch(words), PROG, "the same command continues where this one stopped")


def _dispatch(words: list[str]) -> int:
    n_names = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    names, options = words[:n_names], words[n_names:]
    if not names:
        print(__doc__)
        if options and options[0] not in ("-h", "--help"):
            raise InputError(f"name an experiment before {options[0]}; `list` names them")
        return 0
    if names == ["list"]:
        return _list(_read(DocsOptions, options))
    if names == ["docs"]:
        from mcot_torch.experiments.documentation import write_docs

        where = _read(DocsOptions, options)
        print(write_docs(Path(where.results_dir), Path(where.docs_dir)))
        return 0
    names = list(NAMES) if names == ["all"] else list(PAPER) if names == ["paper"] else names
    experiments = [load(name) for name in names]
    return _run(experiments, options)


def _read(target: type, words: Sequence[str], files: bool = False) -> Any:
    from mcot_torch.system.arguments import Parser

    return Parser(PROG, (target.__doc__ or "").strip(), target, files).read(words)


def _run(experiments: list[Any], words: list[str]) -> int:
    quick = ("--quick" in words and words[words.index("--quick") + 1 :][:1] != ["false"]) or "--quick=true" in words
    target: type = Options
    if len(experiments) == 1:  # settings of several at once would be ambiguous
        make = experiments[0].quick if quick else experiments[0].settings
        fields = [("settings", experiments[0].settings, field(default_factory=make))]
        target = make_dataclass("ExperimentOptions", fields, bases=(Options,))
        target.__doc__ = f"{experiments[0].title}: {experiments[0].claim}"
    elif any(word.startswith("--settings") for word in words):
        raise InputError("--settings needs one experiment; name it instead of several")
    options = _read(target, words, files=True)
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"jobs is {options.jobs}; it must be at least 1")
    folder = Path(options.results_dir or ("results/quick" if options.quick else "results"))

    from mcot_torch.experiments.runner import run, worker_pool
    from mcot_torch.system.progress import console

    with worker_pool(options.jobs or os.cpu_count() or 1) as pool:
        for experiment in experiments:
            settings = getattr(options, "settings", None) or (
                experiment.quick() if options.quick else experiment.settings()
            )
            told = shlex.join([*PROG.split(), experiment.name, *_deciding(words)])
            result = run(experiment, settings, folder / experiment.name, pool, options.overwrite, told)
            console.print(
                f"{experiment.name:>14}  {result['seconds']:6.1f} s  [bold]{result['verdict']}[/]: {result['why']}",
                highlight=False,
            )
    return 0


def _deciding(words: list[str]) -> list[str]:
    """The words that decide the numbers: how many workers there were and where files lie is of no use to who repeats it."""
    kept, skip = [], False
    for word in words:
        key, equals, _ = word.partition("=")
        if key in ("--jobs", "--results_dir", "--overwrite"):
            skip = not equals
        elif skip and not word.startswith("--"):
            skip = False
        else:
            kept.append(word)
            skip = False
    return kept


def _list(options: DocsOptions) -> int:
    import json

    from rich.table import Table

    from mcot_torch.system.progress import console

    table = Table("name", "claim", "verdict", box=None)
    for name in NAMES:
        file = Path(options.results_dir) / name / "result.json"
        table.add_row(name, load(name).title, json.loads(file.read_text())["verdict"] if file.exists() else "-")
    console.print(table)
    return 0
