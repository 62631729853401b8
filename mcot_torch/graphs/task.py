"""The task on a graph: the law of the start X_in and the set of targets X_out.

Specification, "Task" (docs/specification.md#task).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mcot_torch.errors import InputError
from mcot_torch.graphs.graph import MetastableGraph

__all__ = ["Task", "TaskConfig", "build_task", "target_mask"]

_FORMS = "cluster:K, entry:K, state:NAME or states:NAME,NAME"
_NAMED = 4  # more states than this are counted in the description, not named


@dataclass
class TaskConfig:
    """Where a chain of thought starts and what it must reach.

    Clusters are numbered from 0. Names are those of the graph, or the state numbers where it has none.
    """

    start: str = "cluster:0"
    """Law of the start: cluster:K (uniform in it), entry:K, state:NAME, states:NAME,NAME (uniform over them) or uniform."""
    target: str = "auto"
    """What to reach: cluster:K, entry:K, state:NAME, states:NAME,NAME (any of them), or auto: the entry state of cluster
    K // 2, and that whole cluster where it has no single entry."""


@dataclass(frozen=True, eq=False)
class Task:
    """A start law and a target set on a graph of N states.

    Attributes:
        start: (N,) float64, law of X_0, sums to 1.
        target: (n,) int64, the target states, ascending, n >= 1.
        description: for people, such as "C_0 -> entry of C_5 (state 171)".
    """

    start: NDArray[np.float64]
    target: NDArray[np.int64]
    description: str

    def mask(self) -> NDArray[np.bool_]:
        """(N,) bool: whether a state is a target."""
        return target_mask(len(self.start), self.target)


def target_mask(n_states: int, target: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n_states,) bool: whether a state is among the (n,) target states.

    >>> target_mask(4, np.array([1, 3])).tolist()
    [False, True, False, True]
    """
    mask = np.zeros(n_states, dtype=bool)
    mask[target] = True
    return mask


def build_task(config: TaskConfig, graph: MetastableGraph) -> Task:
    """The task that `config` names on `graph`.

    Raises:
        InputError: a form that does not exist, an unknown state (with the nearest name), a cluster out of range or without
            a single entry state, or a start that lies wholly inside the target.
    """
    if config.start == "uniform":
        begin, begin_text = np.arange(graph.n_states), "all states"
    else:
        begin, begin_text = _states("task.start", config.start, "uniform", graph)
    target = config.target
    if target == "auto":
        middle = graph.n_clusters // 2
        target = f"{'cluster' if graph.entries[middle] < 0 else 'entry'}:{middle}"
    end, end_text = _states("task.target", target, "auto", graph)
    if np.isin(begin, end).all():
        raise InputError(
            f"task.start {config.start!r} lies wholly inside task.target {config.target!r}, so there is nothing to solve; "
            "choose another start or target"
        )
    law = np.zeros(graph.n_states)
    law[begin] = 1.0 / len(begin)
    return Task(law, end, f"{begin_text} -> {end_text}")


def _states(key: str, text: str, keyword: str, graph: MetastableGraph) -> tuple[NDArray[np.int64], str]:
    """(states ascending, description) of one of the four forms."""
    form, colon, rest = text.partition(":")
    form, rest = form.strip(), rest.strip()
    if not colon or not rest or form not in ("cluster", "entry", "state", "states"):
        raise InputError(f"{key} is {text!r}; write {_FORMS}, or {keyword}")
    if form in ("cluster", "entry"):
        if not rest.isdecimal() or int(rest) >= graph.n_clusters:
            raise InputError(f"{key} is {text!r}; clusters are numbered 0 .. {graph.n_clusters - 1}")
        cluster = int(rest)
        if form == "cluster":
            return graph.members(cluster), f"C_{cluster}"
        entry = int(graph.entries[cluster])
        if entry < 0:
            raise InputError(
                f"{key} is {text!r}, but hard steps enter cluster {cluster} at several states; use cluster:{cluster} or state:NAME"
            )
        return np.array([entry]), f"entry of C_{cluster} (state {graph.name(entry)})"
    names = [rest] if form == "state" else [name.strip() for name in rest.split(",") if name.strip()]
    try:
        states = np.unique([graph.state(name) for name in names]).astype(np.int64)
    except InputError as error:
        raise InputError(f"{key} is {text!r}: {error}") from None
    if len(states) == 0:
        raise InputError(f"{key} is {text!r}; write {_FORMS}, or {keyword}")
    if len(states) == 1:
        return states, f"state {graph.name(int(states[0]))}"
    shown = ", ".join(graph.name(int(s)) for s in states) if len(states) <= _NAMED else f"{len(states)} states"
    return states, f"states {shown}" if len(states) <= _NAMED else shown
