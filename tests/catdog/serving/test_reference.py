import json

import numpy as np
import pytest

from catdog.data import dataset as data
from catdog.data.dataset import load_data
from catdog.predict import Classifier
from catdog.serving.reference import known_answers, make_reference
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


def test_known_answers_are_readable_pictures_with_probabilities(reference):
    files, answers, distances = known_answers(reference)
    assert len(distances) == 8
    assert len(files) == len(answers) == 8
    assert all(file.startswith(b"\xff\xd8") for file in files)  # JPEG
    assert answers.sum(1) == pytest.approx(np.ones(8), abs=1e-5)


def test_model_without_reference_never_abstains(good, tmp_path):
    from catdog.data.dataset import preprocessing
    from catdog.model import save_model

    header = {"classes": ["cat", "dog"], "preprocessing": preprocessing(32), "metrics": {}, "provenance": {}}
    save_model(good[0], tmp_path / "model.safetensors", header)
    classifier = Classifier(tmp_path / "model.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert all(answer.familiar for answer in classifier.answer(noise))
