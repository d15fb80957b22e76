import math

import pytest

from catdog.model import ModelConfig
from catdog.recipe.config import TrainConfig, image_size_of, require_sizes

POOLED = ModelConfig(stem_width=4, body_width=8, body_repeats=2, global_pool=True, image_size=128)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs is 0; it must be at least 1"),
        ("batch_size", 0, "batch_size is 0"),
        ("learning_rate", 0.0, "learning_rate is 0.0; it must be above 0"),
        ("learning_rate", math.nan, "learning_rate is nan"),
        ("weight_decay", -1.0, "weight_decay is -1.0; it must not be negative"),
        ("label_smoothing", 1.0, "label_smoothing is 1.0; it must be at least 0 and below 1"),
        ("ema", 1.0, "ema is 1.0; it must be at least 0 and below 1"),
        ("cutmix", 1.5, "cutmix is 1.5; it must be 0 to 1"),
        ("erasing", -0.5, "erasing is -0.5; it must be 0 to 1"),
        ("start_size", -8, "start_size is -8; it must not be negative"),
        ("optimizer", "adan", "optimizer is 'adan'; it must be one of adam, adamw, sgd, muon"),
        ("schedule", "step", "schedule is 'step'; it must be one of constant, cosine, one_cycle, linear, wsd"),
        ("augmentation", "mixup", "augmentation is 'mixup'"),
        ("precision", "int8", "precision is 'int8'"),
    ],
)
def test_recipe_out_of_range_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


def test_images_grow_in_three_steps():
    sizes = [image_size_of(epoch, POOLED, TrainConfig(epochs=10, start_size=80)) for epoch in range(1, 11)]
    assert sizes == [80] * 3 + [104] * 4 + [128] * 3
    assert image_size_of(1, POOLED, TrainConfig(epochs=1, start_size=80)) == 128
    assert {image_size_of(epoch, POOLED, TrainConfig()) for epoch in range(1, 21)} == {128}


@pytest.mark.parametrize(
    ("shape", "start", "message"),
    [
        (POOLED, 15, "start_size is 15; it must be 16 to 128 pixels, the image_size, or 0"),
        (POOLED, 129, "start_size is 129; it must be 16 to 128 pixels"),
        (ModelConfig(), 112, "start_size is 112; only a network with global_pool takes images of several sizes"),
    ],
)
def test_start_size_that_the_network_cannot_use_is_refused(shape, start, message):
    with pytest.raises(ValueError, match=message):
        require_sizes(shape, TrainConfig(start_size=start))
