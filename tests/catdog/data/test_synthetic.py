"""Tests of the drawn cats and dogs."""

from collections.abc import Iterable

import numpy as np
import pytest

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


def test_a_linear_classifier_stays_under_75_percent() -> None:
    images, labels = synthetic(2400, 32, seed=4)
    pixels = images.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)).reshape(len(images), -1)
    pixels = (pixels - pixels[:1600].mean(axis=0)) / pixels[:1600].std(axis=0)
    train, test, signs = pixels[:1600], pixels[1600:], labels * 2.0 - 1
    for strength in (1e2, 1e3, 1e4):
        gram = train.T @ train + strength * np.eye(train.shape[1])
        weights = np.linalg.solve(gram, train.T @ signs[:1600])
        assert np.mean((test @ weights > 0) == (signs[1600:] > 0)) < 0.75
