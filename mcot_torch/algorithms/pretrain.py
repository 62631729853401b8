"""Algorithm 1, two-stage pretraining: fit p̂ to sampled chains of thought, cut the improbable steps, fit again.

The only stage that receives the graph. Theorem 3.1: before the cut sup|p̂ − p^ε| falls like a power of the number of
steps; the cut at c_thres between ε/4 and ε/2 leaves exactly the support; after it the error falls exponentially.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mcot_torch.algorithms.config import PretrainConfig
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners.linear import LinearReasoner
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.sampling.datasets import Batch, CountData, PairData, PathData
from mcot_torch.sampling.walks import StepTable
from mcot_torch.system.machine import compiled
from mcot_torch.system.ranks import from_first, mean, total
from mcot_torch.training.loop import Context, Metrics, Stage, cosine, fit

__all__ = ["PretrainConfig", "negative_log_likelihood", "pretrain"]


def negative_log_likelihood(
    log_p: Tensor, counts: Tensor, observed: Callable[[Tensor], Tensor] = lambda here: here
) -> Tensor:
    """Mean −log p̂ of the observed steps: L(W) of Algorithm 1 on a sample.

    Args:
        log_p: (..., D) log-probabilities of some steps, −inf where a step is cut.
        counts: (..., D) how often each of them was observed.
        observed: turns the number of observations here into the divisor: the mean over ranks, where each has a part of
            the sample, makes the mean of their losses and gradients that of the whole.

    Returns:
        Scalar; observations of cut steps are left out of it.
    """
    seen = (counts > 0) & (log_p > -torch.inf)
    return -(torch.where(seen, log_p, 0.0) * counts).sum() / observed(torch.where(seen, counts, 0.0).sum())


def block_loss(
    reasoner: Reasoner,
    states: Tensor,
    listed: Tensor | None,
    allowed: Tensor | None,
    places: Tensor,
    counts: Tensor,
    kept: Tensor,
) -> Tensor:
    """`negative_log_likelihood` of some contexts, a function of tensors alone, as a compiler wants it.

    Args:
        reasoner: predicts.
        states: (B, T) int64, contexts.
        listed: (B, T, S), what `Support.successors_of` gives for them.
        allowed: (B, T, S), what `Support.allowed` gives for them.
        places: (B, T, D) int64, where the observed next states stand in the lists.
        counts: (B, T, D), how often each was observed, 0 for a step that is cut.
        kept: Σ counts of all contexts: the divisor.
    """
    log_p = reasoner.logits_among(states, listed, allowed).log_softmax(-1).gather(-1, places)
    return negative_log_likelihood(log_p.to(counts.dtype), counts, lambda here: kept)


def default_threshold(scales: Scales) -> float:
    """c_thres = 0.35 ε min w, inside the paper's range (ε/4, ε/2)."""
    return 0.35 * scales.epsilon * scales.smallest_weight


def default_learning_rate(reasoner: Reasoner, optimizer: str) -> float:
    """Rates at which hard steps of a few thousandths are learned within a thousand steps."""
    if optimizer == "gd":
        return float(reasoner.n_states)
    return 0.1 if isinstance(reasoner, LinearReasoner) else 0.01


_CUT_BATCHES = 64  # batches of paths whose contexts decide the cut


class PretrainStage(Stage):
    """Gradient steps on the likelihood, with the cut after `config.steps` of them."""

    name = "pretrain"

    def __init__(
        self,
        reasoner: Reasoner,
        data: Dataset[Batch],
        config: PretrainConfig,
        threshold: float,
        context: Context,
    ) -> None:
        super().__init__(reasoner, context, config.log_every)
        self.data = data
        self.config = config
        self.threshold = threshold
        self.loss = compiled(block_loss, reasoner.device) if config.compile else block_loss
        self.rate = config.learning_rate or default_learning_rate(reasoner, config.optimizer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, or plain gradient descent."""
        if self.config.optimizer == "gd":
            return torch.optim.SGD(self.reasoner.parameters(), lr=self.rate)
        return torch.optim.Adam(self.reasoner.parameters(), lr=self.rate, betas=(0.9, self.config.beta2), fused=True)

    def training_step(self, batch: Batch) -> None:
        """One gradient step; the cut comes right before step T1."""
        if self.step == self.config.steps:
            self.cut()
        decay = cosine(self.step, self.total) if self.config.optimizer == "adam" else 1.0
        clip_norm = 1.0 if self.reasoner.window > 1 else None
        loss = self.update(self.losses(*batch), self.rate * decay, clip_norm)
        if self.step + 1 == self.total:
            self.cut()
        self.finish_step(lambda: {"loss": float(loss), "learning_rate": self.rate * decay})

    def losses(self, states: Tensor, after: Tensor, counts: Tensor) -> Iterator[Tensor]:
        """The loss in blocks of contexts, each divided by the observations, of steps that are not cut, in all of them."""
        model, here = self.reasoner, states[..., None]
        counts = torch.where(model.support.mask[here, after], counts, 0.0)
        kept, parts = mean(counts.sum()), (states, model.support.places(here, after), counts)
        for x, places, n in zip(
            *(self.in_blocks(part, states.shape[1] * model.numbers_per_context) for part in parts), strict=True
        ):
            yield self.loss(model, x, model.support.successors_of(x), model.support.allowed(x), places, n, kept)

    def cut(self) -> None:
        """Drop every step that the reasoner finds less probable than the threshold.

        With a longer window the probability is the mean over contexts in fresh paths; an unseen state keeps all steps.
        """
        if isinstance(self.data, PathData):
            contexts = torch.cat([self.data.paths(len(self.data) + i)[:, :-1] for i in range(_CUT_BATCHES)])
            here, seen_here, _ = self.reasoner.context_kernel(contexts)
            visits = total(seen_here)
            # a rank's weight is its share of the visits: exactly 1 where there is one rank
            kernel = total(here * (seen_here / visits.clamp_min(1))[:, None])
            kernel[visits == 0] = 1.0
        else:
            kernel = self.reasoner.kernel()
        self.reasoner.support.cut(from_first(lambda: kernel, kernel.device), self.threshold)


def pretrain(
    reasoner: Reasoner,
    graph: MetastableGraph,
    config: PretrainConfig | None = None,
    context: Context | None = None,
) -> list[Metrics]:
    """Algorithm 1 on `reasoner`, in place.

    Args:
        reasoner: a fresh model over the graph's states.
        graph: the true chain, sampled and never shown otherwise.
        config: see `PretrainConfig`.
        context: seed, folder, devices, watchers.

    Returns:
        The logged lines.
    """
    config, context = config or PretrainConfig(), context or Context()
    threshold = config.threshold
    if threshold is None:
        threshold = default_threshold(Scales.of(graph, graph.epsilon))
    data = _data(reasoner, graph, config, context.seed)
    return fit(PretrainStage(reasoner, data, config, threshold, context), data)


def _data(reasoner: Reasoner, graph: MetastableGraph, config: PretrainConfig, seed: int) -> Dataset[Batch]:
    table = StepTable.from_graph(graph, reasoner.device)
    steps = config.steps + config.steps_after_cut
    if reasoner.window > 1:
        return PathData(table, config.batch_size, reasoner.window, steps, seed)
    dtype = next(reasoner.parameters()).dtype
    if config.data == "pairs":
        return PairData(table, config.transitions, steps, seed, dtype)
    return CountData(table, config.transitions, config.path_length, steps, seed, dtype)
