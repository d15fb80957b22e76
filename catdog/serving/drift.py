"""How far shares may drift apart: the population stability index, and when it means something."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

__all__ = ["psi", "psi_threshold", "rate_threshold", "shares_of"]

FALSE_ALARM = 1e-4  # probability that a window crosses a threshold when nothing has changed
SMALLEST_PSI = 0.2  # below which a shift is not worth an alarm: the usual rule of credit scoring (Siddiqi 2006)
SMALLEST_RATE = 0.1  # likewise for a share


def shares_of(counts: Sequence[int]) -> list[float]:
    """Turn counts into shares, none of which is 0: half a picture more in each bin."""
    total = sum(counts) + len(counts) / 2
    return [(count + 0.5) / total for count in counts]


def psi(shares: Sequence[float], reference: Sequence[float]) -> float:
    """Return the population stability index: the sum of (p - q) log(p / q) over bins, none of which is empty."""
    p, q = np.asarray(shares), np.asarray(reference)
    return float(((p - q) * np.log(p / q)).sum())


def psi_threshold(num_bins: int, window: int, pictures: int) -> float:
    """Return the index that samples of these sizes from the same pictures exceed with probability FALSE_ALARM.

    The index times nm / (n + m) is chi-squared with one degree less than bins (Yurdakul 2018); the quantile is Wilson
    and Hilferty's.
    """
    free, z = num_bins - 1, NormalDist().inv_cdf(1 - FALSE_ALARM)
    quantile = free * (1 - 2 / (9 * free) + z * (2 / (9 * free)) ** 0.5) ** 3
    return float(max(SMALLEST_PSI, quantile * (1 / window + 1 / max(1, pictures))))


def rate_threshold(rate: float, window: int, pictures: int) -> float:
    """Return the share that a window exceeds with probability FALSE_ALARM where `rate` was seen (normal limit)."""
    z = NormalDist().inv_cdf(1 - FALSE_ALARM)
    spread = (max(rate, 1 / window) * (1 - rate) * (1 / window + 1 / max(1, pictures))) ** 0.5
    return float(max(SMALLEST_RATE, rate + z * spread))
