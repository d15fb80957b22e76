"""Split decoded images into training, validation and test by the hash of their content."""

import hashlib
from itertools import count

import numpy as np

from catdog.data.sources import CLASSES

TEST_SHARE = 0.2  # of the images, if the folder has no test part
VALIDATION_SHARE = 0.15  # of the training images


def count_least(*, has_test: bool) -> int:
    """Return how many images of a class suffice to hold some out for validation, and for a test unless `has_test`."""
    rest = ((number, number - round(TEST_SHARE * number) * (not has_test)) for number in count(1))
    return next(number for number, others in rest if round(VALIDATION_SHARE * others))


def find_contradictions(labels: np.ndarray, hashes: np.ndarray, readable: np.ndarray) -> np.ndarray:
    """Mark images whose content is labelled a cat in one place and a dog in another. All arguments are (N,)."""
    contents, index = np.unique(hashes, return_inverse=True)
    has_label = np.zeros((len(CLASSES), len(contents)), dtype=bool)
    has_label[labels[readable], index[readable]] = True
    contradictory: np.ndarray = has_label[0] & has_label[1]
    return contradictory[index]


def assign_sides(
    labels: np.ndarray, hashes: np.ndarray, usable: np.ndarray, in_validation: np.ndarray, *, has_test: bool
) -> np.ndarray:
    """Return the side of each image, (N,) str: training, validation, test, or "" if it is not usable.

    Equal contents get the same side. The validation images are those marked in `in_validation` and their copies, or a
    stratified share of the training images if none is marked. Test images are split off unless `has_test`.
    """
    sides = np.where(usable, "training", "").astype("<U10")  # room for "validation"
    if not has_test:
        sides[_first_contents(labels, hashes, sides == "training", TEST_SHARE, "test")] = "test"
    if in_validation.any():
        sides[(sides == "training") & np.isin(hashes, hashes[in_validation])] = "validation"
    else:
        among = sides == "training"
        sides[_first_contents(labels, hashes, among, VALIDATION_SHARE, "validation")] = "validation"
    return sides


def _first_contents(labels: np.ndarray, hashes: np.ndarray, among: np.ndarray, share: float, salt: str) -> np.ndarray:
    """Mark `share` of the contents of each class: those whose salted hashes come first."""
    marked = np.zeros(len(among), dtype=bool)
    for label in range(len(CLASSES)):
        of_class = among & (labels == label)
        contents, index = np.unique(hashes[of_class], return_inverse=True)
        salted = (hashlib.sha256(salt.encode() + b" " + content).digest() for content in contents)
        rank = np.fromiter(salted, dtype="S32", count=len(contents)).argsort().argsort()
        marked[of_class] = rank[index] < round(share * len(contents))
    return marked
