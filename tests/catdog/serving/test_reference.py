import json

import numpy as np
import pytest

from catdog.data import dataset as data
from catdog.data.dataset import load_data
from catdog.predict import Classifier
from catdog.serving.reference import known_answers, make_reference, psi, psi_threshold, rate_threshold, shares_of
from tests.conftest import DRAWN


@pytest.fixture
def reference(good, monkeypatch):
    monkeypatch.setenv("CATDOG_CACHE", str(good[1]))
    monkeypatch.setattr(data, "NUM_DRAWN", DRAWN)
    return make_reference(good[0], load_data("synthetic", 32), "cpu")


def test_reference_is_what_validation_showed_and_fits_a_header(reference):
    assert json.loads(json.dumps(reference)) == reference
    assert reference["pictures"] == 30
    assert sum(reference["classes"]) == pytest.approx(1)
    assert len(reference["margins"]) == len(reference["margin_edges"]) + 1 == 10
    assert all(share == pytest.approx(0.1, abs=0.05) for share in reference["margins"])
    assert 0 < reference["abstained"] <= 0.1
    assert set(reference["thresholds"]) == {"class_psi", "confidence_psi", "abstained", "errors"}


def test_known_answers_are_readable_images_with_probabilities(reference):
    files, answers, distances = known_answers(reference)
    assert len(distances) == 8
    assert len(files) == len(answers) == 8
    assert all(file.startswith(b"\xff\xd8") for file in files)  # JPEG
    assert answers.sum(1) == pytest.approx(np.ones(8), abs=1e-5)


def test_model_without_reference_never_abstains(good, tmp_path):
    from catdog.checkpoint import save_model
    from catdog.data.preprocess import preprocessing

    header = {"classes": ["cat", "dog"], "preprocessing": preprocessing(32), "metrics": {}, "provenance": {}}
    save_model(good[0], tmp_path / "model.safetensors", header)
    classifier = Classifier(tmp_path / "model.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert all(answer.familiar for answer in classifier.answer(noise))


def test_index_is_zero_for_equal_shares_and_known_for_others():
    assert psi([0.5, 0.5], [0.5, 0.5]) == 0
    assert psi([0.7, 0.3], [0.5, 0.5]) == pytest.approx(0.2 * np.log(1.4) - 0.2 * np.log(0.6))
    assert shares_of([0, 9]) == [0.05, 0.95]


@pytest.mark.parametrize("num_images", [180, 1200, 5000])
@pytest.mark.parametrize("bins", [2, 10])
def test_threshold_is_crossed_by_less_than_one_honest_window_in_a_thousand(bins, num_images):
    rng, even = np.random.default_rng(0), np.full(bins, 1 / bins)
    crossed = sum(
        psi(shares_of(rng.multinomial(300, even)), shares_of(rng.multinomial(num_images, even)))
        > psi_threshold(bins, 300, num_images)
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
