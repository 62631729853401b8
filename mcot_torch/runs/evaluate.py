"""What a run leaves for people: evaluation.json, evaluation.csv, the table on the terminal, the figures, report.html.

`evaluate_run` recomputes all of it from the run folder alone, for every model that its finished stages left.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from mcot_torch.chains import survival
from mcot_torch.errors import InputError
from mcot_torch.evaluation.subjects import Row, Subject, measure, measure_lift, subjects
from mcot_torch.evaluation.values import Values
from mcot_torch.graphs import MetastableGraph
from mcot_torch.report.page.material import Material
from mcot_torch.report.page.story import report
from mcot_torch.report.page.values import value_table
from mcot_torch.report.tables import as_markdown, expected_time, result_tables, rows_as_csv
from mcot_torch.runs.config import STAGES, Config
from mcot_torch.runs.pipeline import Models, Problem, load_run
from mcot_torch.runs.run_folder import RunFolder
from mcot_torch.system.files import write_text
from mcot_torch.system.machine import settle
from mcot_torch.system.progress import console, progress_bar

__all__ = ["evaluate_run", "shortest_path"]


def evaluate_run(
    path: Path,
    walks: int | None = None,
    seed: int | None = None,
    figures: bool | None = None,
    device: str | None = None,
    log_to: RunFolder | None = None,
) -> dict[str, Any]:
    """Evaluate every model of a run and write evaluation.json, evaluation.csv, figures/*.png and report.html.

    Args:
        path: the run folder.
        walks: Monte Carlo walks of each model; the run's own setting by default.
        seed: of the walks; the run's seed by default.
        figures: draw them and write the report; the run's own setting by default.
        device: "auto", "cpu" or "cuda"; the run's own setting by default.
        log_to: the run folder that is open for TensorBoard, if one is.

    Returns:
        What evaluation.json holds.
    """
    folder = log_to or RunFolder(Path(path))
    config, problem, models = load_run(folder, device)
    settle(config.trainer.threads)
    if models.pretrained is None:
        raise InputError(
            f"{folder.path} holds no finished stage; the train.py command of its manifest.json continues it"
        )
    seed = config.seed if seed is None else seed
    walks = walks or config.evaluation.walks
    values = _values(config, problem, models)
    rows, times, evaluated = _measure_all(config, problem, models, walks, seed, values)
    curves = _curves(evaluated, times, rows)
    result = {"models": rows, **_surroundings(config, problem, folder, walks, seed), "survival": _survival(curves)}
    if values is not None:
        result["logic"] = {"group": config.logic.group, "actions": config.logic.actions, **values.summary()}
    write_text(folder.path / "evaluation.json", json.dumps(result, indent=2))
    write_text(folder.path / "evaluation.csv", rows_as_csv(rows))
    for table in (*result_tables(result), *([value_table(result)] if "logic" in result else [])):
        console.print(table)
    if config.evaluation.figures if figures is None else figures:
        _draw(folder, problem, models, evaluated, curves, rows)
        named = {subject.name: subject for subject in evaluated}
        material = Material(folder.path.resolve().name, config, problem, models, result, named, curves)
        write_text(folder.path / "report.html", report(material))
    if log_to is not None:
        _log(log_to, config, rows)
    return result


def _values(config: Config, problem: Problem, models: Models) -> Values | None:
    """The values that the models have learned to return, where hard steps compute any."""
    if problem.actions is None or models.pretrained is None:
        return None
    return Values(
        problem.actions,
        config.logic.paths,
        problem.scales,
        config.seed,
        models.pretrained,
        models.prm,
        models.teacher(config),
        models.student,
        _teacher_epsilon(config, problem),
    )


def _teacher_epsilon(config: Config, problem: Problem) -> float:
    return problem.scales.epsilon_max if config.distill.teacher == "tuned" else problem.scales.epsilon


def _measure_all(
    config: Config, problem: Problem, models: Models, walks: int, seed: int, values: Values | None
) -> tuple[dict[str, Row], dict[str, np.ndarray], list[Subject]]:
    graph, task, scales = problem.graph, problem.task, problem.scales
    found = subjects(
        graph,
        task,
        scales,
        models.pretrained,
        models.prm,
        models.tuned,
        models.student,
        _teacher_epsilon(config, problem),
        config.evaluation.contexts,
        seed,
    )
    rows: dict[str, Row] = {}
    times: dict[str, np.ndarray] = {}
    with progress_bar("evaluate", len(found), config.trainer.progress) as bar:
        for done, subject in enumerate(found):
            bar.update(done, subject.name)
            watched, judged = (subject, dict) if values is None else values.watch(subject)
            row, times[subject.name] = measure(watched, walks, config.evaluation.horizon_factor, seed)
            rows[subject.name] = row | judged()
        teacher = models.teacher(config)
        if models.student is not None and models.prm is not None and teacher is not None:
            judge = None if values is None else values.lifted
            rows["student"] |= measure_lift(models.student, teacher, models.prm, graph, task, walks, seed, judge)
        bar.update(len(found))
    base = rows["base"]["hitting_time_exact"]
    for row in rows.values():
        row["speedup"] = base / expected_time(row) if expected_time(row) else None
        if "lifted_steps" in row:
            row["lifted_speedup"] = base / row["lifted_steps"] if row["lifted_steps"] else None
    return rows, times, found


def _surroundings(config: Config, problem: Problem, folder: RunFolder, walks: int, seed: int) -> dict[str, Any]:
    graph, manifest = problem.graph, folder.manifest()
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


def _curves(evaluated: list[Subject], times: dict[str, np.ndarray], rows: dict[str, Row]) -> dict[str, dict[str, Any]]:
    """Model -> its survival curve as `figures.survival_figure` takes it."""
    curves: dict[str, dict[str, Any]] = {}
    for subject in evaluated:
        longest = max(2, times[subject.name].max())
        grid = np.unique(np.concatenate([np.arange(1, 100), np.geomspace(1, longest, 120).astype(np.int64)]))
        grid = grid[grid <= longest]
        exact = survival(subject.kernel, subject.start, subject.target, grid) if subject.law_is_solved else None
        horizon = rows[subject.name]["hitting_time_sampled"]["horizon"]
        curve = {
            "times": grid,
            "exact": exact,
            "sampled": times[subject.name],
            "unit": subject.unit,
            "horizon": horizon,
        }
        curves[subject.name] = curve
    return curves


def _survival(curves: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The curves at some 60 times each, for evaluation.json and for comparing runs."""
    out = {}
    for name, curve in curves.items():
        grid = np.unique(np.geomspace(1, curve["times"][-1], 60).round().astype(np.int64))
        exact = None if curve["exact"] is None else np.interp(grid, curve["times"], curve["exact"]).round(6).tolist()
        sampled = 1.0 - np.searchsorted(np.sort(curve["sampled"]), grid, side="right") / len(curve["sampled"])
        sampled = np.where(grid < curve["horizon"], sampled, np.mean(curve["sampled"] >= curve["horizon"]))
        out[name] = {
            "unit": curve["unit"],
            "times": grid.tolist(),
            "exact": exact,
            "sampled": sampled.round(6).tolist(),
        }
    return out


def _draw(
    folder: RunFolder,
    problem: Problem,
    models: Models,
    evaluated: list[Subject],
    curves: dict[str, dict[str, Any]],
    rows: dict[str, Row],
) -> None:
    from mcot_torch.report import figures

    found = models.prm.edges.numpy() if models.prm is not None else None
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

    from mcot_torch.runs.events import final_metrics, log_hyperparameters

    log_hyperparameters(folder.writer, config, final_metrics(rows))
    folder.writer.add_text("run/result", as_markdown(rows))
    for image in sorted((folder.path / "figures").glob("*.png")):
        folder.writer.add_image(f"figures/{image.stem}", imread(image)[..., :3], dataformats="HWC")
