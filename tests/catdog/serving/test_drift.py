import numpy as np
import pytest

from catdog.serving.drift import psi, psi_threshold, rate_threshold, shares_of


def test_index_is_zero_for_equal_shares_and_known_for_others():
    assert psi([0.5, 0.5], [0.5, 0.5]) == 0
    assert psi([0.7, 0.3], [0.5, 0.5]) == pytest.approx(0.2 * np.log(1.4) - 0.2 * np.log(0.6))
    assert shares_of([0, 9]) == [0.05, 0.95]


@pytest.mark.parametrize("pictures", [180, 1200, 5000])
@pytest.mark.parametrize("bins", [2, 10])
def test_threshold_is_crossed_by_less_than_one_honest_window_in_a_thousand(bins, pictures):
    rng, even = np.random.default_rng(0), np.full(bins, 1 / bins)
    crossed = sum(
        psi(shares_of(rng.multinomial(300, even)), shares_of(rng.multinomial(pictures, even)))
        > psi_threshold(bins, 300, pictures)
        for _ in range(4000)
    )
    assert crossed <= 4


def test_threshold_is_that_of_the_formula():
    assert psi_threshold(10, 300, 180) == pytest.approx(33.7 * (1 / 300 + 1 / 180), rel=0.02)  # chi-squared, 9 degrees
    assert psi_threshold(2, 300, 10**6) == 0.2


def test_rate_threshold_is_above_what_chance_brings():
    rng = np.random.default_rng(0)
    assert rate_threshold(0.02, 300, 1000) == 0.1
    assert (rng.binomial(300, 0.2, 4000) / 300 > rate_threshold(0.2, 300, 10000)).mean() < 0.002
