"""Block sizes: how much of a long computation is held in memory at once, on a CPU and on a GPU.

Results do not depend on a block size, except that sums over blocks may round differently.
"""

from __future__ import annotations

import torch

__all__ = ["CONTEXTS", "draws_at_once", "rows_at_once"]

# predictions: in float32 16 MiB, near what a CPU's cache holds, and 0.13 GiB
_CPU_PREDICTIONS, _GPU_PREDICTIONS = 2**22, 2**25
# uniforms: what fits into the cache of one core; what fills a GPU
_CPU_DRAWS, _GPU_DRAWS = 2**16, 2**24
CONTEXTS = 256
"""Paths whose whole rows of predictions are held at once."""


def rows_at_once(numbers: int, device: torch.device) -> int:
    """Number of rows, each of `numbers` predictions, that are worked on at once; at least 1.

    On a CPU all rows fit into one block below some thousand states.
    """
    return max(1, (_CPU_PREDICTIONS if device.type == "cpu" else _GPU_PREDICTIONS) // numbers)


def draws_at_once(n_walkers: int, device: torch.device) -> int:
    """Number of steps whose uniforms, one for each of `n_walkers` walkers, are drawn at once; at least 1."""
    return max(1, (_CPU_DRAWS if device.type == "cpu" else _GPU_DRAWS) // max(1, n_walkers))
