"""What a run leaves for people: evaluation.json, evaluation.csv, the table on the terminal, the figures.

`evaluate_run` recomputes all of it from the run folder alone, for every model that its finished stages left.
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from mcot_torch.chains import survival
from mcot_torch.config import STAGES, Config
from mcot_torch.errors import InputError
from mcot_torch.evaluation import Row, Subject, measure, measure_lift, subjects
from mcot_torch.graphs import MetastableGraph, build_task, resolve_epsilon_max
from mcot_torch.pipeline import Models, Problem, load_models, pick_device
from mcot_torch.progress import console, progress_bar
from mcot_torch.run_folder import RunFolder, read_json, write_text
from mcot_torch.scales import Scales

__all__ = ["evaluate_run", "result_tables"]


def evaluate_run(
    path: Path,
    walks: int | None = None,
    seed: int | None = None,
    figures: bool | None = None,
    device: str | None = None,
    log_to: RunFolder | None = None,
) -> dict[str, Any]:
    """Evaluate every model of a run and write evaluation.json, evaluation.csv and figures/*.png.

    Args:
        path: the run folder.
        walks: Monte Carlo walks of each model; the run's own setting by default.
        seed: of the walks; the run's seed by default.
        figures: draw them; the run's own setting by default.
        device: "auto", "cpu" or "cuda"; the run's own setting by default.
        log_to: the run folder that is open for TensorBoard, if one is.

    Returns:
        What evaluation.json holds.
    """
    folder = log_to or RunFolder(Path(path))
    config = folder.config()
    torch.set_num_threads(config.trainer.threads)
    problem, models = _load(folder, config, device or config.trainer.accelerator)
    if models.pretrained is None:
        raise InputError(
            f"{folder.path} holds no finished stage; the train.py command of its manifest.json continues it"
        )
    seed = config.seed if seed is None else seed
    walks = walks or config.evaluation.walks
    rows, times, evaluated = _measure_all(config, problem, models, walks, seed)
    result = {"models": rows, **_surroundings(config, problem, folder, walks, seed)}
    write_text(folder.path / "evaluation.json", json.dumps(result, indent=2))
    write_text(folder.path / "evaluation.csv", _csv(rows))
    for table in result_tables(result):
        console.print(table)
    if config.evaluation.figures if figures is None else figures:
        _draw(folder, problem, models, evaluated, times, rows)
    if log_to is not None:
        _log(log_to, config, rows)
    return result


def _load(folder: RunFolder, config: Config, device: str) -> tuple[Problem, Models]:
    graph = MetastableGraph.load(folder.path / "graph.npz")
    if graph.fingerprint() != read_json(folder.path / "manifest.json").get("graph"):
        raise InputError(
            f"{folder.path / 'graph.npz'} is not the graph of this run: its fingerprint is not the manifest's"
        )
    scales = Scales.of(graph, resolve_epsilon_max(config.graph, graph))
    problem = Problem(graph, build_task(config.task, graph), scales)
    return problem, load_models(folder, problem, pick_device(device))


def _measure_all(
    config: Config, problem: Problem, models: Models, walks: int, seed: int
) -> tuple[dict[str, Row], dict[str, np.ndarray], list[Subject]]:
    graph, task, scales = problem.graph, problem.task, problem.scales
    epsilon = scales.epsilon_max if config.distill.teacher == "tuned" else scales.epsilon
    found = subjects(
        graph,
        task,
        scales,
        models.pretrained,
        models.prm,
        models.tuned,
        models.student,
        epsilon,
        config.evaluation.contexts,
        seed,
    )
    rows: dict[str, Row] = {}
    times: dict[str, np.ndarray] = {}
    with progress_bar("evaluate", len(found), config.trainer.progress) as bar:
        for done, subject in enumerate(found):
            bar.update(done, subject.name)
            rows[subject.name], times[subject.name] = measure(subject, walks, config.evaluation.horizon_factor, seed)
        teacher = models.teacher(config)
        if models.student is not None and models.prm is not None and teacher is not None:
            rows["student"] |= measure_lift(models.student, teacher, models.prm, graph, task, walks, seed)
        bar.update(len(found))
    base = rows["base"]["hitting_time_exact"]
    for row in rows.values():
        row["speedup"] = base / _expected(row) if _expected(row) else None
        if "lifted_steps" in row:
            row["lifted_speedup"] = base / row["lifted_steps"] if row["lifted_steps"] else None
    return rows, times, found


def _expected(row: Row) -> float:
    """A model's expected hitting time: exact where it is, sampled otherwise."""
    exact = row["hitting_time_exact"]
    return exact if exact is not None else row["hitting_time_sampled"]["mean"]


def _surroundings(config: Config, problem: Problem, folder: RunFolder, walks: int, seed: int) -> dict[str, Any]:
    graph, manifest = problem.graph, read_json(folder.path / "manifest.json")
    return {
        "task": {
            "description": problem.task.description,
            "hitting_time": problem.hitting_time(graph.epsilon),
            "hitting_time_at_epsilon_max": problem.hitting_time(problem.scales.epsilon_max),
            "shortest_path": shortest_path(graph, problem.task.start, problem.task.target),
        },
        "graph": {
            "family": config.graph.family,
            "n_states": graph.n_states,
            "n_clusters": graph.n_clusters,
            "cluster_size": graph.cluster_size,
            "n_hard_steps": int(graph.hard.sum()),
            "epsilon": graph.epsilon,
            "epsilon_max": problem.scales.epsilon_max,
        },
        "transitions": {
            "search": folder.metrics("search")["transitions"] if folder.is_finished("search") else None,
            "ppo": next((x["env_steps"] for x in reversed(folder.history("ppo")) if "env_steps" in x), None),
        },
        "seed": config.seed,
        "evaluation": {"seed": seed, "walks": walks},
        "seconds": manifest["seconds"],
        "versions": {"mcot_torch": manifest["mcot_torch"], "python": manifest["python"], **manifest["packages"]},
    }


def shortest_path(graph: MetastableGraph, start: np.ndarray, target: np.ndarray) -> int:
    """Fewest steps from any start state to the target, by breadth-first search."""
    distance = np.full(graph.n_states, -1)
    queue = deque(np.flatnonzero(start > 0).tolist())
    distance[list(queue)] = 0
    goal = set(target.tolist())
    while queue:
        x = queue.popleft()
        if x in goal:
            return int(distance[x])
        for y in graph.indices[graph.indptr[x] : graph.indptr[x + 1]].tolist():
            if distance[y] < 0:
                distance[y] = distance[x] + 1
                queue.append(y)
    raise InputError("the target cannot be reached")


def _flat(row: Row, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _csv(rows: dict[str, Row]) -> str:
    flat = [{"model": name, **_flat(row)} for name, row in rows.items()]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()


def _number(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _interval(mean: float | None, high: float | None) -> str:
    if mean is None or high is None:
        return "–"
    return f"{_number(mean)} ± {_number(high - mean)}"


def _table(title: str, caption: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    for name in columns:
        table.add_column(name, justify="left" if name in ("model", "unit", "against") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def result_tables(result: dict[str, Any]) -> tuple[Table, Table]:
    """The two tables that a run closes with: how long each model takes, and how close it is to what it should be."""
    task, models = result["task"], result["models"]
    times, fits = [], []
    averaged = False
    for name, row in models.items():
        sampled, hard, exact = row["hitting_time_sampled"], row["hard_step_probability"], row["hitting_time_exact"]
        averaged |= row["hitting_time_context_averaged"] is not None
        times.append(
            (
                name,
                row["unit"],
                _number(row["hitting_time_context_averaged"]) + "*"
                if row["hitting_time_context_averaged"]
                else _number(exact),
                _number(row["hitting_time_exact_raw"]),
                _interval(sampled["mean"], sampled["high"]),
                f"{_number(row['speedup'])}x",
                "–" if row["parameters"] is None else f"{row['parameters']:,}",
            )
        )
        if "lifted_steps" in row:
            length = _interval(row["lifted_steps"], row["lifted_steps_high"])
            valid = f"{row['lifted_valid']:.0%} valid"
            times.append(("  lifted", "steps", "–", "–", length, f"{_number(row['lifted_speedup'])}x", valid))
        fits.append(
            (
                name,
                row["row_tv_reference"],
                "–" if row["row_tv_mean"] is None else f"{row['row_tv_mean']:.0e}",
                "–" if row["row_tv_max"] is None else f"{row['row_tv_max']:.0e}",
                f"{hard['min']:.3g}",
                f"{hard['max']:.3g}",
                "–" if row["hard_step_precision"] is None else f"{row['hard_step_precision']:.2f}",
                "–" if row["hard_step_recall"] is None else f"{row['hard_step_recall']:.2f}",
            )
        )
    note = (
        "exact: solved from the model's kernel after the cut (raw: before it); sampled: mean of walks ± 95 % interval"
    )
    if averaged:
        note += "; *: of predictions averaged over contexts, since the model reads history"
    return (
        _table(
            f"{escape(task['description'])}, seed {result['seed']}; shortest path {task['shortest_path']} steps",
            note,
            ("model", "unit", "exact", "raw", "sampled", "speed-up", "params"),
            times,
        ),
        _table(
            "How close",
            "TV: total variation of a row; hard: probability of the hard steps (hops of the student); "
            "P, R: precision and recall of those found",
            ("model", "against", "TV mean", "TV max", "hard min", "max", "P", "R"),
            fits,
        ),
    )


def _draw(
    folder: RunFolder,
    problem: Problem,
    models: Models,
    evaluated: list[Subject],
    times: dict[str, np.ndarray],
    rows: dict[str, Row],
) -> None:
    from mcot_torch import figures

    found = models.prm.edges.numpy() if models.prm is not None else None
    curves = {}
    for subject in evaluated:
        longest = max(2, times[subject.name].max())
        grid = np.unique(np.concatenate([np.arange(1, 100), np.geomspace(1, longest, 120).astype(np.int64)]))
        grid = grid[grid <= longest]
        exact = survival(subject.kernel, subject.start, subject.target, grid) if subject.exact else None
        curve: dict[str, Any] = {"times": grid, "exact": exact, "sampled": times[subject.name], "unit": subject.unit}
        curve["horizon"] = rows[subject.name]["hitting_time_sampled"]["horizon"]
        curves[subject.name] = curve
    kernels = {subject.name: subject.kernel for subject in evaluated if subject.unit == "steps"}
    histories = {stage: folder.history(stage) for stage in STAGES if folder.is_finished(stage)}
    epsilon, epsilon_max = problem.scales.epsilon, problem.scales.epsilon_max
    drawn = {
        "graph": figures.graph_figure(problem.graph, found, problem.task),
        "hitting_times": figures.hitting_time_figure(rows),
        "kernels": figures.kernel_figure(kernels, problem.graph.clusters),
        "survival": figures.survival_figure(curves),
        "training": figures.training_figure(histories, epsilon, epsilon_max),
    }
    for name, figure in drawn.items():
        figures.save(figure, folder.path / "figures" / f"{name}.png")


def _log(folder: RunFolder, config: Config, rows: dict[str, Row]) -> None:
    """Final metrics and figures into TensorBoard."""
    from matplotlib.image import imread

    metrics: dict[str, float] = {}
    for name, row in rows.items():
        metrics[f"final/{name}/hitting_time"] = _expected(row)
        if row["speedup"] is not None:
            metrics[f"final/{name}/speedup"] = row["speedup"]
        if row["row_tv_max"] is not None:
            metrics[f"final/{name}/row_tv_max"] = row["row_tv_max"]
    folder.log_result(config, metrics)
    for image in sorted((folder.path / "figures").glob("*.png")):
        folder.writer.add_image(f"figures/{image.stem}", imread(image)[..., :3], dataformats="HWC")
