"""Precision of a training loop: nothing for 32-true, Lightning Fabric's plugin for mixed precision.

Nothing of Lightning is imported on the plain path. Fabric's launcher, wrapper and all-reduce are not used: the wrapper
refuses forward methods other than `forward` and synchronises gradients at every backward pass, and its all-reduce waits at
a barrier each time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["autocast_of"]


def autocast_of(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Maker of the context managers in which a model computes its predictions.

    Args:
        precision: "32-true" or "bf16-mixed".
        device: device of the model.

    Examples:
        >>> with autocast_of("32-true", torch.device("cpu"))():
        ...     print(torch.is_autocast_enabled("cpu"))
        False
    """
    if precision == "32-true":
        return nullcontext
    from lightning.fabric.plugins.precision import MixedPrecision

    return MixedPrecision(precision, device.type).forward_context  # type: ignore[arg-type]
