"""Algorithm 4, meta-chain distillation: a small student learns the chain of clusters.

The teacher's walks label every state with a representative, the head of a known hard step; the pairs of labels along
its chain are the student's data; β = log(M/ε) on the off-diagonal logits rescales time, so that a hop, of probability
about ε/M a step, becomes one of Θ(1) (Theorem 4.3: E[τ⁺] = O(K), free of ε and M). `lift` turns a student's path of
clusters back into a valid path of states.

Receives a reasoner and the PRM, never the graph: the clusters are those of the reasoner's own walks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mcot_torch.algorithms.config import DistillConfig
from mcot_torch.algorithms.pretrain import negative_log_likelihood
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.search import avoid
from mcot_torch.errors import InputError
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import walks
from mcot_torch.reasoners.linear import LinearReasoner
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.student import Student
from mcot_torch.reasoners.transformer import TransformerReasoner
from mcot_torch.sampling.datasets import Batch, PairCounts, uniform_starts
from mcot_torch.sampling.walks import walk_counts
from mcot_torch.system.randomness import generator
from mcot_torch.system.ranks import from_first, mean, share, stream, total
from mcot_torch.training.loop import Context, Metrics, Stage, cosine, fit

__all__ = ["DistillConfig", "Labels", "distill", "label_states", "lift", "record_counts"]

_BLOCK = 64  # steps between two looks for walkers that arrived
_HEAD_WALKS = 33  # walks that decide whether two heads lie in one cluster: few heads, and much hangs on them


@dataclass(frozen=True)
class Labels:
    """ι: S → S_o.

    Attributes:
        labels: (N,) int64, cluster of each state, 0 .. K - 1.
        representatives: (K,) int64, S_o.
        transitions: steps walked to find them.
    """

    labels: Tensor
    representatives: Tensor
    transitions: int


def label_states(reasoner: Reasoner, prm: PRM, scales: Scales, n_walks: int, draw: torch.Generator) -> Labels:
    """Cluster every state by walking, with the known hard steps cut.

    The heads of the known hard steps are candidates. Heads that most walks from one another visit belong to one cluster
    (free entries, without A5). Every state takes the label of the head that most of its walks meet first. A state whose
    walks meet none lies in a cluster that no known step enters: it becomes a representative itself.

    Args:
        reasoner: walked on.
        prm: the known hard steps.
        scales: M sets the length of the walks.
        n_walks: w, walks that vote on each state.
        draw: generator on the reasoner's device.
    """
    n, device = reasoner.n_states, reasoner.device
    policy = avoid(prm.edges.to(device), reasoner)
    size = max(2, scales.cluster_size)
    cover = math.ceil(2.5 * size * math.log(size))
    heads = torch.unique(prm.edges[:, 1]).to(device)
    transitions = 0
    while True:
        first = torch.full((n, n_walks), -1, dtype=torch.int64, device=device)
        first[heads] = heads[:, None]
        is_head = torch.zeros(n, dtype=torch.bool, device=device)
        is_head[heads] = True
        others = (~is_head).nonzero()[:, 0].repeat_interleave(n_walks)
        index = torch.arange(n_walks, device=device).repeat(int((~is_head).sum()))
        walker = walks.walker(reasoner, others, draw, policy)
        for _ in range(0, 8 * cover, _BLOCK):
            if not len(others):
                break
            path = walker.advance(_BLOCK)  # (W, block)
            hit = is_head[path]
            met = hit.any(dim=1)
            when = hit.to(torch.uint8).argmax(dim=1)
            transitions += int(torch.where(met, when + 1, _BLOCK).sum())
            first[others[met], index[met]] = path[met, when[met]]
            walker.keep(~met)
            others, index = others[~met], index[~met]
        lost = (first >= 0).sum(1) * 2 <= n_walks
        if not lost.any():
            break
        heads = torch.cat([heads, lost.nonzero()[:1, 0]])

    walker = walks.walker(reasoner, heads.repeat_interleave(_HEAD_WALKS), draw, policy)
    visited = torch.zeros(len(heads) * _HEAD_WALKS, n, dtype=torch.bool, device=device)
    for _ in range(0, 4 * cover, _BLOCK):
        visited.scatter_(1, walker.advance(_BLOCK), True)
        transitions += len(visited) * _BLOCK
    seen = visited.view(len(heads), _HEAD_WALKS, n).sum(1)[:, heads] * 2 > _HEAD_WALKS  # (heads, heads)
    same = (seen & seen.T).cpu().numpy()
    _, group = connected_components(coo_array(same), directed=False)
    group_of = torch.full((n,), -1, dtype=torch.int64, device=device)
    group_of[heads] = torch.from_numpy(group.astype(np.int64)).to(device)
    votes = torch.zeros(n, int(group.max()) + 1, dtype=torch.int64, device=device)
    votes.scatter_add_(1, group_of[first].clamp_min(0), (first >= 0).long())
    labels = votes.argmax(1)
    representatives = torch.stack([heads[group_of[heads] == k].min() for k in range(votes.shape[1])])
    order = representatives.argsort()
    return Labels(order.argsort()[labels], representatives[order], transitions)


def record_counts(
    reasoner: Reasoner, transitions: int, path_length: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Transition counts of the reasoner's own chain, from uniform starts; ranks share the walkers.

    Returns:
        after (N, D) int64, next states of each state, and counts (N, D) float64, how often each of those steps was taken.
    """
    n_walkers = share(max(1, transitions // path_length))
    if reasoner.window == 1:
        starts = uniform_starts(n_walkers, reasoner.n_states, draw)
        table = walks.step_table(reasoner)
        return table.successors, total(walk_counts(table, starts, path_length, draw))
    starts = torch.randint(reasoner.n_states, (n_walkers,), generator=draw, device=reasoner.device)
    path = walks.generate(reasoner, starts, path_length, draw)
    n, width = reasoner.n_states, reasoner.support.width
    states = torch.arange(n, device=reasoner.device)
    listed = reasoner.support.successors_of(states)
    cells = (path[:, :-1] * width + reasoner.support.places(path[:, :-1], path[:, 1:])).reshape(-1)
    counts = total(torch.bincount(cells, minlength=n * width).double()).view(n, width)
    return states.expand(n, -1) if listed is None else listed, counts


class DistillStage(Stage):
    """Gradient steps of the student on the pairs of labels."""

    name = "distill"

    def __init__(self, student: Student, config: DistillConfig, context: Context) -> None:
        super().__init__(student, context, config.log_every)
        self.config = config

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.reasoner.parameters(), lr=self.config.learning_rate, betas=(0.9, 0.95), fused=True)

    def training_step(self, batch: Batch) -> None:
        """One gradient step on all pairs."""
        states, after, counts = batch
        loss = negative_log_likelihood(self.reasoner.log_probs_of(states, after).double(), counts, mean)
        rate = self.config.learning_rate * cosine(self.step, self.total)
        loss = self.update([loss], rate)
        self.finish_step(lambda: {"loss": float(loss), "learning_rate": rate})


def distill(
    teacher: Reasoner,
    prm: PRM,
    scales: Scales,
    config: DistillConfig | None = None,
    context: Context | None = None,
) -> tuple[Student, list[Metrics]]:
    """Algorithm 4.

    Args:
        teacher: the tuned reasoner, or the pretrained one.
        prm: the known hard steps; their heads are the representatives.
        scales: M sets the length of the labelling walks; M and ε of β are measured, not taken from here.
        config: see `DistillConfig`.
        context: seed, folder, devices, watchers.

    Returns:
        The student, time rescaled, and the logged lines.
    """
    config, context = config or DistillConfig(), context or Context()
    if not len(prm.edges):
        raise InputError("the PRM knows no hard step: there are no clusters to distill; search longer first")
    draw = generator(context.seed, "distill", *stream(), device=teacher.device)
    found = from_first(lambda: label_states(teacher, prm, scales, config.label_walks, draw), teacher.device)
    transitions = config.transitions or (1_000_000_000 if teacher.window == 1 else 2_000_000)
    after, counts = record_counts(teacher, transitions, config.path_length, draw)
    data = PairCounts(after, counts, found.labels, config.steps)
    student = _fresh_student(teacher, data, found, config, context.seed)
    history = fit(DistillStage(student, config, context), data)
    student.beta.fill_(
        config.beta if config.beta is not None else _time_scale(after, counts, prm, len(found.representatives))
    )
    return student, history


def _fresh_student(teacher: Reasoner, data: PairCounts, found: Labels, config: DistillConfig, seed: int) -> Student:
    n_clusters = len(found.representatives)
    if config.student == "linear":
        model: Reasoner = LinearReasoner(n_clusters)
    else:
        model = TransformerReasoner(n_clusters, window=1, width=32, n_layers=1, n_heads=2)
        model.reset_parameters(generator(seed, "student"))
    student = Student(model, teacher.n_states).to(teacher.device)
    student.labels.copy_(found.labels)
    student.representatives.copy_(found.representatives)
    # pairs never observed are cut, or β would multiply their leak
    student.support.set((data.counts > 0).fill_diagonal_(True))
    return student


def _time_scale(after: Tensor, counts: Tensor, prm: PRM, n_clusters: int) -> float:
    """β = log(M/ε): M the mean size of a cluster, ε the frequency of the known hard steps at their sources."""
    edges = prm.edges.to(counts.device)
    seen = counts[edges[:, 0]]  # (n, D)
    epsilon = torch.where(after[edges[:, 0]] == edges[:, 1:], seen, 0.0).sum() / seen.sum()
    if not epsilon > 0:
        raise InputError(
            f"the teacher took none of the {len(edges)} known hard steps in {int(counts.sum()):,} recorded steps, so that β "
            "cannot be measured; use a larger distill.transitions, or set distill.beta"
        )
    return math.log(len(counts) / n_clusters) - math.log(float(epsilon))


@torch.no_grad()
def lift(
    student: Student,
    teacher: Reasoner,
    prm: PRM,
    start: Tensor,
    target: Tensor,
    draw: torch.Generator,
    max_steps: int = 1_000_000,
) -> tuple[Tensor, Tensor]:
    """Turn paths of clusters into paths of states.

    The student hops from the cluster of X_in to that of X_out. Each hop k → l is carried out by the teacher: it walks
    inside cluster k, hard steps cut, until it stands at the source of a known hard step into l, and takes it. In the
    last cluster it walks on to X_out.

    Args:
        student: gives the hops.
        teacher: walks.
        prm: the known hard steps.
        start: (W,) int64 states X_in.
        target: (N,) bool, X_out.
        draw: generator on the teacher's device.
        max_steps: paths still on their way after so many steps are given up.

    Returns:
        paths (W, L) int64, -1 behind the end, and arrived (W,) bool. A hop that no known hard step can carry out ends
        its path there, not arrived.
    """
    n_walkers, device = len(start), teacher.device
    goals = _hops(student, student.labels[start], student.labels[target].unique(), draw, max_steps)  # (W, H)
    jump = torch.full((teacher.n_states, student.n_states + 1), -1, dtype=torch.int64, device=device)
    edges = prm.edges.to(device)
    jump[edges[:, 0], student.labels[edges[:, 1]]] = edges[:, 1]
    can_leave = torch.zeros(student.n_states, student.n_states + 1, dtype=torch.bool, device=device)
    can_leave[student.labels[edges[:, 0]], student.labels[edges[:, 1]]] = True
    can_leave[:, -1] = True  # the last column means: no hop left

    walker = walks.walker(teacher, start, draw, avoid(edges, teacher))
    alive = torch.arange(n_walkers, device=device)
    at = torch.zeros(n_walkers, dtype=torch.int64, device=device)  # next goal of each walker
    arrived = torch.zeros(n_walkers, dtype=torch.bool, device=device)
    columns = [start.to(device)]
    for _ in range(max_steps):
        goal = goals[alive, at[alive]]
        there = (goal == student.n_states) & target[walker.states]
        arrived[alive[there]] = True
        going = ~there & can_leave[student.labels[walker.states], goal]
        alive = alive[going]
        if not len(alive):
            break
        walker.keep(going)
        head = jump[walker.states, goal[going]]
        walker.advance(1)
        walker.replace(torch.where(head >= 0, head, walker.states))
        at[alive] += (head >= 0).long()
        column = torch.full((n_walkers,), -1, dtype=torch.int64, device=device)
        column[alive] = walker.states
        columns.append(column)
    return torch.stack(columns, dim=1), arrived


def _hops(student: Student, start: Tensor, target: Tensor, draw: torch.Generator, max_hops: int) -> Tensor:
    """(W, H + 1) clusters entered one after the other until the target, stays left out; K marks the end."""
    end = student.n_states
    walker = walks.walker(student, start, draw)
    is_target = torch.zeros(end, dtype=torch.bool, device=start.device)
    is_target[target] = True
    sequences: list[list[int]] = [[] for _ in range(len(start))]
    alive = torch.arange(len(start), device=start.device)[~is_target[start]]
    walker.keep(~is_target[start])
    for _ in range(max_hops):
        if not len(alive):
            break
        before = walker.states
        entered = walker.advance(1)[:, 0]
        moved = entered != before
        for i, cluster in zip(alive[moved].tolist(), entered[moved].tolist(), strict=True):
            sequences[i].append(cluster)
        walker.keep(~is_target[entered])
        alive = alive[~is_target[entered]]
    length = max(map(len, sequences)) + 1
    return torch.tensor([s + [end] * (length - len(s)) for s in sequences], device=start.device)
