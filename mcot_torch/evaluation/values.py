"""The values that models return for their paths, learned from labelled paths (the task of the paper's Section 5).

Search says which steps are hard; what they do has to be learned. `learn_actions` reads it off labelled paths by peeling: a path
on which the action of one hard step is unknown, and that step taken once, determines it, in any group; what is known
then opens further paths. `Values` is a run's logical task: it labels paths, lets the models learn, and compares the values that
they return with the true ones on the walks of the evaluation.

- pretrained: has not searched, knows no hard step, and takes every step for an easy one;
- guided, tuned: the actions of the steps that search found, from labelled walks of the guided model;
- student: the action of each hop, from its teacher's walks read as hops, with the values that the teacher returns.

Peeling is exact algebra on samples, no statistical query: the bound of Theorem 5.2 does not cover it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mcot_torch.algorithms.prm import PRM, guidance
from mcot_torch.errors import InputError
from mcot_torch.evaluation.rows import ModelRow
from mcot_torch.evaluation.statistics import wilson_interval
from mcot_torch.evaluation.subjects import Subject
from mcot_torch.graphs.scales import Scales
from mcot_torch.logic.actions import LogicalActions
from mcot_torch.logic.groups import Group
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.student import Student
from mcot_torch.reasoners.walks import generate
from mcot_torch.sampling.walks import Walker
from mcot_torch.system.randomness import generator

__all__ = ["Learned", "ValueWalker", "Values", "learn_actions", "path_values", "step_matrix", "wilson"]

_ROWS = 256  # labelled paths at once


# ---- values of paths --------------------------------------------------------------------------------------------


def step_matrix(n_states: int, edges: Tensor, elements: Tensor, otherwise: int) -> Tensor:
    """(N, N) int32: the element of each of the (n, 2) `edges`, and `otherwise` for any other step; -1 means none."""
    matrix = torch.full((n_states, n_states), otherwise, dtype=torch.int32)
    matrix[edges[:, 0], edges[:, 1]] = elements.to(matrix)
    return matrix


def path_values(matrix: Tensor, group: Group, paths: Tensor) -> Tensor:
    """(...,) int64: the product of a path's steps, later ones from the left; -1 where one of them has no element.

    Args:
        matrix: (N, N) from `step_matrix`.
        group: of the elements.
        paths: (..., T) int64 states, filled up at the end with -1; r_0 is the identity.
    """
    before, after = paths[..., :-1].clamp_min(0), paths[..., 1:]
    elements = matrix.to(paths.device)[before, after.clamp_min(0)].long()
    return _compose(group, elements.where(after >= 0, group.identity))


def _compose(group: Group, elements: Tensor) -> Tensor:
    """(...,) g_T· ... ·g_1 of (..., T); -1 where one of them is -1. Pairs first: paths are long, and log T products are few."""
    known, value = (elements >= 0).all(-1), elements.clamp_min(0)
    while (width := value.shape[-1]) != 1:
        value = torch.nn.functional.pad(value, (0, width % 2 if width else 2), value=group.identity)
        value = group.multiply(value[..., 1::2], value[..., ::2])
    return value[..., 0].where(known, -1)


class ValueWalker:
    """A walker that computes the values of its paths on the way, up to their first state in the target.

    Args:
        walker: W walkers at their starts.
        target: (N,) bool.
        group: of the values.
        matrices: what gives steps their elements, several (N, N) from `step_matrix`.

    Attributes:
        values: (len(matrices), W) int64, so far; -1 where a step had no element.
        arrived: (W,) bool.
    """

    def __init__(self, walker: Walker, target: Tensor, group: Group, *matrices: Tensor) -> None:
        self._walker, self._target, self._group = walker, target, group
        self._matrices = [matrix.to(target.device) for matrix in matrices]
        self._alive = torch.arange(len(walker.states), device=target.device)
        self.values = torch.full((len(matrices), len(self._alive)), group.identity, device=target.device)
        self.arrived = target[walker.states]

    @property
    def states(self) -> Tensor:
        """(W,) int64."""
        return self._walker.states

    def advance(self, n_steps: int) -> Tensor:
        """Move all walkers; returns (W, n_steps) the states entered."""
        before = self._walker.states
        path = self._walker.advance(n_steps)
        hits = self._target[path].long()
        beyond = (hits.cumsum(1) > hits) | self.arrived[self._alive][:, None]
        steps = torch.cat([before[:, None], path.masked_fill(beyond, -1)], dim=1)
        for values, matrix in zip(self.values, self._matrices, strict=True):
            both = torch.stack([values[self._alive], path_values(matrix, self._group, steps)], dim=1)
            values[self._alive] = _compose(self._group, both)
        self.arrived[self._alive] |= hits.any(1)
        return path

    def keep(self, alive: Tensor) -> None:
        """Go on with the walkers marked in `alive` only."""
        self._alive = self._alive[alive]
        self._walker.keep(alive)

    def replace(self, states: Tensor) -> None:
        """Refused: a path that jumps has no value."""
        raise ValueError("a walker that computes values cannot be moved by hand")


# ---- learning ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Learned:
    """What labelled paths taught.

    Attributes:
        elements: (n,) int64, the action of each edge, -1 where it stayed unknown.
        paths: labelled paths that were given.
        used: how many of them determined an action.
        agreement: share of the paths without an unknown action whose value comes out as labelled; None without any.
    """

    elements: Tensor
    paths: int
    used: int
    agreement: float | None


def learn_actions(group: Group, edges: Tensor, paths: Tensor, values: Tensor) -> Learned:
    """The actions of the (n, 2) `edges` from labelled paths, by peeling; all other steps act as the identity.

    A path with factors b, one unknown a, and c has the value v = c·a·b, so that a = c⁻¹·v·b⁻¹. Paths may disagree, where a hard step
    outside `edges` went unnoticed: the element that most of them give is taken.

    Args:
        group: G.
        edges: the steps that may act, such as search found.
        paths: (P, T) int64, filled up at the end with -1.
        values: (P,) int64, r_T with r_0 the identity.
    """
    n = len(edges)
    events = _events(edges, paths.cpu())  # (P, H), n behind the last
    values = values.cpu()
    elements = torch.full((n + 1,), -1)
    elements[n] = group.identity
    used = torch.zeros(len(paths), dtype=torch.bool)
    time = torch.arange(events.shape[1])
    while True:
        unknown = elements[events] < 0
        single = unknown.sum(1) == 1
        if not single.any():
            break
        factors, place = elements[events[single]], unknown[single].int().argmax(1, keepdim=True)
        b, c = (_compose(group, factors.where(side, group.identity)) for side in (time < place, time > place))
        a = group.multiply(group.multiply(group.inverses[c], values[single]), group.inverses[b])
        edge = events[single].gather(1, place)[:, 0]
        votes = torch.bincount(edge * group.order + a, minlength=n * group.order).view(n, group.order)
        elements[:n] = votes.argmax(1).where(votes.any(1), elements[:n])
        used |= single
    told = _compose(group, elements[events])
    agreement = float((told == values)[told >= 0].double().mean()) if (told >= 0).any() else None
    return Learned(elements[:n], len(paths), int(used.sum()), agreement)


def _events(edges: Tensor, paths: Tensor) -> Tensor:
    """(P, H) int64: which of the (n, 2) edges each path takes, one after the other, and n behind the last."""
    n = len(edges)
    if not len(paths):
        return torch.empty(0, 0, dtype=torch.int64)
    size = 1 + int(max(edges.max() if n else 0, paths.max()))
    index = step_matrix(size, edges.cpu(), torch.arange(n), n)
    rows = []
    for block in paths.split(_ROWS):
        taken = index[block[:, :-1].clamp_min(0), block[:, 1:].clamp_min(0)].long().where(block[:, 1:] >= 0, n)
        hit = taken < n
        row = torch.full((len(block), int(hit.sum(1).max())), n)
        row[hit.nonzero()[:, 0], (hit.cumsum(1) - 1)[hit]] = taken[hit]
        rows.append(row)
    longest = max(row.shape[1] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[1]), value=n) for row in rows])


# ---- a run's logical task -----------------------------------------------------------------------------------------


def wilson(hits: Tensor) -> dict[str, float]:
    """Share of a (n,) bool tensor with Wilson's 95 % interval: {"share", "low", "high"}."""
    share = float(hits.double().mean())
    low, high = wilson_interval(share, len(hits))
    return {"share": share, "low": float(low), "high": float(high)}


