"""Algorithm 1, two-stage pretraining: fit p̂ to sampled chains of thought, cut the improbable steps, fit again.

The only stage that receives the graph. Theorem 3.1: before the cut sup|p̂ − p^ε| falls like a power of the number of
steps; the cut at c_thres between ε/4 and ε/2 leaves exactly the support; after it the error falls exponentially.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mcot_torch.algorithms.config import PretrainConfig
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners.linear import LinearReasoner
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.sampling.datasets import Batch, CountData, PairData, PathData
from mcot_torch.sampling.walks import StepTable
from mcot_torch.system.blocks import rows_at_once
from mcot_torch.system.machine import compiled
from mcot_torch.training.loop import Context, TrainingLoop, cosine, with_trainer_settings
from mcot_torch.training.result import Cost, Result

__all__ = ["PretrainConfig", "negative_log_likelihood", "pretrain"]

TrainingData = CountData | PairData | PathData

_CUT_BATCHES = 64  # batches of paths whose contexts decide the cut


@with_trainer_settings
def pretrain(
    reasoner: Reasoner,
    graph: MetastableGraph,
    config: PretrainConfig | None = None,
    context: Context | None = None,
) -> Result[Reasoner]:
    """Run Algorithm 1 on `reasoner`, in place.

    Args:
        reasoner: a fresh model over the graph's N states.
        graph: the true chain p^ε, which is sampled and never shown otherwise.
        config: options; the defaults suit the default graph.
        context: seed, folder of checkpoints, devices, watchers.

    Returns:
        The reasoner, the logged lines and the cost.

    Examples:
        >>> import mcot_torch as mt
        >>> graph = mt.build_graph(mt.GraphConfig(n_clusters=4, cluster_size=8, epsilon=0.02))
        >>> reasoner = mt.LinearReasoner(graph.n_states)
        >>> result = mt.pretrain(reasoner, graph, mt.PretrainConfig(steps=50, steps_after_cut=50, transitions=10**6))
        >>> result.history[-1]["step"], result.cost.transitions
        (100, 999936)
    """
    config, context = config or PretrainConfig(), context or Context()
    threshold = config.threshold
    if threshold is None:
        threshold = default_threshold(Scales.of(graph, graph.epsilon))
    data = training_data(reasoner, graph, config, context.seed)
    full_rate = config.learning_rate or default_learning_rate(reasoner, config.optimizer)
    if config.optimizer == "gd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(reasoner.parameters(), lr=full_rate)
    else:
        betas = (0.9, config.beta2)
        optimizer = torch.optim.Adam(reasoner.parameters(), lr=full_rate, betas=betas, fused=True)
    loss_of_block = compiled(block_loss, reasoner.device) if config.compile else block_loss

    with TrainingLoop("pretrain", len(data), context, config.log_every, model=reasoner, optimizer=optimizer) as loop:
        for step in loop:
            if step == config.steps:
                with loop.autocast():
                    cut(reasoner, data, threshold, loop)
            batch = data[step]
            losses = losses_in_blocks(reasoner, batch, loop.mean, loss_of_block)
            loss = loop.backward(losses, clip_norm=1.0 if reasoner.window > 1 else None)
            rate = full_rate * (cosine(step, loop.total) if config.optimizer == "adam" else 1.0)
            loop.set_learning_rate(rate)
            optimizer.step()
            if step + 1 == loop.total:
                with loop.autocast():
                    cut(reasoner, data, threshold, loop)
            loop.finish(step, {"loss": loss, "learning_rate": rate})
    n_cuts = 2 if config.steps_after_cut else 1
    return Result(reasoner, loop.history, cost_of(reasoner, data, n_cuts))


def training_data(reasoner: Reasoner, graph: MetastableGraph, config: PretrainConfig, seed: int) -> TrainingData:
    """Batches of the chain p^ε, one for each step: transition counts for window 1, paths for a longer window."""
    table = StepTable.from_graph(graph, reasoner.device)
    steps = config.steps + config.steps_after_cut
    if reasoner.window > 1:
        return PathData(table, config.batch_size, reasoner.window, steps, seed)
    dtype = next(reasoner.parameters()).dtype
    if config.data == "pairs":
        return PairData(table, config.transitions, steps, seed, dtype)
    return CountData(table, config.transitions, config.path_length, steps, seed, dtype)


def default_threshold(scales: Scales) -> float:
    """c_thres = 0.35 ε min w, inside the paper's range (ε/4, ε/2)."""
    return 0.35 * scales.epsilon * scales.smallest_weight


