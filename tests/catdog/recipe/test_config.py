import math
from dataclasses import replace

import pytest

from catdog.model import ModelConfig
from catdog.recipe.config import TrainConfig, image_size_of, require_suited

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
        ("erasing", -0.5, "erasing is -0.5; it must be 0 to 1"),
        ("start_scale", 0.0, "start_scale is 0.0; it must be above 0 and at most 1"),
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
    sizes = [image_size_of(epoch, POOLED, TrainConfig(epochs=10, start_scale=0.625)) for epoch in range(1, 11)]
    assert sizes == [80] * 3 + [104] * 4 + [128] * 3
    assert image_size_of(1, POOLED, TrainConfig(epochs=1, start_scale=0.625)) == 128
    assert image_size_of(1, POOLED, TrainConfig(start_scale=0.01)) == 16  # four poolings need as many
    finals = {
        image_size_of(20, replace(POOLED, image_size=159), TrainConfig(start_scale=n / 1000)) for n in range(1, 1000)
    }
    assert finals == {159}
    uneven = replace(POOLED, image_size=159)
    assert [image_size_of(epoch, uneven, TrainConfig(start_scale=0.97)) for epoch in (1, 10, 20)] == [152, 159, 159]
    assert {image_size_of(epoch, POOLED, TrainConfig()) for epoch in range(1, 21)} == {128}


def test_network_that_does_not_pool_cannot_have_growing_images():
    with pytest.raises(
        ValueError, match=r"start_scale is 0\.5; only a network with global_pool takes images of several"
    ):
        require_suited(ModelConfig(), TrainConfig(start_scale=0.5))


@pytest.mark.parametrize("start_scale", [0.5, 1.0])
def test_residual_block_at_one_pixel_needs_more_than_one_image(start_scale):
    size = round(16 / start_scale)  # 16 pixels at first, which four poolings reduce to one
    shape = replace(POOLED, image_size=size, residual_blocks=1)
    with pytest.raises(ValueError, match=r"batch_size is 1; the last residual block needs .* at least 32 pixels"):
        require_suited(shape, TrainConfig(batch_size=1, start_scale=start_scale))
    require_suited(shape, TrainConfig(batch_size=2, start_scale=start_scale))
    require_suited(replace(shape, image_size=2 * size), TrainConfig(batch_size=1, start_scale=start_scale))