class Values:
    """The logical task of a run, and what its models know of it.

    Args:
        actions: the truth, which labels paths and judges values.
        n_paths: labelled paths to learn from, as well for the state-level models as for the student.
        scales: M/ε_max is the length of labelled paths: a few hard steps each.
        seed: of the paths.
        pretrained: walks, guided by `prm`, for the labelled paths.
        prm: the hard steps that search found; None before it.
        teacher: the student's; its walks, read as hops, carry the values that it returns.
        student: None before distillation.
        teacher_epsilon: probability of the teacher's hard steps, which sets the length of its walks.

    Attributes:
        steps: what was learned of the found steps; None before search.
        hops: what was learned of the (n, 2) `hop_edges`; None before distillation.
        no_hop_values: why the true values of the student's hops do not exist; None where they do.
    """

    def __init__(
        self,
        actions: LogicalActions,
        n_paths: int,
        scales: Scales,
        seed: int,
        pretrained: Reasoner,
        prm: PRM | None = None,
        teacher: Reasoner | None = None,
        student: Student | None = None,
        teacher_epsilon: float = 0.0,
    ) -> None:
        graph, self.group, self._actions = actions.graph, actions.group, actions
        n, e = graph.n_states, actions.group.identity
        self._n_paths, self._seed, self._size = n_paths, seed, scales.cluster_size
        edges = torch.stack([torch.from_numpy(graph.sources), torch.from_numpy(graph.indices)], dim=1)
        self._truth = step_matrix(n, edges, actions.alpha, -1)
        self._nothing = torch.full((n, n), e, dtype=torch.int32)
        self.steps: Learned | None = None
        self.hops: Learned | None = None
        self.no_hop_values: str | None = None
        if prm is None:
            return
        self.edges = prm.edges
        paths = self._walks(pretrained, "labelled", scales.epsilon_max, guidance(prm, scales, pretrained.device))
        labels = path_values(self._truth, self.group, paths)  # a step that is no edge leaves its path without a label
        self.steps = learn_actions(self.group, prm.edges, paths[labels >= 0], labels[labels >= 0])
        self._known = step_matrix(n, prm.edges, self.steps.elements, e)
        if student is None or teacher is None:
            return
        self._labels = student.labels.cpu()
        paths = self._walks(teacher, "hops", teacher_epsilon)
        told = path_values(self._known, self.group, paths)
        off = student.support.mask.cpu().clone().fill_diagonal_(False)
        self.hop_edges = off.nonzero()
        self.hops = learn_actions(self.group, self.hop_edges, self._labels[paths[told >= 0]], told[told >= 0])
        self._hop_known = self._hop_matrix(student.n_states, self.hop_edges, self.hops.elements)
        try:
            between = actions.between(self._labels)
            there = (between >= 0).nonzero()
            self._hop_truth = self._hop_matrix(student.n_states, there, between[there[:, 0], there[:, 1]])
        except InputError as error:
            self.no_hop_values = str(error)

    def _walks(self, reasoner: Reasoner, name: str, epsilon: float, policy: Any = None) -> Tensor:
        draw = generator(self._seed, "values", name, device=reasoner.device)
        starts = torch.randint(reasoner.n_states, (self._n_paths,), generator=draw, device=reasoner.device)
        return generate(reasoner, starts, math.ceil(self._size / epsilon), draw, policy).cpu()

    def _hop_matrix(self, n_clusters: int, edges: Tensor, elements: Tensor) -> Tensor:
        return step_matrix(n_clusters, edges, elements, -1).fill_diagonal_(self.group.identity)

    # ---- judging ------------------------------------------------------------------------------------------------

    def watch(self, subject: Subject) -> tuple[Subject, Callable[[], ModelRow]]:
        """A subject whose walks are judged as they go, and the entries of its row, to be called after them.

        `valid_path`: the walk arrives, by edges of the graph only. `right_value`: it is valid, and the model returns its value.
        """
        if subject.knows is None or (subject.knows == "hops" and self.no_hop_values):
            return subject, dict
        if subject.knows == "hops":
            matrices = self._hop_truth, self._hop_known
        else:
            matrices = self._truth, self._nothing if subject.knows == "nothing" else self._known
        target = torch.from_numpy(subject.mask()).to(subject.device)
        watched: list[ValueWalker] = []

        def walker(start: Tensor, draw: torch.Generator) -> Walker:
            watched.append(ValueWalker(subject.walker(start, draw), target, self.group, *matrices))
            return watched[-1]

        def judged() -> ModelRow:
            truth, told = watched[-1].values
            return _judged("", truth, told, watched[-1].arrived)

        return replace(subject, walker=walker), judged

    def lifted(self, paths: Tensor, arrived: Tensor) -> ModelRow:
        """The entries of lifted paths: (W, L) int64 states, -1 behind the end, with the values that the student returns."""
        truth = path_values(self._truth, self.group, paths)
        hops = self._labels.to(paths.device)[paths.clamp_min(0)].where(paths >= 0, -1)
        return _judged("lifted_", truth, path_values(self._hop_known, self.group, hops), arrived)

    def summary(self) -> dict[str, Any]:
        """What was learned from how much, for evaluation.json."""
        out: dict[str, Any] = {"order": self.group.order, "no_hop_values": self.no_hop_values}
        if self.steps is not None:
            graph, told = self._actions.graph, self.steps.elements
            true = self._truth[self.edges[:, 0], self.edges[:, 1]]
            names = [f"{graph.name(x)} -> {graph.name(y)}" for x, y in self.edges.tolist()]
            out["steps"] = _told(self.steps, names) | {
                "wrong": [name for name, a, b in zip(names, told.tolist(), true.tolist(), strict=True) if -1 < a != b]
            }
        if self.hops is not None:
            out["hops"] = _told(self.hops, [f"{k} -> {m}" for k, m in self.hop_edges.tolist()])
        return out


def _judged(prefix: str, truth: Tensor, told: Tensor, arrived: Tensor) -> ModelRow:
    valid = arrived & (truth >= 0)
    return {f"{prefix}valid_path": wilson(valid), f"{prefix}right_value": wilson(valid & (truth == told))}


def _told(learned: Learned, names: list[str]) -> dict[str, Any]:
    unknown = [name for name, element in zip(names, learned.elements.tolist(), strict=True) if element < 0]
    return {
        "labelled_paths": learned.paths,
        "used": learned.used,
        "agreement": learned.agreement,
        "edges": len(names),
        "unknown": unknown,
    }
