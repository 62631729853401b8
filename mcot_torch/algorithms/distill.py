"""Algorithm 4, meta-chain distillation: a small student learns the chain of clusters.

The teacher's walks label every state with a representative, the head of a known hard step; the pairs of labels along
its chain are the student's data; β = log(M/ε) on the off-diagonal logits rescales time, so that a hop, of probability
about ε/M a step, becomes one of Θ(1) (Theorem 4.3: E[τ⁺] = O(K), free of ε and M). `lift.lift` turns a student's path
of clusters back into a valid path of states.

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

from mcot_torch.algorithms.config import DistillConfig, default_distill_transitions
from mcot_torch.algorithms.pretrain import negative_log_likelihood
from mcot_torch.algorithms.prm import PRM, avoid
from mcot_torch.algorithms.rollouts import transition_counts
from mcot_torch.errors import InputError
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners.linear import LinearReasoner
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.student import Student
from mcot_torch.reasoners.transformer import TransformerReasoner
from mcot_torch.reasoners.walks import walker
from mcot_torch.sampling.attempts import TransitionCounts
from mcot_torch.sampling.datasets import count_batch
from mcot_torch.system.randomness import generator
from mcot_torch.system.ranks import on_first_rank, rank_generator
from mcot_torch.training.loop import Context, TrainingLoop, cosine, with_trainer_settings
from mcot_torch.training.result import Cost, Result

__all__ = ["DistillConfig", "Labels", "cluster_counts", "distill", "label_states"]

_BLOCK = 64  # steps between two looks for walkers that arrived
_HEAD_WALKS = 33  # walks that decide whether two heads lie in one cluster: few heads, and much hangs on them


@with_trainer_settings
def distill(
    teacher: Reasoner,
    prm: PRM,
    scales: Scales,
    config: DistillConfig | None = None,
    context: Context | None = None,
) -> Result[Student]:
    """Run Algorithm 4.

    Args:
        teacher: the tuned reasoner, or the pretrained one; left unchanged.
        prm: the known hard steps; their heads are the representatives.
        scales: M sets the length of the labelling walks; M and ε of β are measured, not taken from here.
        config: options.
        context: seed, folder of checkpoints, devices, watchers.

    Returns:
        The student with its time rescaled, the logged lines and the cost.

    Raises:
        InputError: the PRM knows no hard step, or the teacher took none in the recorded steps.
    """
    config, context = config or DistillConfig(), context or Context()
    if not len(prm.edges):
        raise InputError("the PRM knows no hard step: there are no clusters to distill; search longer first")
    transitions = config.transitions or default_distill_transitions(teacher.window)
    n_walkers = max(1, transitions // config.path_length)
    draw = rank_generator(context.seed, "distill", device=teacher.device)
    found = label_states(teacher, prm, scales, config.label_walks, draw)
    recorded = transition_counts(teacher, n_walkers, config.path_length, draw)
    n_clusters = len(found.representatives)
    beta = time_scale(recorded, prm, n_clusters) if config.beta is None else config.beta
    pairs = cluster_counts(recorded.successors, recorded.counts, found.labels)
    student = fresh_student(config.student, teacher, pairs, found, context.seed)
    states, clusters, seen = count_batch(pairs, dtype=torch.float64)
    optimizer = torch.optim.Adam(student.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), fused=True)

    with TrainingLoop("distill", config.steps, context, config.log_every, model=student, optimizer=optimizer) as loop:
        divisor = loop.mean(seen.sum())
        for step in loop:
            with loop.autocast():
                log_q = student.log_probs_of(states, clusters).double()
            loss = loop.backward([negative_log_likelihood(log_q, seen, divisor)])
            rate = config.learning_rate * cosine(step, loop.total)
            loop.set_learning_rate(rate)
            optimizer.step()
            loop.finish(step, {"loss": loss, "learning_rate": rate})
    student.beta.fill_(beta)
    n_recorded = n_walkers * config.path_length
    passes = found.forward_passes + (teacher.n_states if teacher.window == 1 else n_recorded)
    cost = Cost(found.transitions + n_recorded, passes + config.steps * student.n_states, config.steps)
    return Result(student, loop.history, cost)


# ---- labels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """The map ι: S → S_o from states to representatives.

    Attributes:
        labels: (N,) int64, cluster of each state, 0 .. K - 1.
        representatives: (K,) int64, S_o.
        transitions: steps walked to find them.
        forward_passes: contexts predicted for those walks.
    """

    labels: Tensor
    representatives: Tensor
    transitions: int
    forward_passes: int


@on_first_rank
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
    cover = scales.cover_steps
    heads = torch.unique(prm.edges[:, 1]).to(device)
    transitions, n_tables = 0, 1
    while True:
        n_tables += 1
        first = torch.full((n, n_walks), -1, dtype=torch.int64, device=device)
        first[heads] = heads[:, None]
        is_head = torch.zeros(n, dtype=torch.bool, device=device)
        is_head[heads] = True
        others = (~is_head).nonzero()[:, 0].repeat_interleave(n_walks)
        index = torch.arange(n_walks, device=device).repeat(int((~is_head).sum()))
        walkers = walker(reasoner, others, draw, policy)
        for _ in range(0, 8 * cover, _BLOCK):
            if not len(others):
                break
            path = walkers.advance(_BLOCK)  # (W, block)
            hit = is_head[path]
            met = hit.any(dim=1)
            when = hit.to(torch.uint8).argmax(dim=1)
            transitions += int(torch.where(met, when + 1, _BLOCK).sum())
            first[others[met], index[met]] = path[met, when[met]]
            walkers.keep(~met)
            others, index = others[~met], index[~met]
        lost = (first >= 0).sum(1) * 2 <= n_walks
        if not lost.any():
            break
        heads = torch.cat([heads, lost.nonzero()[:1, 0]])

    walkers = walker(reasoner, heads.repeat_interleave(_HEAD_WALKS), draw, policy)
    visited = torch.zeros(len(heads) * _HEAD_WALKS, n, dtype=torch.bool, device=device)
    for _ in range(0, 4 * cover, _BLOCK):
        visited.scatter_(1, walkers.advance(_BLOCK), True)
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
    passes = n_tables * n if reasoner.window == 1 else transitions
    return Labels(order.argsort()[labels], representatives[order], transitions, passes)


def cluster_counts(after: Tensor, counts: Tensor, labels: Tensor) -> Tensor:
    """Count D_dist, the pairs of clusters (ι(X_t), ι(X_{t+1})) along the teacher's chain, stays included.

    Args:
        after: (N, D) int64, next states of each state.
        counts: (N, D) float64, how often the chain took each of those steps.
        labels: (N,) int64, ι, in 0 .. K - 1.

    Returns:
        (K, K) float64.

    Examples:
        >>> after, counts = torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.tensor([[5.0, 1.0], [4.0, 2.0], [6.0, 0.0]])
        >>> cluster_counts(after, counts.double(), torch.tensor([0, 0, 1])).tolist()
        [[10.0, 2.0], [0.0, 6.0]]
    """
    n_clusters = int(labels.max()) + 1
    cells = (labels[:, None] * n_clusters + labels[after]).reshape(-1)
    pairs = torch.zeros(n_clusters**2, dtype=torch.float64, device=counts.device)
    return pairs.index_add_(0, cells, counts.reshape(-1)).view(n_clusters, -1)


# ---- the student ------------------------------------------------------------------------------------------------


def fresh_student(kind: str, teacher: Reasoner, pairs: Tensor, found: Labels, seed: int) -> Student:
    """An untrained student over K clusters; pairs of clusters that were never observed are cut, or β would multiply their leak."""
    n_clusters = len(found.representatives)
    if kind == "linear":
        model: Reasoner = LinearReasoner(n_clusters)
    else:
        model = TransformerReasoner(n_clusters, window=1, width=32, n_layers=1, n_heads=2)
        model.reset_parameters(generator(seed, "student"))
    student = Student(model, teacher.n_states).to(teacher.device)
    student.labels.copy_(found.labels)
    student.representatives.copy_(found.representatives)
    mask = pairs > 0
    student.support.set(mask.fill_diagonal_(True))
    return student


def time_scale(recorded: TransitionCounts, prm: PRM, n_clusters: int) -> float:
    """β = log(M/ε): M the mean size of a cluster, ε the frequency of the known hard steps at their sources."""
    after, counts = recorded.successors, recorded.counts
    edges = prm.edges.to(counts.device)
    seen = counts[edges[:, 0]]  # (n, D)
    epsilon = torch.where(after[edges[:, 0]] == edges[:, 1:], seen, 0.0).sum() / seen.sum()
    if not epsilon > 0:
        raise InputError(
            f"the teacher took none of the {len(edges)} known hard steps in {int(counts.sum()):,} recorded steps, so that β "
            "cannot be measured; use a larger distill.transitions, or set distill.beta"
        )
    return math.log(len(counts) / n_clusters) - math.log(float(epsilon))
