import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses

from catdog.data.preprocess import normalize
from catdog.recipe.augmentation import augment, erase

KINDS = ["none", "flip", "crop", "color", "strong"]


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_keeps_shape_and_follows_its_generator(subset, kind):
    x = normalize(subset.images[:8])
    one, same = (augment(x, kind, generator()) for _ in range(2))
    assert one.shape == x.shape
    assert torch.equal(one, same)
    assert torch.equal(one, x) == (kind == "none")
    assert one.is_contiguous(memory_format=torch.channels_last)
    assert erase(one, 0.5, generator()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_gives_another_size(subset, kind):
    x = normalize(subset.images[:8])
    small, reduced = augment(x, kind, generator(), 16), F.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    assert small.shape == reduced.shape
    if kind in ("none", "flip"):
        other = reduced.flip(3) if kind == "flip" else reduced
        assert ((small == reduced) | (small == other)).flatten(1).all()
    assert 0.5 < small.std() / reduced.std() < 1.5


def test_flip_mirrors_about_half_of_the_images(subset):
    x = normalize(subset.images)
    flipped = augment(x, "flip", generator(0))
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    untouched = (flipped == x).flatten(1).all(1)
    assert (mirrored | untouched).all()
    assert 40 < mirrored.sum() < 80


def test_strong_shows_a_part_of_the_image_and_nothing_beyond_it():
    places = torch.linspace(-1, 1, 64).expand(200, 1, 64, 64)
    x = torch.cat((places, places.transpose(2, 3), torch.ones_like(places)), dim=1)
    y = augment(x, "strong", generator())
    width = (y[:, 0].amax((1, 2)) - y[:, 0].amin((1, 2))) / 2  # contrast changes it by 0.6 to 1.4
    assert 0.25 < width.min() < 0.5
    assert 1.1 < width.max() < 1.4
    middle = y[:, 0, :, 1:] - y[:, 0, :, :-1]
    assert ((middle > 0).all((1, 2)) | (middle < 0).all((1, 2))).all()  # no reflection at a border


def test_erasing_leaves_most_of_an_image():
    x = torch.ones(64, 3, 32, 32)
    gone = (erase(x, 1.0, generator()) == 0).double().mean((1, 2, 3))
    assert gone.max() < 0.36
    assert gone.mean() > 0.08
    assert torch.equal(erase(x, 0.0, generator()), x)
