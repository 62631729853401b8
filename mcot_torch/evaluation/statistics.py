"""Confidence intervals that several rooms share: the normal quantile and Wilson's interval of a share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["NORMAL_975", "wilson_interval"]

NORMAL_975 = 1.959963984540054
"""97.5 % point of the standard normal law: half the width of a 95 % interval in standard errors."""

Share = TypeVar("Share", float, NDArray[np.float64])


def wilson_interval(share: Share, n: int) -> tuple[Share, Share]:
    """Wilson's 95 % confidence interval of a share of n independent trials; both ends lie in [0, 1].

    Args:
        share: share of the n trials that succeeded, or an array of shares.
        n: number of trials, at least 1.

    >>> [round(float(end), 3) for end in wilson_interval(0.5, 100)]
    [0.404, 0.596]
    """
    z = NORMAL_975
    middle = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n * n))
    low, high = ((middle + side * half) / (1 + z**2 / n) for side in (-1, 1))
    return np.maximum(0.0, low), np.minimum(1.0, high)
