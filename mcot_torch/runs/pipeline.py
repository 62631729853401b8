"""The stages in order, over one run folder: graph -> pretrain -> search -> PPO -> distill -> evaluation.

Each stage either finds its result in the folder or makes it; a stage that was killed goes on from its last state. Only
pretraining receives the graph. What the others log about the truth comes from probes that evaluation supplies.
"""

from __future__ import annotations

import copy
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcot_torch.algorithms.distill import distill
from mcot_torch.algorithms.ppo import ppo, sign_ascent
from mcot_torch.algorithms.pretrain import pretrain
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.search import search
from mcot_torch.chains.assumptions import check_assumptions, summary_lines
from mcot_torch.errors import InputError
from mcot_torch.evaluation.measures import make_probe
from mcot_torch.evaluation.problem import Models, Problem, prepare
from mcot_torch.reasoners import Reasoner, build_reasoner, load_reasoner
from mcot_torch.reasoners.linear import LinearReasoner
from mcot_torch.runs.config import Config, resolve_run_dir
from mcot_torch.runs.folder import RunFolder
from mcot_torch.runs.loading import load_models
from mcot_torch.runs.memory import check_memory
from mcot_torch.system.devices import pick_device
from mcot_torch.system.machine import settle
from mcot_torch.system.progress import say
from mcot_torch.system.ranks import barrier, is_first, joined, read_slurm, world_size
from mcot_torch.training.loop import Context
from mcot_torch.training.result import Cost, Metrics

__all__ = ["run"]


