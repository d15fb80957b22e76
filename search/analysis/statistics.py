"""Compute intervals and tests from outcomes per image, all at 95 %.

scipy is imported where it is used: workers need Wilson's interval alone, and scipy.stats would cost each of them 1.4 s
and 80 MB.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Interval = tuple[float, float]  # low, high

Z = 1.959964  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Outcomes:
    """One model's results on N images, always in the same order."""

    loss: np.ndarray  # (N,) cross-entropy, nats
    correct: np.ndarray  # (N,) bool


@dataclass(frozen=True)
class Comparison:
    """A challenger and a champion on the same images; differences are challenger minus champion."""

    accuracy: float
    accuracy_interval: Interval  # paired, R. Bonett and D. Price, J. Educ. Behav. Stat. 37 (2012)
    only_challenger: int  # images that only the challenger classifies correctly
    only_champion: int
    p_value: float  # exact McNemar, two-sided
    loss: float
    loss_interval: Interval  # paired bootstrap over images, percentiles (B. Efron, 1979)

    @property
    def verdict(self) -> Literal["better", "tied", "worse"]:
        """Better: in accuracy or in loss, and worse in neither. Tied: no difference in either."""
        gain = self.only_challenger - self.only_champion if self.p_value < 0.05 else 0
        low, high = self.loss_interval
        if gain < 0 or low > 0:
            return "worse"
        return "better" if gain > 0 or high < 0 else "tied"

    def images_to_tell_a_gain(self, num_images: int) -> tuple[float, str] | None:
        """Return about how many images would show the challenger's gain, and in what; None if it has none.

        An interval's width shrinks with the root of the number of images. With this many, the observed difference, if
        it is the true one, is significant in half of all tests: the sample size for a power of 50 % (R. Connor,
        Biometrics 43, 1987).
        """
        gains = [("accuracy", self.accuracy, self.accuracy_interval), ("loss", -self.loss, self.loss_interval)]
        needed = [(((high - low) / 2 / gain) ** 2, name) for name, gain, (low, high) in gains if gain > 0]
        if not needed:
            return None
        factor, name = min(needed)
        return max(factor * num_images, num_images + 1.0), name


