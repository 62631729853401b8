"""Precision and ranks of a training loop: nothing on the plain path, Lightning Fabric where more is asked.

The plain path is one process in 32-true; it imports nothing of Lightning. Fabric supplies autocast for `bf16-mixed` and
the all-reduce of gradients for several ranks. Models are never wrapped: Fabric's wrapper refuses forward methods other
than `forward`, and synchronises gradients at every backward pass instead of once a step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mcot_torch.system.ranks import local_world_size, world_size
from mcot_torch.training.config import TrainerConfig

__all__ = ["Devices", "FabricDevices", "devices_of"]


class Devices:
    """The plain path: one process in 32-true."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Context manager in which a model computes its predictions."""
        return nullcontext()

    def average(self, tensor: Tensor) -> Tensor:
        """Mean of a tensor over the ranks."""
        return tensor

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the ranks."""


class FabricDevices(Devices):
    """Lightning Fabric: mixed precision, and averages over the ranks of a group that `system.ranks.joined` has made."""

    def __init__(self, config: TrainerConfig, device: torch.device) -> None:
        from lightning.fabric import Fabric
        from lightning.fabric.plugins.environments import TorchElasticEnvironment
        from lightning.fabric.strategies import DDPStrategy

        logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # our own lines say device and precision
        several = world_size() > 1
        self._fabric = Fabric(
            accelerator=device.type,
            devices=local_world_size() if several else 1,
            num_nodes=world_size() // local_world_size() if several else 1,
            strategy=DDPStrategy(cluster_environment=TorchElasticEnvironment()) if several else "auto",
            precision=config.precision,
        )
        self._fabric.launch()  # starts no process: the ranks run already

    def autocast(self) -> AbstractContextManager[Any]:
        """Context manager in which a model computes its predictions."""
        return self._fabric.autocast()

    def average(self, tensor: Tensor) -> Tensor:
        """Mean of a tensor over the ranks."""
        averaged = self._fabric.all_reduce(tensor.detach().clone(), reduce_op="mean")
        assert isinstance(averaged, Tensor)
        return averaged

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the ranks, in one all-reduce for each dtype."""
        if world_size() == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        for dtype in dict.fromkeys(g.dtype for g in gradients):
            same = [g for g in gradients if g.dtype == dtype]
            mean = self.average(torch.cat([g.reshape(-1) for g in same]))
            for gradient, part in zip(same, mean.split([g.numel() for g in same]), strict=True):
                gradient.copy_(part.view_as(gradient))


def devices_of(config: TrainerConfig, device: torch.device) -> Devices:
    """The plain path where one process trains in 32-true, else Fabric."""
    plain = config.precision == "32-true" and world_size() == 1
    return Devices() if plain else FabricDevices(config, device)
