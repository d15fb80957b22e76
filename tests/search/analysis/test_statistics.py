import math

import numpy as np
import pytest

from search.analysis.statistics import (
    Outcomes,
    accuracy_interval,
    compare,
    configuration_difference,
    configuration_interval,
    mean_interval,
    model_difference,
    seed_noise,
)

RANDOM = np.random.default_rng(5)


def outcomes(losses):
    losses = np.asarray(losses, dtype=float)
    return Outcomes(losses, losses < 0.7)


@pytest.mark.parametrize(  # R: prop.test(x, n, correct = FALSE)
    ("accuracy", "count", "low", "high"),
    [(0.9, 100, 0.8256, 0.9448), (1.0, 20, 0.8389, 1.0), (0.0, 20, 0.0, 0.1611)],
)
def test_interval_of_a_share_is_wilsons(accuracy, count, low, high):
    assert accuracy_interval(accuracy, count) == pytest.approx((low, high), abs=1e-4)


def test_interval_of_a_mean_is_students():
    values = np.array([3.8, 4.4, 4.8, 5.2, 5.8])  # mean 4.8, deviation 0.7616, t 2.776
    assert mean_interval(values) == pytest.approx((3.8544, 5.7456), abs=1e-3)
    assert mean_interval(np.array([1.0, 0.0, 1.0, 1.0])) == accuracy_interval(0.75, 4)


def test_interval_of_a_skewed_mean_is_moved():
    random = np.random.default_rng(4)
    unmoved = moved = 0
    for _ in range(2000):
        losses = random.exponential(1, 40)
        low, high = mean_interval(losses)
        half = (high - low) / 2
        unmoved += losses.mean() - half <= 1 <= losses.mean() + half
        moved += low <= 1 <= high
    assert unmoved < moved
    assert 1860 < moved < 1940


def test_gap_is_paired():
    one = RANDOM.normal(0, 5, 400)
    low, high = model_difference(one + 0.1 + RANDOM.normal(0, 0.01, 400), one)
    assert 0.095 < low < 0.1 < high < 0.105


def test_mcnemar_is_exact():
    first, second = np.full(100, 0.1), np.full(100, 0.1)
    first[:12], second[12:15] = 0.9, 0.9  # 12 that only the second has right, 3 that only the first has
    compared = compare(outcomes(first), outcomes(second))
    assert (compared.only_challenger, compared.only_champion) == (3, 12)
    assert compared.p_value == pytest.approx(2 * 576 / 2**15)  # heads of 15 coins: at most 3
    assert compared.accuracy == pytest.approx(-0.09)
    low, high = compared.accuracy_interval
    assert (low, high) == pytest.approx((-0.16559, -0.01088), abs=1e-4)  # by hand from Bonett and Price
    assert compared.verdict == "worse"


@pytest.mark.parametrize(("shift", "verdict"), [(-0.05, "better"), (0.0, "tied"), (0.05, "worse")])
def test_loss_alone_can_decide(shift, verdict):
    losses = RANDOM.uniform(0, 0.5, 500)
    compared = compare(outcomes(losses + shift + RANDOM.normal(0, 0.05, 500)), outcomes(losses))
    assert compared.verdict == verdict
    low, high = compared.loss_interval
    assert low < compared.loss < high


def test_better_in_one_and_worse_in_the_other_is_not_better():
    champion = np.full(200, 0.1)
    challenger = champion - 0.05
    challenger[:20] = 0.71  # wrong, and its mean loss is still lower in the end
    champion[100:] = 0.5
    compared = compare(outcomes(challenger), outcomes(champion))
    assert compared.loss_interval[1] < 0
    assert compared.verdict == "worse"


def test_a_model_beside_itself_is_tied():
    same = outcomes(RANDOM.uniform(0, 1, 50))
    compared = compare(same, same)
    assert (compared.verdict, compared.p_value, compared.loss_interval) == ("tied", 1.0, (0.0, 0.0))


