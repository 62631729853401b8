"""The inner loops of `walks.py`, compiled by numba (`pip install "mcot_torch[fast]"`).

They read the very uniforms that the NumPy loops read and make the same comparisons, so that a run has the same numbers,
bit for bit, with and without numba.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["tally", "walk"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@numba.njit(nogil=True, cache=True)
def walk(accept: Floats, outcome: Ints, width: int, uniform: Floats, state: Ints, path: Ints) -> None:
    """Move the (W,) walkers `state` by `uniform` (T, W); the states entered go to `path` (T, W)."""
    for t in range(uniform.shape[0]):
        for w in range(uniform.shape[1]):
            scaled = uniform[t, w] * width
            column = np.int64(scaled)
            cell = state[w] * width + column
            entered = outcome[2 * cell + (scaled - column < accept[cell])]
            state[w] = entered
            path[t, w] = entered


@numba.njit(nogil=True, cache=True)
def tally(accept: Floats, outcome: Ints, width: int, uniform: Floats, state: Ints, hits: Ints) -> None:
    """As `walk`, but only count in `hits` how often each entry of `outcome` was taken."""
    for t in range(uniform.shape[0]):
        for w in range(uniform.shape[1]):
            scaled = uniform[t, w] * width
            column = np.int64(scaled)
            cell = state[w] * width + column
            taken = 2 * cell + (scaled - column < accept[cell])
            hits[taken] += 1
            state[w] = outcome[taken]
