"""The state graph: data, no learning."""

from mcot_torch.graphs.build import GraphConfig, build_graph, resolve_epsilon_max
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.task import Task, TaskConfig, build_task

__all__ = [
    "GraphConfig",
    "MetastableGraph",
    "Task",
    "TaskConfig",
    "build_graph",
    "build_task",
    "resolve_epsilon_max",
]
