"""Run the points of an experiment one by one, resume where it stopped, write what came out.

results/NAME/
  settings.json   what the points were made from; other settings refuse to mix with them
  points.jsonl    a line a finished point, appended as it finishes: a killed run goes on behind the last whole line
  points.csv      the same as a table
  result.json     fits, verdict, settings, versions, seconds, command
  figure.png      and figure_2.png, figure_3.png of an experiment with several
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from PIL import Image

from mcot_torch.errors import InputError
from mcot_torch.experiments import load
from mcot_torch.experiments.base import Experiment, Measurement, Point, Summary
from mcot_torch.system.machine import settle
from mcot_torch.system.progress import progress_bar
from mcot_torch.version import __version__

__all__ = ["THREADS", "run", "worker_pool"]

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_FIGURE_DPI = 110  # 880 pixels wide: legible in a page, small in a repository


@contextmanager
def worker_pool(jobs: int) -> Iterator[Executor | None]:
    """`jobs` fresh processes of one thread each; None for one job, which stays in this process."""
    if jobs <= 1:
        settle(1)
        yield None
        return
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # read when a worker imports numpy
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    except BaseException:  # interrupted or failed: what is finished is on disk, nobody waits for the rest
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    settle(1)


def run(
    experiment: Experiment[Any],
    settings: Any,
    folder: Path,
    pool: Executor | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Measure what is missing in `folder`, then summarise, draw and write everything.

    Args:
        experiment: what to measure.
        settings: of `experiment.settings`.
        folder: results/NAME.
        pool: from `worker_pool`.
        overwrite: throw away points of other settings instead of refusing.
        command: how this run was started.

    Returns:
        What result.json holds.

    Raises:
        InputError: the folder holds points of other settings.
    """
    plain = json.loads(json.dumps(asdict(settings)))
    _prepare(folder, plain, overwrite)
    points = [json.loads(json.dumps(point)) for point in experiment.points(settings)]
    lines = _measure_missing(experiment, points, folder, pool)
    rows = [{**point, **lines[_key(point)]["result"]} for point in points]
    summary = experiment.summarise(settings, rows)
    seconds = sum(lines[_key(point)]["seconds"] for point in points)
    result = _result(experiment, plain, summary, len(points), seconds, command)
    _write(folder / "points.csv", _table(rows))
    with rc_context({"axes.titlesize": 9, "axes.labelsize": 9}):
        drawn = experiment.figure(settings, rows, summary)
        for i, figure in enumerate(drawn if isinstance(drawn, list) else [drawn], start=1):
            _save_figure(figure, folder / ("figure.png" if i == 1 else f"figure_{i}.png"))
    _write(folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


# ---- points ---------------------------------------------------------------------------------------------------------


def _prepare(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """An empty folder, or one whose points belong to these settings."""
    file = folder / "settings.json"
    there = json.loads(file.read_text()) if file.exists() else None
    if there is not None and there != settings:
        if not overwrite:
            keys = [k for k in {**there, **settings} if there.get(k) != settings.get(k)]
            raise InputError(
                f"{folder} holds points of other settings ({', '.join(keys)}: {there.get(keys[0])} there, "
                f"{settings.get(keys[0])} here); use --overwrite, or another --results_dir"
            )
        there = None
    if overwrite or there is None:
        shutil.rmtree(folder, ignore_errors=True)
        _write(file, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")


def _measure_missing(
    experiment: Experiment[Any], points: list[Point], folder: Path, pool: Executor | None
) -> dict[str, dict[str, Any]]:
    """Key of a point -> its line, after all points are measured."""
    file = folder / "points.jsonl"
    lines = _finished(file)
    missing = [point for point in points if _key(point) not in lines]
    with progress_bar(experiment.name, len(points)) as bar, open(file, "a", encoding="utf-8") as out:
        bar.update(len(points) - len(missing))
        for line in _lines(experiment, missing, pool):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            lines[_key(line["point"])] = line
            bar.update(len(points) - len(missing) + sum(_key(point) in lines for point in missing))
    return lines


def _finished(file: Path) -> dict[str, dict[str, Any]]:
    """The whole lines of points.jsonl; what a kill cut off is removed, so that appending starts a line."""
    if not file.exists():
        return {}
    text = file.read_text(encoding="utf-8")
    lines = {}
    for line in text[: text.rfind("\n") + 1].splitlines():
        entry = json.loads(line)
        lines[_key(entry["point"])] = entry
    if not text.endswith("\n"):
        _write(file, text[: text.rfind("\n") + 1])
    return lines


def _lines(experiment: Experiment[Any], points: list[Point], pool: Executor | None) -> Iterator[dict[str, Any]]:
    if pool is None:
        for point in points:
            yield _timed(experiment, point)
        return
    futures = [pool.submit(_timed_by_name, experiment.name, point) for point in points]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _timed_by_name(name: str, point: Point) -> dict[str, Any]:
    return _timed(load(name), point)


def _timed(experiment: Experiment[Any], point: Point) -> dict[str, Any]:
    begin = time.process_time()
    try:
        result = _clean(experiment.measure(point))
    except Exception as error:
        error.add_note(f"in experiment {experiment.name} at the point {point}")
        raise
    if both := sorted(set(point) & set(result)):
        raise ValueError(f"{experiment.name} measures {both[0]}, which its points already hold")
    return {"point": point, "result": result, "seconds": round(time.process_time() - begin, 4)}


def _clean(value: Any) -> Any:
    """Plain Python numbers; what is not finite becomes null, as JSON wants it."""
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    if hasattr(value, "tolist"):
        return _clean(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _key(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


# ---- what is written --------------------------------------------------------------------------------------------------


def _result(
    experiment: Experiment[Any],
    settings: dict[str, Any],
    summary: Summary,
    n_points: int,
    seconds: float,
    command: str | None,
) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return json.loads(json.dumps(asdict(value)))

    packages = ("torch", "numpy", "scipy")
    return {
        "name": experiment.name,
        "title": experiment.title,
        "claim": experiment.claim,
        "verdict": summary.verdict,
        "why": summary.why,
        "notes": summary.notes,
        "table": summary.table,
        "numbers": [{**asdict(number), "ok": number.ok if number.decides else None} for number in summary.numbers],
        "settings": settings,
        "quick": settings == plain(experiment.quick()) != plain(experiment.settings()),
        "points": n_points,
        "seconds": round(seconds, 1),
        "command": command or f"python -m mcot_torch.experiments {experiment.name}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": {
            "mcot_torch": __version__,
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: version(name) for name in packages},
        },
    }


def _table(rows: list[Measurement]) -> str:
    """CSV of the rows; lists stand as JSON in one cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row.get(column) for column in columns)
        writer.writerow([json.dumps(cell) if isinstance(cell, (list, dict)) else cell for cell in cells])
    return text.getvalue()


def _save_figure(figure: Any, path: Path) -> None:
    """A PNG of at most 256 colours: a third of the size, and nobody sees it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_FIGURE_DPI, metadata={"Software": None})
    temporary = path.with_name(path.name + ".tmp")
    Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        temporary, "png", optimize=True
    )
    temporary.replace(path)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