def compare(challenger: Outcomes, champion: Outcomes, num_resamples: int = 10_000) -> Comparison:
    """Compare two models on the same images; equal input gives equal output."""
    from scipy import stats  # noqa: PLC0415

    num = len(champion.loss)
    wins = int((challenger.correct & ~champion.correct).sum())
    losses = int((champion.correct & ~challenger.correct).sum())
    win_rate, loss_rate = (wins + 1) / (num + 2), (losses + 1) / (num + 2)
    variance = (win_rate + loss_rate - (win_rate - loss_rate) ** 2) / (num + 2)
    gaps = challenger.loss.astype(np.float64) - champion.loss
    batch = max(1, 2_000_000 // num)  # resamples in memory at once
    bootstrap = stats.bootstrap((gaps,), np.mean, n_resamples=num_resamples, batch=batch, method="percentile", rng=0)
    low, high = bootstrap.confidence_interval
    return Comparison(
        accuracy=(wins - losses) / num,
        accuracy_interval=_student_interval(win_rate - loss_rate, variance, math.inf),
        only_challenger=wins,
        only_champion=losses,
        p_value=float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
        loss=float(gaps.mean()),
        loss_interval=(float(low), float(high)),
    )


def accuracy_interval(accuracy: float, num_images: int) -> Interval:
    """Return Wilson's interval of a proportion (E. B. Wilson, JASA 22, 1927), both ends in 0 to 1."""
    n = num_images
    centre = (accuracy + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(accuracy * (1 - accuracy) / n + Z * Z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(outcomes: np.ndarray) -> Interval:
    """Return the interval of one model's mean over the population of images, from (N,) outcomes."""
    if np.isin(outcomes, (0, 1)).all():
        return accuracy_interval(float(outcomes.mean()), len(outcomes))
    moment = _third_moment_of_mean(outcomes)
    return _student_interval(float(outcomes.mean()), _variance_of_mean(outcomes), len(outcomes) - 1, moment)


def model_difference(one: np.ndarray, other: np.ndarray) -> Interval:
    """Return the interval of the difference between two models' means, from their paired (N,) outcomes."""
    gaps = one.astype(np.float64) - other
    return _student_interval(float(gaps.mean()), _variance_of_mean(gaps), len(gaps) - 1)


@dataclass(frozen=True)
class SeedNoise:
    """The spread of one configuration's runs, which differ in their seed only."""

    variance: float  # of a run's mean
    from_images: float  # the part of it that more images would remove
    dof: int  # degrees of freedom: runs beyond the first of each configuration


def seed_noise(configurations: Sequence[np.ndarray]) -> SeedNoise:
    """Estimate the seed noise of all configurations together, from each one's (runs, N) outcomes (two-way ANOVA)."""
    dof = sum(len(runs) - 1 for runs in configurations)
    if not dof:
        return SeedNoise(0.0, 0.0, 0)
    between = float(sum(((runs.mean(1) - runs.mean()) ** 2).sum() for runs in configurations))
    num = configurations[0].shape[1]
    if num < 2:
        return SeedNoise(between / dof, 0.0, dof)
    residuals = (runs - runs.mean(0) - runs.mean(1, keepdims=True) + runs.mean() for runs in configurations)
    within = float(sum((residual**2).sum() for residual in residuals))
    return SeedNoise(between / dof, within / (dof * (num - 1) * num), dof)


def configuration_interval(runs: np.ndarray, noise: SeedNoise) -> Interval:
    """Return the interval of a configuration's mean over all seeds and images, from its (runs, N) outcomes.

    Without degrees of freedom (one run each) the seed noise is unknown and left out.
    """
    means = runs.mean(0)
    low, high = _interval_over_seeds(means, 1 / len(runs), noise, _third_moment_of_mean(means))
    return (max(0.0, low), min(1.0, high)) if np.isin(runs, (0, 1)).all() else (low, high)


def configuration_difference(one: np.ndarray, other: np.ndarray, noise: SeedNoise) -> Interval:
    """Return the interval of the difference between two configurations' means, from paired (runs, N) outcomes."""
    return _interval_over_seeds(one.mean(0) - other.mean(0), 1 / len(one) + 1 / len(other), noise)


def _interval_over_seeds(outcomes: np.ndarray, share: float, noise: SeedNoise, third_moment: float = 0.0) -> Interval:
    """Add `share` of one run's seed variance to the variance over images, which already contains a part of it.

    Degrees of freedom by F. Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    from_seeds, observed = share * noise.variance, _variance_of_mean(outcomes)
    from_images = max(observed - share * noise.from_images, 0.0)
    variance = from_images + from_seeds
    third_moment *= (from_images / observed) ** 1.5 if observed else 0.0  # only the images are skewed
    dof = math.inf if not from_seeds else noise.dof * (variance / from_seeds) ** 2
    dof = min(dof, max(len(outcomes) - 1, noise.dof, 1))
    return _student_interval(float(outcomes.mean()), variance, dof, third_moment)


def _variance_of_mean(outcomes: np.ndarray) -> float:
    return float(outcomes.var(ddof=1)) / len(outcomes) if len(outcomes) > 1 else 0.0


def _third_moment_of_mean(outcomes: np.ndarray) -> float:
    """Return the third central moment of the mean of (N,) outcomes."""
    return float(((outcomes - outcomes.mean()) ** 3).mean()) / len(outcomes) ** 2


def _student_interval(mean: float, variance: float, dof: float, third_moment: float = 0.0) -> Interval:
    """Return Student's interval, shifted for skewness (P. Hall, The Bootstrap and Edgeworth Expansion, 1992, ch. 3).

    Losses are skewed and their differences are not, so only the former pass the third moment of their mean.
    """
    middle = mean + (2 * Z * Z + 1) / 6 * third_moment / variance if third_moment else mean
    half = _student_quantile(dof) * math.sqrt(variance)
    return middle - half, middle + half


def _student_quantile(dof: float) -> float:
    """Return the 97.5 % quantile of Student's t distribution."""
    if dof > 1000:
        return Z
    from scipy.special import stdtrit  # noqa: PLC0415

    return float(stdtrit(dof, 0.975))
