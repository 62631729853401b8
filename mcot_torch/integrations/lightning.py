"""A reasoner inside a user's own Lightning Trainer: a data module of sampled walks and a module with the loss of Algorithm 1.

The package itself trains in `training.TrainingLoop`. These two classes are for users whose callbacks, loggers and
schedules are Lightning's.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mcot_torch.algorithms.config import PretrainConfig
from mcot_torch.algorithms.pretrain import default_learning_rate, negative_log_likelihood, training_data
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.sampling.datasets import Batch

__all__ = ["ReasonerModule", "WalkData"]


class WalkData(L.LightningDataModule):
    """Batches of sampled walks of a chain, one batch for each optimiser step.

    Args:
        reasoner: its window decides the form: transition counts for window 1, paths for a longer one.
        graph: the chain p^ε.
        config: `steps` + `steps_after_cut` batches; `transitions`, `path_length`, `batch_size`, `data` as in `mt.pretrain`.
        seed: seed of the walks.
    """

    def __init__(
        self, reasoner: Reasoner, graph: MetastableGraph, config: PretrainConfig | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self._reasoner, self._graph, self._config, self._seed = reasoner, graph, config or PretrainConfig(), seed

    def train_dataloader(self) -> DataLoader[Batch]:
        """One batch (contexts (B, T), next states (B, T, D), counts (B, T, D)) for each step."""
        return DataLoader(training_data(self._reasoner, self._graph, self._config, self._seed), batch_size=None)


class ReasonerModule(L.LightningModule):
    """A reasoner with the loss L(W) of Algorithm 1 and Adam; `reasoner` is a submodule like any other.

    Args:
        reasoner: the model, trained in place.
        learning_rate: of Adam; None means the default of Algorithm 1.
    """

    def __init__(self, reasoner: Reasoner, learning_rate: float | None = None) -> None:
        super().__init__()
        self.reasoner = reasoner
        self.learning_rate = learning_rate or default_learning_rate(reasoner, "adam")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean −log p̂ of the observed steps."""
        states, after, counts = batch
        log_p = self.reasoner.log_probs_of(states, after)
        loss = negative_log_likelihood(log_p.to(counts.dtype), counts)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam at a constant learning rate."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, betas=(0.9, 0.95))
