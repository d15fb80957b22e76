import pytest
import torch

from catdog.data.dataset import load_data
from catdog.data.preprocess import normalize
from catdog.explain import OODDetector, extract_features, group_sizes, margin_of
from catdog.model import ModelConfig, build_model

CPU = torch.device("cpu")


@pytest.fixture
def images(subset):
    return subset.images[:6]


@pytest.fixture
def model():
    return build_model(ModelConfig(4, 8, 2, image_size=32), seed=3).eval()


def test_logits_are_those_of_the_network_with_and_without_heat(model, images):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
        expected = model(normalize(images))
    for saliency in (False, True):
        features = extract_features(model, images, CPU, saliency=saliency)
        assert torch.allclose(features.logits, expected, atol=0.05)  # bfloat16 where this CPU has it


RICH = ModelConfig(4, 16, 2, double_width=True, residual_blocks=2, global_pool=True, flip_average=True, image_size=32)


def test_parts_of_the_network_are_the_same_in_both_forms(images):
    model = build_model(RICH, seed=3).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
        expected = model(normalize(images))
    plain, heat = (extract_features(model, images, CPU, saliency=saliency) for saliency in (False, True))
    for features in (plain, heat):
        assert torch.allclose(features.logits, expected, atol=0.05)
        assert features.statistics.shape == (6, sum(group_sizes(RICH)))
    assert heat.saliency.shape == (6, 8, 8)
    mirrored = extract_features(model, images.flip(2), CPU, saliency=True).saliency
    assert torch.allclose(mirrored, heat.saliency.flip(2), atol=0.05)


def test_statistics_are_mean_and_spread_of_every_channel_after_every_block(model, images):
    features = extract_features(model, images, CPU)
    with torch.no_grad():
        stem = model.stem(normalize(images))
    assert features.statistics.shape == (6, sum(group_sizes(model.config)))
    assert torch.allclose(features.statistics[:, :4], stem.mean((2, 3)), atol=0.02)
    assert torch.allclose(features.statistics[:, 4:8], stem.std((2, 3), correction=0), atol=0.02)


def test_heat_is_gradient_times_map_of_the_last_block_with_seven_pixels(images, monkeypatch):
    monkeypatch.setattr("catdog.explain.autocast", lambda *_: torch.autocast("cpu", enabled=False))
    model = build_model(ModelConfig(4, 8, 2, image_size=32), seed=3).eval()
    maps = []
    model.widen[2].register_forward_hook(lambda _, __, out: maps.append(out))  # 16 x 16
    model.body[0][2].register_forward_hook(lambda _, __, out: maps.append(out))  # 8 x 8, then 4 x 4
    logits = model(normalize(images))
    (gradient,) = torch.autograd.grad(margin_of(logits).sum(), maps[1])
    expected = (maps[1] * gradient).sum(1).relu()
    heat = extract_features(model, images, CPU, saliency=True).saliency
    assert heat.shape == (6, 8, 8)
    assert torch.allclose(heat, expected / expected.amax((1, 2), keepdim=True), atol=1e-4)


def test_heat_of_the_readme_network_is_that_of_its_last_block():
    model = build_model(ModelConfig(stem_width=2, body_width=4, image_size=224)).eval()
    assert extract_features(
        model, torch.zeros(1, 224, 224, 3, dtype=torch.uint8), CPU, saliency=True
    ).saliency.shape == (
        1,
        7,
        7,
    )


def test_margin_is_the_log_odds_of_the_likeliest_class():
    logits = torch.tensor([[2.0, -1.0], [0.0, 0.0], [-5.0, 3.0]])
    best = logits.softmax(1).amax(1)
    assert torch.allclose(margin_of(logits), torch.log(best / (1 - best)), atol=1e-5)


def test_noise_and_plain_areas_are_unusual_and_held_out_images_are_not(good, monkeypatch):
    model, cache = good
    monkeypatch.setenv("CATDOG_CACHE", str(cache))
    monkeypatch.setattr("catdog.data.dataset.NUM_DRAWN", {"training": 200, "test": 300})
    data = load_data("synthetic", 32)
    detector = OODDetector.fit(
        extract_features(model, data.training.images[data.training.rows], CPU).statistics, model.config
    )
    usual = detector.distance(extract_features(model, data.validation.images[data.validation.rows], CPU).statistics)
    noise = torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8)
    plain = torch.arange(20).view(20, 1, 1, 1).expand(20, 32, 32, 3).to(torch.uint8) * 12
    assert usual.median() < 2
    assert detector.distance(extract_features(model, noise, CPU).statistics).min() > usual.max()
    assert detector.distance(extract_features(model, plain, CPU).statistics).median() > usual.quantile(0.9)


def test_detector_survives_the_header(model, images):
    statistics = extract_features(model, images, CPU).statistics
    detector = OODDetector.fit(statistics, model.config, limit=2.5)
    again = OODDetector.from_header(detector.for_header(), model.config)
    assert again.limit == 2.5
    assert torch.equal(again.distance(statistics), detector.distance(statistics))


def test_last_map_of_one_place_has_no_spread(images):
    model = build_model(ModelConfig(4, 8, 3, image_size=32), seed=3).eval()
    assert torch.equal(extract_features(model, images, CPU).statistics[:, -8:], torch.zeros(6, 8))
