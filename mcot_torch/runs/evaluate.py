"""Evaluate a run: load its models, measure them, draw them, and write evaluation.json, evaluation.csv, figures and report.html.

`evaluate_run` needs the run folder alone. `evaluation/` computes the numbers and `report/` draws them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mcot_torch.algorithms.config import default_distill_transitions
from mcot_torch.errors import InputError
from mcot_torch.evaluation.curves import SurvivalCurve, curve_entries, survival_curves
from mcot_torch.evaluation.models import EvaluationInputs, Measured, measure_models
from mcot_torch.evaluation.problem import Models, Problem, shortest_path
from mcot_torch.evaluation.rows import ModelRow
from mcot_torch.evaluation.values import Values
from mcot_torch.reasoners import Reasoner, build_reasoner
from mcot_torch.report.page.material import Material
from mcot_torch.report.page.story import report_page
from mcot_torch.report.page.values import value_table
from mcot_torch.report.tables import as_markdown, result_tables, rows_as_csv
from mcot_torch.runs.config import STAGES, Config, to_yaml
from mcot_torch.runs.folder import RunFolder
from mcot_torch.runs.loading import load_run
from mcot_torch.system.files import write_text
from mcot_torch.system.machine import settle
from mcot_torch.system.progress import console

__all__ = ["evaluate_run"]


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
    trained_on = models.pretrained.device

    def fresh() -> Reasoner:
        return build_reasoner(config.reasoner, problem.graph.n_states, config.seed, trained_on)

    inputs = EvaluationInputs(problem, models, config.distill.teacher, config.evaluation.contexts, seed, fresh)
    values = _values(config, inputs)
    measured = measure_models(inputs, walks, config.evaluation.horizon_factor, values, config.trainer.progress)
    rows, curves = measured.rows, survival_curves(measured)
    result = {"models": rows, **_surroundings(config, problem, folder, walks, seed), "survival": curve_entries(curves)}
    if values is not None:
        result["logic"] = {"group": config.logic.group, "actions": config.logic.actions, **values.summary()}
    write_text(folder.path / "evaluation.json", json.dumps(result, indent=2))
    write_text(folder.path / "evaluation.csv", rows_as_csv(rows))
    for table in (*result_tables(result), *([value_table(result)] if "logic" in result else [])):
        console.print(table)
    if config.evaluation.figures if figures is None else figures:
        _draw(folder, inputs, measured, curves)
        material = Material(
            folder.path.resolve().name,
            config.seed,
            config.distill.teacher,
            to_yaml(config),
            problem,
            models,
            _sampled(config, models, result["transitions"]),
            result,
            measured.subjects,
            curves,
        )
        write_text(folder.path / "report.html", report_page(material))
    if log_to is not None:
        _log(log_to, config, rows)
    return result


def _values(config: Config, inputs: EvaluationInputs) -> Values | None:
    """The values that the models have learned to return, where hard steps compute any."""
    problem, models = inputs.problem, inputs.models
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
        inputs.teacher_epsilon,
    )


def _sampled(config: Config, models: Models, transitions: dict[str, Any]) -> dict[str, float | None]:
    """Stage -> steps that it was asked to sample, as the report shows them; None where that is unknown.

    The `cost` of metrics.json counts more: the paths on which pretraining decides the cut of a longer window, and the walks by
    which distillation labels the states. It also rounds to whole walks.
    """
    assert models.pretrained is not None
    window = models.pretrained.window
    steps = config.pretrain.steps + config.pretrain.steps_after_cut
    if window > 1:
        pretrain = steps * config.pretrain.batch_size * window
    else:
        pretrain = config.pretrain.transitions * (steps if config.pretrain.data == "pairs" else 1)
    distill = config.distill.transitions or default_distill_transitions(window)
    return {"pretrain": pretrain, **transitions, "distill": distill}


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
            "ppo": _sampled_by_ppo(folder),
        },
        "seed": config.seed,
        "evaluation": {"seed": seed, "walks": walks},
        "seconds": manifest["seconds"],
        "versions": {"mcot_torch": manifest["mcot_torch"], "python": manifest["python"], **manifest["packages"]},
    }


def _sampled_by_ppo(folder: RunFolder) -> float | None:
    """Steps that PPO sampled; None where it has not finished, or sampled nothing because it took the exact sign form."""
    if folder.is_finished("ppo") and "cost" in (metrics := folder.metrics("ppo")):
        return metrics["cost"]["transitions"] or None
    return next((x["env_steps"] for x in reversed(folder.history("ppo")) if "env_steps" in x), None)


def _draw(folder: RunFolder, inputs: EvaluationInputs, measured: Measured, curves: dict[str, SurvivalCurve]) -> None:
    from mcot_torch.report import figures

    problem, prm = inputs.problem, inputs.models.prm
    found = prm.edges.numpy() if prm is not None else None
    kernels = {name: subject.kernel for name, subject in measured.subjects.items() if subject.unit == "steps"}
    histories = {stage: folder.history(stage) for stage in STAGES if folder.is_finished(stage)}
    epsilon, epsilon_max = problem.scales.epsilon, problem.scales.epsilon_max
    drawn = {
        "graph": figures.graph_figure(problem.graph, found, problem.task),
        "hitting_times": figures.hitting_time_figure(measured.rows),
        "kernels": figures.kernel_figure(kernels, problem.graph.clusters),
        "survival": figures.survival_figure(curves),
        "training": figures.training_figure(histories, epsilon, epsilon_max),
    }
    for name, figure in drawn.items():
        figures.save(figure, folder.path / "figures" / f"{name}.png")


def _log(folder: RunFolder, config: Config, rows: dict[str, ModelRow]) -> None:
    """Final metrics and figures into TensorBoard."""
    from matplotlib.image import imread

    from mcot_torch.runs.events import final_metrics, log_hyperparameters

    log_hyperparameters(folder.writer, config, final_metrics(rows))
    folder.writer.add_text("run/result", as_markdown(rows))
    for image in sorted((folder.path / "figures").glob("*.png")):
        folder.writer.add_image(f"figures/{image.stem}", imread(image)[..., :3], dataformats="HWC")
