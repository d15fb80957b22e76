import pytest
import torch

from catdog.data.preprocess import augment, normalize, preprocessing


def test_preprocessing_names_every_step():
    assert set(preprocessing(64)) == {"image_size", "resize", "color", "mean", "std"}


def test_normalized_images_are_channels_last_floats(subset):
    x = normalize(subset.images[:4])
    assert (x.shape, x.dtype) == ((4, 3, 32, 32), torch.float32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert normalize(torch.zeros(1, 2, 2, 3, dtype=torch.uint8)).unique().item() == -2


@pytest.mark.parametrize("kind", ["none", "flip", "crop", "color"])
def test_augmentation_keeps_shape_and_follows_its_generator(subset, kind):
    x = normalize(subset.images[:8])
    one, same = (augment(x, kind, torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == x.shape
    assert torch.equal(one, same)
    assert torch.equal(one, x) == (kind == "none")


def test_flip_mirrors_about_half_of_the_images(subset):
    x = normalize(subset.images)
    flipped = augment(x, "flip", torch.Generator().manual_seed(0))
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    untouched = (flipped == x).flatten(1).all(1)
    assert (mirrored | untouched).all()
    assert 40 < mirrored.sum() < 80
