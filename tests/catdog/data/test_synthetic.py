"""Tests of the drawn cats and dogs."""

from collections.abc import Iterable

import numpy as np
import pytest

from catdog.data.cache import FORMAT
from catdog.data.dataset import NUM_DRAWN
from catdog.data.synthetic import draw, synthetic


def test_the_same_seed_draws_the_same_image_and_another_seed_another_one() -> None:
    first = np.asarray(draw(0, 64, 7))
    assert np.array_equal(first, np.asarray(draw(0, 64, 7)))
    assert not np.array_equal(first, np.asarray(draw(0, 64, 8)))


def test_a_longer_set_begins_with_the_shorter_one() -> None:
    few, few_labels = synthetic(7, 48, seed=3)
    many, many_labels = synthetic(20, 48, seed=3)
    assert np.array_equal(few, many[:7])
    assert np.array_equal(few_labels, many_labels[:7])


def test_every_even_prefix_holds_as_many_cats_as_dogs_in_no_fixed_order() -> None:
    _, labels = synthetic(40, 32, seed=1)
    pairs = labels.reshape(-1, 2)
    assert (pairs.sum(axis=1) == 1).all()
    assert 0 < pairs[:, 0].sum() < len(pairs)


@pytest.mark.parametrize("size", [32, 65, 224])
def test_a_set_is_bytes_of_the_asked_shape(size: int) -> None:
    images, labels = synthetic(3, size, seed=0)
    assert images.shape == (3, size, size, 3)
    assert labels.shape == (3,)
    assert images.dtype == labels.dtype == np.uint8
    assert draw(1, size, 0).mode == "RGB"


def test_a_seed_draws_the_same_animal_at_every_size() -> None:
    small = np.asarray(draw(1, 64, 5), dtype=float)
    large = np.asarray(draw(1, 192, 5).reduce(3), dtype=float)
    other = np.asarray(draw(1, 192, 6).reduce(3), dtype=float)
    assert np.abs(small - large).mean() < 0.5 * np.abs(small - other).mean()


@pytest.mark.parametrize(("label", "size"), [(2, 64), (-1, 64), (0, 31)])
def test_an_unknown_label_or_too_small_a_size_is_refused(label: int, size: int) -> None:
    with pytest.raises(ValueError, match="label must be 0 or 1"):
        draw(label, size, 0)


def test_images_of_one_class_differ_from_each_other() -> None:
    images, labels = synthetic(60, 32, seed=2)
    for label in (0, 1):
        flat = images[labels == label].reshape(-1, 32 * 32 * 3).astype(float)
        distances = np.abs(flat[:, None] - flat[None]).mean(axis=2)
        assert distances[~np.eye(len(flat), dtype=bool)].min() > 12


def test_the_progress_wrapper_sees_every_image() -> None:
    seen: list[int] = []

    def count(indices: Iterable[int]) -> Iterable[int]:
        for index in indices:
            seen.append(index)
            yield index

    synthetic(5, 32, seed=0, progress=count)
    assert seen == [0, 1, 2, 3, 4]


def test_a_linear_classifier_stays_under_70_percent() -> None:
    """Fit ridge regression to pixels. The test images may even choose its penalty."""
    (train, labels), (test, truth) = (synthetic(count, 32, seed) for seed, count in enumerate(NUM_DRAWN.values()))
    pixels, others = (images.reshape(len(images), -1).astype(np.float32) for images in (train, test))
    mean, spread = pixels.mean(axis=0), pixels.std(axis=0)
    pixels, others = (pixels - mean) / spread, (others - mean) / spread
    values, vectors = np.linalg.eigh(pixels @ pixels.T)
    targets, scores = vectors.T @ (labels * 2.0 - 1), others @ pixels.T @ vectors
    for penalty in 10.0 ** np.arange(2, 7):
        assert np.mean((scores @ (targets / (values + penalty)) > 0) == truth) < 0.70


def test_new_drawings_get_a_new_format() -> None:
    """Raise FORMAT and change this test if the drawings change. Else caches and sweeps mix old and new images."""
    images, _ = synthetic(4, 32, seed=0)
    assert FORMAT == 3
    assert images.mean(axis=(1, 2, 3)) == pytest.approx([132.7, 102.1, 114.1, 131.9], abs=0.1)