def default_learning_rate(reasoner: Reasoner, optimizer: str) -> float:
    """Learning rate at which hard steps of a few thousandths are learned within a thousand steps."""
    if optimizer == "gd":
        return float(reasoner.n_states)
    return 0.1 if isinstance(reasoner, LinearReasoner) else 0.01


def cost_of(reasoner: Reasoner, data: TrainingData, n_cuts: int) -> Cost:
    """Cost of all steps on `data` and of the cuts; a longer window samples fresh paths for each cut."""
    steps = len(data)
    if isinstance(data, PathData):
        contexts = data.batch_size * data.length * (steps + n_cuts * _CUT_BATCHES)
        return Cost(contexts, contexts, steps)
    return Cost(data.transitions, (steps + n_cuts) * reasoner.n_states, steps)


# ---- the loss ---------------------------------------------------------------------------------------------------


def negative_log_likelihood(log_p: Tensor, counts: Tensor, divisor: Tensor | None = None) -> Tensor:
    """Mean −log p̂ of the observed steps: L(W) of Algorithm 1 on a sample.

    Args:
        log_p: (..., D) log-probabilities of some steps, −inf where a step is cut.
        counts: (..., D) how often each of the steps was observed.
        divisor: () what the sum is divided by; None means the observations of steps that are not cut.

    Returns:
        Scalar; observations of cut steps are left out.
    """
    seen = (counts > 0) & (log_p > -torch.inf)
    divisor = torch.where(seen, counts, 0.0).sum() if divisor is None else divisor
    return -(torch.where(seen, log_p, 0.0) * counts).sum() / divisor


def losses_in_blocks(
    reasoner: Reasoner, batch: Batch, mean: Callable[[Tensor], Tensor], loss_of_block: Callable[..., Tensor]
) -> Iterator[Tensor]:
    """Yield the loss of a batch in blocks of contexts that fit the memory; the sum of the blocks is the loss.

    Args:
        reasoner: predicts.
        batch: contexts (B, T), next states (B, T, D), counts (B, T, D).
        mean: averages the number of observations over the ranks, so that averaged gradients are those of all samples.
        loss_of_block: `block_loss`, or its compiled version.
    """
    states, after, counts = batch
    support, here = reasoner.support, states[..., None]
    counts = torch.where(support.mask[here, after], counts, 0.0)
    divisor = mean(counts.sum())
    rows = rows_at_once(states.shape[1] * reasoner.numbers_per_context, states.device)
    parts = (states, support.places(here, after), counts)
    for block, places, seen in zip(*(part.split(rows) for part in parts), strict=True):
        successors, allowed = support.successors_of(block), support.allowed(block)
        yield loss_of_block(reasoner, block, successors, allowed, places, seen, divisor)


def block_loss(
    reasoner: Reasoner,
    states: Tensor,
    successors: Tensor | None,
    allowed: Tensor | None,
    places: Tensor,
    counts: Tensor,
    divisor: Tensor,
) -> Tensor:
    """`negative_log_likelihood` of some contexts as a function of tensors alone, which a compiler needs.

    Args:
        reasoner: predicts.
        states: (B, T) int64, contexts.
        successors: (B, T, S) int64 supported next states, or None where all N are listed.
        allowed: (B, T, S) bool, which of the listed steps are supported; None where all are.
        places: (B, T, D) int64, where the observed next states stand in the lists.
        counts: (B, T, D), how often each was observed, 0 for a step that is cut.
        divisor: () observations of all contexts.
    """
    log_p = reasoner.logits_among(states, successors, allowed).log_softmax(-1).gather(-1, places)
    return negative_log_likelihood(log_p.to(counts.dtype), counts, divisor)


# ---- the cut ----------------------------------------------------------------------------------------------------


def cut(reasoner: Reasoner, data: TrainingData, threshold: float, loop: TrainingLoop) -> None:
    """Drop every step that the reasoner finds less probable than the threshold.

    With a longer window the probability is the mean over contexts in fresh paths; an unseen state keeps all steps.
    """
    if isinstance(data, PathData):
        contexts = torch.cat([data.paths(len(data) + i)[:, :-1] for i in range(_CUT_BATCHES)])
        kernel, visits, _ = reasoner.context_kernel(contexts)
        visits_of_all = loop.sum(visits)
        # The weight of a rank is its share of the visits: exactly 1 where there is one rank.
        kernel = loop.sum(kernel * (visits / visits_of_all.clamp_min(1))[:, None])
        kernel[visits_of_all == 0] = 1.0
    else:
        kernel = reasoner.kernel()
    reasoner.support.cut(loop.once(lambda: kernel), threshold)
