"""The problem of a run, a graph with a task on it, and the models that the stages of a run make for it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mcot_torch.algorithms.config import DistillConfig
from mcot_torch.algorithms.prm import PRM
from mcot_torch.chains import hitting_time
from mcot_torch.errors import InputError
from mcot_torch.graphs.build import GraphConfig, build_graph, resolve_epsilon_max
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.scales import Scales
from mcot_torch.graphs.task import Task, TaskConfig, build_task
from mcot_torch.logic.actions import LogicalActions
from mcot_torch.logic.task import LogicConfig, build_actions
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.student import Student

__all__ = ["Models", "Problem", "pose", "prepare", "shortest_path"]

_MOST_STATES = 20_000  # an (N, N) float64 table takes 3 GiB


@dataclass(frozen=True)
class Problem:
    """A graph, the task on it, the scales of the theory, and the actions of its hard steps where they compute anything.

    Attributes:
        graph: the chain p^ε, N states in K clusters.
        task: start law and target.
        scales: K, M, ε and ε_max.
        actions: group elements of the hard steps; None without a logical task.
    """

    graph: MetastableGraph
    task: Task
    scales: Scales
    actions: LogicalActions | None = None

    def hitting_time(self, epsilon: float) -> float:
        """Exact E[τ] of the task on the same graph at another ε, in steps."""
        graph = self.graph.with_epsilon(epsilon)
        return hitting_time(graph.to_scipy(), self.task.start, self.task.target, graph.clusters)


class _NamesTeacher(Protocol):
    """A configuration with a section `distill`, which names the teacher."""

    distill: DistillConfig


@dataclass
class Models:
    """The models that the finished stages of a run made; None where a stage has not run.

    Attributes:
        pretrained: the reasoner after Algorithm 1.
        prm: the hard steps that Algorithm 2 found, which guide the pretrained reasoner.
        tuned: the reasoner after Algorithm 3.
        student: the student of Algorithm 4, over clusters.
    """

    pretrained: Reasoner | None = None
    prm: PRM | None = None
    tuned: Reasoner | None = None
    student: Student | None = None

    def teacher(self, config: _NamesTeacher) -> Reasoner | None:
        """The reasoner that the student is distilled from; None where its stage has not run."""
        return self.reasoner(config.distill.teacher)

    def reasoner(self, name: str) -> Reasoner | None:
        """The reasoner over states under that attribute name, such as "tuned"; None where its stage has not run.

        Raises:
            KeyError: no attribute of that name holds a reasoner over states.
        """
        return {key: model for key, model in vars(self).items() if key not in ("prm", "student")}[name]


def pose(graph: MetastableGraph, graph_config: GraphConfig, task: TaskConfig, logic: LogicConfig) -> Problem:
    """The problem that a configuration poses on a graph that is there already.

    Raises:
        InputError: ε_max, the task or the logical task does not fit the graph.
    """
    epsilon_max = resolve_epsilon_max(graph_config, graph)
    posed = build_task(task, graph)
    return Problem(graph, posed, Scales.of(graph, epsilon_max), build_actions(logic, graph_config, graph))


def prepare(graph_config: GraphConfig, task: TaskConfig, logic: LogicConfig) -> Problem:
    """Build a problem and check everything that can be wrong with it before any work is done.

    Args:
        graph_config: the graph and its ε_max.
        task: start and target.
        logic: the group that acts on the hard steps, if any.

    Raises:
        InputError: a graph, task or logical task that cannot be built, a graph too large for training, an unreachable target.
    """
    graph = build_graph(graph_config)
    if graph.n_states > _MOST_STATES:
        raise InputError(
            f"the graph has {graph.n_states:,} states; tables over pairs of states would take "
            f"{8 * graph.n_states**2 / 2**30:,.0f} GiB each, and {_MOST_STATES:,} states are the most for training: use a smaller "
            "graph; exact times of larger ones come from mcot_torch.hitting_time(graph.to_scipy(), start, target, graph.clusters)"
        )
    problem = pose(graph, graph_config, task, logic)
    problem.hitting_time(graph.epsilon)  # an unreachable target is an error now, not after the training
    return problem


def shortest_path(graph: MetastableGraph, start: NDArray[np.float64], target: NDArray[np.int64]) -> int:
    """Fewest steps from any start state to a target state, by breadth-first search.

    Args:
        graph: N states.
        start: (N,) law of the start.
        target: (n,) the target states.

    Raises:
        InputError: no path leads from the start to the target.
    """
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
