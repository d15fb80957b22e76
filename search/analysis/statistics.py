"""Outcomes per picture -> what may be claimed: intervals, ties, better or not. Every interval and test is at 95 %."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import mpmath
import numpy as np

__all__ = [
    "Comparison",
    "Interval",
    "Outcomes",
    "SeedNoise",
    "accuracy_interval",
    "compare",
    "configuration_gap",
    "configuration_interval",
    "mean_interval",
    "model_gap",
    "seed_noise",
]

Interval = tuple[float, float]  # low, high
Verdict = Literal["better", "tied", "worse"]

Z = 1.959964  # the normal distribution's 97.5 % quantile
NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Outcomes:
    """How one model did on each of N pictures, always in the same order."""

    loss: np.ndarray  # (N,) cross-entropy, nats
    correct: np.ndarray  # (N,) bool


@dataclass(frozen=True)
class Comparison:
    """A challenger beside a champion on the same pictures; differences are challenger minus champion."""

    accuracy: float
    accuracy_interval: Interval  # paired, R. Bonett and D. Price, J. Educ. Behav. Stat. 37 (2012)
    only_challenger: int  # pictures that it alone has right
    only_champion: int
    p_value: float  # exact McNemar, two-sided
    loss: float
    loss_interval: Interval  # paired bootstrap over pictures, percentiles

    @property
    def verdict(self) -> Verdict:
        """Better: in accuracy or in loss, and worse in neither. Tied: no difference in either."""
        accuracy = 0 if self.p_value >= 0.05 else self.only_challenger - self.only_champion
        low, high = self.loss_interval
        loss = 1 if high < 0 else -1 if low > 0 else 0
        if accuracy < 0 or loss < 0:
            return "worse"
        return "better" if accuracy > 0 or loss > 0 else "tied"


def compare(challenger: Outcomes, champion: Outcomes, resamples: int = NUM_RESAMPLES) -> Comparison:
    """Compare two models on the pictures that both were asked about; equal input gives equal output."""
    num = len(champion.loss)
    only_challenger = int((challenger.correct & ~champion.correct).sum())
    only_champion = int((champion.correct & ~challenger.correct).sum())
    losses = challenger.loss.astype(np.float64) - champion.loss
    return Comparison(
        accuracy=(only_challenger - only_champion) / num,
        accuracy_interval=_paired_interval(only_challenger, only_champion, num),
        only_challenger=only_challenger,
        only_champion=only_champion,
        p_value=_mcnemar(only_challenger, only_champion),
        loss=float(losses.mean()),
        loss_interval=_bootstrap(losses, resamples),
    )


def accuracy_interval(accuracy: float, num_pictures: int) -> Interval:
    """Return Wilson's interval of a share (E. B. Wilson, JASA 22, 1927), both ends in 0 to 1."""
    n = num_pictures
    centre = (accuracy + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(accuracy * (1 - accuracy) / n + Z * Z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(outcomes: np.ndarray) -> Interval:
    """Return the interval of one model's mean over all pictures there could be, from (N,) outcomes."""
    if np.isin(outcomes, (0, 1)).all():
        return accuracy_interval(float(outcomes.mean()), len(outcomes))
    return _around(float(outcomes.mean()), _variance_of_mean(outcomes), len(outcomes) - 1, _third_of_mean(outcomes))


def model_gap(one: np.ndarray, other: np.ndarray) -> Interval:
    """Return the interval of the difference between two models' means, from their (N,) outcomes, paired."""
    gaps = one.astype(np.float64) - other
    return _around(float(gaps.mean()), _variance_of_mean(gaps), len(gaps) - 1)


@dataclass(frozen=True)
class SeedNoise:
    """How far the runs of one configuration lie apart that differ in their seed alone."""

    variance: float  # of a run's mean
    by_pictures: float  # the part of it that more pictures would remove
    freedom: int  # degrees of it: runs beyond the first of each configuration


def seed_noise(configurations: Sequence[np.ndarray]) -> SeedNoise:
    """Estimate it, the same for all, from each configuration's (runs, N) outcomes: a two-way analysis of variance."""
    freedom = sum(len(runs) - 1 for runs in configurations)
    if not freedom:
        return SeedNoise(0.0, 0.0, 0)
    between = sum(((runs.mean(1) - runs.mean()) ** 2).sum() for runs in configurations)
    num = configurations[0].shape[1]
    if num < 2:
        return SeedNoise(float(between) / freedom, 0.0, freedom)
    within = sum(
        ((runs - runs.mean(0) - runs.mean(1, keepdims=True) + runs.mean()) ** 2).sum() for runs in configurations
    )
    return SeedNoise(float(between) / freedom, float(within) / (freedom * (num - 1) * num), freedom)


def configuration_interval(runs: np.ndarray, noise: SeedNoise) -> Interval:
    """Return the interval of a configuration's mean over all seeds and pictures, from its (runs, N) outcomes.

    Without any freedom (one run each) the noise of seeds is unknown, and left out.
    """
    low, high = _over_seeds(runs.mean(0), 1 / len(runs), noise, _third_of_mean(runs.mean(0)))
    return (max(0.0, low), min(1.0, high)) if np.isin(runs, (0, 1)).all() else (low, high)


def configuration_gap(one: np.ndarray, other: np.ndarray, noise: SeedNoise) -> Interval:
    """Return the interval of the difference between two configurations' means, from (runs, N) outcomes, paired."""
    return _over_seeds(one.mean(0) - other.mean(0), 1 / len(one) + 1 / len(other), noise)


def _over_seeds(outcomes: np.ndarray, share: float, noise: SeedNoise, third: float = 0.0) -> Interval:
    """Add the seeds' variance, `share` of one run's, to that of the pictures, which holds a part of it already.

    Degrees of freedom by F. Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    by_seeds, both = share * noise.variance, _variance_of_mean(outcomes)
    by_pictures = max(both - share * noise.by_pictures, 0.0)
    variance = by_pictures + by_seeds
    third *= (by_pictures / both) ** 1.5 if both else 0.0  # the skewness is that of the pictures
    freedom = math.inf if not by_seeds else noise.freedom * (variance / by_seeds) ** 2
    freedom = min(freedom, max(len(outcomes) - 1, noise.freedom, 1))
    return _around(float(outcomes.mean()), variance, freedom, third)


def _variance_of_mean(outcomes: np.ndarray) -> float:
    return float(outcomes.var(ddof=1)) / len(outcomes) if len(outcomes) > 1 else 0.0


def _third_of_mean(outcomes: np.ndarray) -> float:
    """Return the third central moment of the mean of (N,) outcomes."""
    return float(((outcomes - outcomes.mean()) ** 3).mean()) / len(outcomes) ** 2


def _around(mean: float, variance: float, freedom: float, third: float = 0.0) -> Interval:
    """Return Student's interval, moved for skewness (P. Hall, The Bootstrap and Edgeworth Expansion, 1992, ch. 3).

    Losses are skewed, their differences are not: only for the former is a third moment of the mean given.
    """
    middle = mean + (2 * Z * Z + 1) / 6 * third / variance if third else mean
    half = _student(freedom) * math.sqrt(variance)
    return middle - half, middle + half


@lru_cache(maxsize=1024)
def _student(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t distribution."""
    if freedom > 1000:
        return Z

    def outside(t: float) -> float:  # less 5 %, of the distribution beyond -t and t
        return mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True) - 0.05  # type: ignore[no-any-return]

    return float(mpmath.findroot(outside, (1, 20), solver="anderson", tol=1e-9))


def _mcnemar(only_one: int, only_other: int) -> float:
    """Return the exact two-sided p-value of pictures that only one or only the other model has right."""
    num = only_one + only_other
    tail: int = sum(math.comb(num, k) for k in range(min(only_one, only_other) + 1))
    return min(1.0, float(2 * tail / 2**num))


def _paired_interval(only_one: int, only_other: int, num: int) -> Interval:
    one, other = (only_one + 1) / (num + 2), (only_other + 1) / (num + 2)
    return _around(one - other, (one + other - (one - other) ** 2) / (num + 2), math.inf)


def _bootstrap(differences: np.ndarray, resamples: int) -> Interval:
    """Return the percentiles of the mean of (N,) differences over `resamples` draws of N pictures (B. Efron, 1979)."""
    random = np.random.default_rng(0)
    num = len(differences)
    rows = max(1, 2_000_000 // num)  # drawn at once, for the memory's sake
    means = [
        differences[random.integers(0, num, (min(rows, resamples - done), num))].mean(1)
        for done in range(0, resamples, rows)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)
