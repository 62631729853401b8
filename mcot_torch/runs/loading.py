"""Read a run folder back: its configuration, its problem and the models of its finished stages, each checked."""

from __future__ import annotations

import torch

from mcot_torch.algorithms.prm import PRM
from mcot_torch.errors import InputError
from mcot_torch.evaluation.problem import Models, Problem, pose
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.reasoners import Reasoner, Student, load_reasoner
from mcot_torch.runs.config import STAGES, Config
from mcot_torch.runs.folder import RunFolder
from mcot_torch.system.devices import pick_device
from mcot_torch.system.files import refuse_links

__all__ = ["load_models", "load_run"]


def load_run(folder: RunFolder, device: str | None = None) -> tuple[Config, Problem, Models]:
    """Read a run folder for its evaluation: configuration, problem and models; nothing outside the folder is read.

    Raises:
        InputError: a piece that is damaged, or that does not belong to the others, named.
    """
    refuse_links(folder.path)
    folder.check_format()
    config = folder.config()
    folder.check_configuration(config)
    graph = MetastableGraph.load(folder.path / "graph.npz")
    folder.check_graph(graph.fingerprint())
    problem = pose(graph, config.graph, config.task, config.logic)
    return config, problem, load_models(folder, problem, pick_device(device or config.trainer.accelerator))


def load_models(folder: RunFolder, problem: Problem, device: torch.device | str = "cpu") -> Models:
    """Read the models that the finished stages of a run saved.

    Raises:
        InputError: a file that this run did not write, or a model that does not fit the graph, naming both.
    """
    models = Models()
    for stage in STAGES:
        if folder.is_finished(stage):
            folder.check_files(stage)
    n = problem.graph.n_states

    def fitting(stage: str) -> Reasoner:
        model = load_reasoner(folder.stage(stage), device)
        if isinstance(model, Student) != (stage == "distill"):
            raise InputError(f"{folder.stage(stage)}: a {type(model).__name__} is no model of this stage")
        size = len(model.labels) if isinstance(model, Student) else model.n_states
        if size != n:
            raise InputError(f"{folder.stage(stage)}: the model has {size} states and the run's graph has {n}")
        return model

    if folder.is_finished("pretrain"):
        models.pretrained = fitting("pretrain")
    if folder.is_finished("search"):
        models.prm = PRM.load(folder.stage("search") / "edges.csv", n)
    if folder.is_finished("ppo"):
        models.tuned = fitting("ppo")
    if folder.is_finished("distill"):
        student = fitting("distill")
        assert isinstance(student, Student)
        models.student = student
    return models