def simulated(num_configurations, runs, images, seed_deviation, random):
    """Outcomes of configurations that differ in nothing: images are hard or easy, seeds lucky or not, and noise."""
    difficulty = random.normal(0, 1, images)
    shape = (num_configurations, runs)
    return difficulty + random.normal(0, seed_deviation, (*shape, 1)) + random.normal(0, 0.7, (*shape, images))


@pytest.mark.parametrize("seed_deviation", [0.0, 0.05])
def test_intervals_of_configurations_cover_the_truth_as_often_as_they_say(seed_deviation):
    random, covered, rounds = np.random.default_rng(1), np.zeros(2), 300
    for _ in range(rounds):
        found = simulated(3, 2, 300, seed_deviation, random)
        noise = seed_noise(list(found))
        for index, (low, high) in enumerate(
            (configuration_difference(found[0], found[1], noise), configuration_interval(found[2], noise))
        ):
            covered[index] += low <= 0 <= high
    assert (0.92 * rounds <= covered).all()
    assert (covered <= 0.98 * rounds).all()


def test_seed_noise_is_found_again():
    random = np.random.default_rng(2)
    estimates = [seed_noise(list(simulated(3, 2, 300, 0.05, random))) for _ in range(500)]
    assert np.mean([noise.variance for noise in estimates]) == pytest.approx(0.05**2 + 0.49 / 300, rel=0.1)
    assert np.mean([noise.from_images for noise in estimates]) == pytest.approx(0.49 / 300, rel=0.05)
    assert estimates[0].dof == 3


def test_one_run_each_says_nothing_of_seeds():
    one, other = RANDOM.normal(0, 1, (2, 1, 200))
    noise = seed_noise([one, other])
    assert noise.dof == 0
    assert configuration_difference(one, other, noise) == pytest.approx(model_difference(one[0], other[0]))


def test_without_outcomes_per_image_the_seeds_alone_decide():
    runs = [np.array([[0.30], [0.32]]), np.array([[0.40], [0.38]]), np.array([[0.31], [0.29]])]
    noise = seed_noise(runs)
    assert noise.variance == pytest.approx(0.0002)
    low, high = configuration_difference(runs[0], runs[1], noise)  # t of 3 degrees: 3.182 * sqrt(0.0002)
    assert (low, high) == pytest.approx((-0.08 - 0.045, -0.08 + 0.045), abs=1e-3)


def test_interval_of_few_images_and_wide_seeds_is_around_its_mean():
    random = np.random.default_rng(0)
    for _ in range(300):
        runs = random.lognormal(-0.6, 0.6, (1, 18)) + random.normal(0, 0.4, (2, 18))
        low, high = configuration_interval(runs, seed_noise([runs]))
        assert low < runs.mean() < high


@pytest.mark.parametrize(("wins", "losses"), [(12, 8), (30, 22), (7, 2)])
def test_as_many_images_as_a_gain_takes_show_it(wins, losses):
    def outcomes(wrong, repeats):
        correct = np.ones(500, dtype=bool)
        correct[wrong] = False
        return Outcomes(np.full(500 * repeats, 0.3), np.tile(correct, repeats))

    def comparison(repeats):
        return compare(outcomes(slice(wins, wins + losses), repeats), outcomes(slice(0, wins), repeats))

    assert comparison(1).verdict == "tied"
    needed, name = comparison(1).images_to_tell_a_gain(500)
    assert name == "accuracy"
    assert comparison(math.ceil(1.3 * needed / 500)).verdict == "better"
    assert comparison(max(1, int(0.7 * needed / 500))).verdict == "tied"


def test_no_number_of_images_tells_a_gain_that_is_none():
    same = Outcomes(np.full(50, 0.3), np.ones(50, dtype=bool))
    assert compare(same, same).images_to_tell_a_gain(50) is None