def run(config: Config, command: list[str]) -> Path:
    """Run or continue the pipeline of `config`; returns the run folder.

    Raises:
        InputError: before any work, if anything in the configuration cannot be.
    """
    settle(config.trainer.threads)
    if config.trainer.deterministic:  # before CUDA is used; Lightning would do it for the steps of a stage alone
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    problem = prepare(config.graph, config.task, config.logic)
    read_slurm(config.trainer.devices)  # before the device: it says which one is this rank's
    device = pick_device(config.trainer.accelerator, config.trainer.devices)
    degree = int(np.diff(problem.graph.indptr).max())
    check_memory(config, problem.graph.n_states, degree, problem.scales, device)
    fresh = build_reasoner(config.reasoner, problem.graph.n_states, config.seed, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    path = resolve_run_dir(config)
    with joined(device, config.trainer.devices), _naming(path):
        folder = RunFolder(path)
        if is_first():
            folder = RunFolder.open(path, config, command, problem.graph.fingerprint(), f"{device.type}: {name}")
            problem.graph.save(path / "graph.npz")
            _introduce(problem, fresh, folder, device)
        barrier()
        with closing(folder):
            _run_stages(config, problem, fresh, folder)
            if is_first():
                _conclude(config, folder, command)
    return path


def _conclude(config: Config, folder: RunFolder, command: list[str]) -> None:
    from mcot_torch.runs.evaluate import evaluate_run

    with folder_seconds(folder, "evaluate"):
        evaluate_run(folder.path, log_to=folder)
    evaluate = "python evaluate.py" if command[0].endswith(".py") else "mcot-evaluate"
    drawn = (("Report", f"{folder.path}/report.html"), ("Figures", f"{folder.path}/figures"))
    for what, command_line in (
        *(drawn if config.evaluation.figures else ()),
        ("Curves", f"tensorboard --logdir {folder.path}"),
        ("Evaluate", f"{evaluate} {folder.path}"),
    ):
        say(f"{what:<8} {command_line}")


def _introduce(problem: Problem, reasoner: Reasoner, folder: RunFolder, device: torch.device) -> None:
    graph, scales = problem.graph, problem.scales
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    where = f"{world_size()} x {where}" if world_size() > 1 else where
    say(f"Run      {folder.path}   on {where}, torch threads {torch.get_num_threads()}")
    say(
        f"Graph    N = {graph.n_states} states, K = {graph.n_clusters} clusters of at most M = {graph.cluster_size}, "
        f"{int(graph.hard.sum())} hard steps, ε = {graph.epsilon:g}, ε_max = {scales.epsilon_max:g}"
    )
    say(
        f"Task     {problem.task.description}: exactly {problem.hitting_time(graph.epsilon):,.0f} steps, "
        f"{problem.hitting_time(scales.epsilon_max):,.0f} at ε_max"
    )
    for line in summary_lines(check_assumptions(graph, problem.task)):
        say(f"         {line}")
    kind = type(reasoner).__name__
    say(f"Reasoner {kind}, window {reasoner.window}, {reasoner.n_parameters:,} parameters")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """TensorBoard's thread fails without saying where: a full disk is told with the run's folder at least."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def folder_seconds(folder: RunFolder, stage: str) -> Iterator[None]:
    """Note how long the body took, in the manifest."""
    begin = time.perf_counter()
    yield
    folder.add_seconds(stage, time.perf_counter() - begin)


def _run_stages(config: Config, problem: Problem, fresh: Reasoner, folder: RunFolder) -> None:
    device = fresh.device
    runners: dict[str, Callable[[Models], tuple[list[Metrics], dict]]] = {
        "pretrain": lambda models: _pretrain(config, problem, fresh, folder),
        "search": lambda models: _search(config, problem, models, folder),
        "ppo": lambda models: _ppo(config, problem, models, folder),
        "distill": lambda models: _distill(config, problem, models, folder),
    }
    if is_first():
        _ = folder.writer  # the events of earlier processes, before any new one
    for stage in config.stages:
        if folder.is_finished(stage):
            say(f"{stage:>8}  found in {folder.stage(stage)}")
            continue
        models = load_models(folder, problem, device)
        begin = time.perf_counter()
        with folder_seconds(folder, stage):
            history, summary = runners[stage](models)
        if is_first():
            folder.finish(stage, history, **summary)
        barrier()  # the next stage reads what this one left
        say(f"{stage:>8}  {time.perf_counter() - begin:5.1f} s  {_told(stage, history, summary)}")


def _told(stage: str, history: list[Metrics], summary: dict) -> str:
    """One line about what a stage did."""
    last = history[-1] if history else {}
    if stage == "search":
        return f"{summary['edges']} hard steps in {summary['transitions']:,} transitions"
    if stage == "distill":
        return f"a student over {summary['n_clusters']} clusters"
    if "hard_step_min" not in last:
        return ""
    low, high = last["hard_step_min"], last["hard_step_max"]
    return f"hard steps between {low:.3g} and {high:.3g}, rows within TV {last['row_tv_max']:.2g}"


def _pretrain(config: Config, problem: Problem, fresh: Reasoner, folder: RunFolder) -> tuple[list[Metrics], dict]:
    context = folder.context("pretrain", config, make_probe(problem.graph))
    result = pretrain(fresh, problem.graph, config.pretrain, context)
    folder.keep("pretrain", result.model)
    return result.history, {"cost": asdict(result.cost)}


def _search(config: Config, problem: Problem, models: Models, folder: RunFolder) -> tuple[list[Metrics], dict]:
    assert models.pretrained is not None
    reasoner, on_round = models.pretrained, None
    if config.search.mode == "rl":
        reasoner = copy.deepcopy(models.pretrained)
        on_round = _reinforce(config, problem, reasoner, models.pretrained)
    result = search(reasoner, problem.scales, config.search, folder.context("search", config), on_round)
    prm, transitions = result.model, result.cost.transitions
    if not len(prm.edges):
        raise InputError(
            f"search found no hard step in {transitions:,} transitions; try a larger search.rounds or "
            f"search.max_steps, or a smaller search.min_votes; if the cut took them, more pretrain.steps or a smaller pretrain.threshold"
        )
    if is_first():
        prm.save(folder.stage("search") / "edges.csv")
    if config.search.mode == "rl":
        folder.keep("search", reasoner)
    return result.history, {"edges": len(prm.edges), "transitions": transitions, "cost": asdict(result.cost)}


def _reinforce(config: Config, problem: Problem, reasoner: Reasoner, reference: Reasoner) -> Callable[[Tensor], Cost]:
    """Algorithm 3 after each round of search (RL mode), raising all steps found so far; returns its cost."""

    def on_round(edges: Tensor) -> Cost:
        prm = PRM(problem.graph.n_states, edges)
        if isinstance(reasoner, LinearReasoner) and config.ppo.form == "sign":
            reasoner.load_state_dict(reference.state_dict())  # a row's hard steps are raised together
            sign_ascent(reasoner, prm, problem.scales, config.ppo.sign_step, config.ppo.clip)
            return Cost()
        short = replace(config.ppo, rounds=max(1, config.ppo.rounds // 10))
        context = Context(config.seed, trainer=replace(config.trainer, progress=False))  # search has a bar already
        return ppo(reasoner, prm, problem.scales, short, context, *_start_and_target(problem), reference).cost

    return on_round


def _start_and_target(problem: Problem) -> tuple[Tensor, Tensor]:
    """The task as Algorithm 3 takes it: (N,) law of X_in and (N,) bool X_out."""
    return torch.from_numpy(problem.task.start), torch.from_numpy(problem.task.mask())


def _ppo(config: Config, problem: Problem, models: Models, folder: RunFolder) -> tuple[list[Metrics], dict]:
    assert models.pretrained is not None
    assert models.prm is not None
    context = folder.context("ppo", config, make_probe(problem.graph, problem.scales.epsilon_max))
    reasoner = copy.deepcopy(models.pretrained)
    if config.search.mode == "rl":
        reasoner = load_reasoner(folder.stage("search"), reasoner.device)
        if config.ppo.form == "sign":  # RL mode has raised every step already
            folder.keep("ppo", reasoner)
            return [{"step": 0, **context.probe(reasoner)}], {"cost": asdict(Cost())}  # type: ignore[misc]
    start, target = _start_and_target(problem)
    result = ppo(reasoner, models.prm, problem.scales, config.ppo, context, start, target, models.pretrained)
    folder.keep("ppo", result.model)
    return result.history, {"cost": asdict(result.cost)}


def _distill(config: Config, problem: Problem, models: Models, folder: RunFolder) -> tuple[list[Metrics], dict]:
    teacher = models.teacher(config)
    assert teacher is not None
    assert models.prm is not None
    result = distill(teacher, models.prm, problem.scales, config.distill, folder.context("distill", config))
    student = result.model
    try:
        graph = student.graph()
    except InputError as error:
        raise InputError(
            f"the student's clusters are no graph: {error}; use a larger distill.transitions, or train the teacher longer"
        ) from None
    folder.keep("distill", student)
    if is_first():
        graph.save(folder.stage("distill") / "graph.npz")
    return result.history, {"n_clusters": student.n_states, "cost": asdict(result.cost)}
