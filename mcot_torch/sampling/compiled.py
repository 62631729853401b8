"""The inner loops of `walks.py`, compiled by numba (`pip install "mcot_torch[fast]"`).

They read the very uniforms that the NumPy loops read and make the same comparisons, so that a run has the same numbers,
bit for bit, with and without numba.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["alias", "tally", "walk"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@numba.njit(nogil=True, cache=True)
def alias(accept: Floats, other: Ints) -> None:
    """As `walks._alias`, in the same order."""
    n, width = accept.shape
    small, large = np.empty(width, np.int64), np.empty(width, np.int64)
    for x in range(n):
        n_small = n_large = 0
        for j in range(width):
            if accept[x, j] < 1.0:
                small[n_small] = j
                n_small += 1
            else:
                large[n_large] = j
                n_large += 1
        while n_small and n_large:
            n_small -= 1
            j, i = small[n_small], large[n_large - 1]
            other[x, j] = i
            accept[x, i] -= 1.0 - accept[x, j]
            if accept[x, i] < 1.0:
                small[n_small] = i
                n_small += 1
                n_large -= 1
        for k in range(n_small):
            accept[x, small[k]] = 1.0
        for k in range(n_large):
            accept[x, large[k]] = 1.0


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
