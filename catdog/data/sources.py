"""List the labelled image files of a folder, in any of the usual layouts, or of Kaggle's data set.

Supported at any depth: Kaggle's `training_set/training_set/cats/`, `train/` with `test/` or `validation/`,
`PetImages/Cat/`, and flat `cat.0.jpg`. File extensions are ignored; the decoder looks at the content.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

CLASSES = ("cat", "dog")
NAMED = re.compile(r"(cat|dog)s?[._ -]*\(?\d")  # files whose name tells their class
LABELS = {"cat": 0, "cats": 0, "dog": 1, "dogs": 1}
PARTS = {
    **dict.fromkeys(("train", "training", "train_set", "training_set"), "training"),
    **dict.fromkeys(("val", "valid", "validation", "validation_set", "val_set"), "validation"),
    **dict.fromkeys(("test", "testing", "test_set", "testing_set"), "test"),
}


@dataclass(frozen=True, slots=True)  # there may be a million of them
class LabelledFile:
    """One labelled file."""

    path: str
    label: int  # index into CLASSES
    part: str  # training, validation, test, or "" if no folder names it


@dataclass(frozen=True)
class Listing:
    """The labelled files of a folder."""

    folder: Path
    training: tuple[LabelledFile, ...]
    validation: tuple[LabelledFile, ...]  # if empty, they are split off the training images
    test: tuple[LabelledFile, ...]  # likewise
    notes: tuple[str, ...]  # files that were left out, a sentence each


def list_images(folder: Path) -> Listing:
    """Find and label every file below `folder`.

    Raises ValueError for a folder that is missing, has no images, lacks one of the classes or is ambiguous.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"data folder {folder} {problem}; give --data synthetic, kaggle or a folder")
    found, unlabelled = [], 0
    roots: Counter[Path] = Counter()
    for above, path in _files(folder):
        if file := _label(above, path):
            found.append(file)
            roots[_data_set(above)] += 1
        else:
            unlabelled += 1
    if not found:
        expected = "expected folders named cats and dogs, or files named like cat.0.jpg"
        raise ValueError(f"data folder {folder} holds no images of cats and dogs; {expected}")
    _check_one_data_set(folder, found, roots)
    parts = {part: tuple(p for p in found if p.part == part) for part in ("training", "validation", "test")}
    parts["training"] += tuple(p for p in found if not p.part)
    if not parts["test"]:  # train/ + validation/: the held-out part serves as the test set
        parts["test"], parts["validation"] = parts["validation"], ()
    for part, files in parts.items():
        _check_classes(folder, part, files)
    notes = (f"left out {unlabelled} files of {folder} whose names tell neither cat nor dog",) if unlabelled else ()
    return Listing(folder, parts["training"], parts["validation"], parts["test"], notes)


def find_folder(source: str) -> Path:
    """Return the folder of `source`, downloading "kaggle" if necessary. Raises ValueError if that fails."""
    if source != "kaggle":
        return Path(source)
    try:
        import kagglehub  # noqa: PLC0415 - only this source needs it, and the network
    except ImportError as error:
        raise ValueError("--data kaggle needs kagglehub; install it, or give a folder") from error
    try:
        return Path(kagglehub.dataset_download("tongpython/cat-and-dog"))
    except Exception as error:  # anything that its HTTP client raises: no network, no access, no space
        raise ValueError(
            f"--data kaggle could not fetch tongpython/cat-and-dog ({error}); download it by hand and give its folder"
        ) from error


def _files(folder: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the visible files below `folder` in a fixed order, each with the names of the folders between."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        above = Path(root).relative_to(folder).parts
        yield from ((above, f"{root}{os.sep}{name}") for name in sorted(names) if not name.startswith("."))


def _label(above: tuple[str, ...], path: str) -> LabelledFile | None:
    lowered = [name.lower() for name in above]
    labels = {LABELS[name] for name in lowered if name in LABELS}
    if len(labels) > 1:
        raise ValueError(f"{path} is below both a cat and a dog folder; move it to one of them")
    if not labels and (named := NAMED.match(path.rpartition(os.sep)[2].lower())):
        labels = {LABELS[named[1]]}
    part = next((PARTS[name] for name in lowered if name in PARTS), "")
    return LabelledFile(path, labels.pop(), part) if labels else None


def _check_one_data_set(folder: Path, found: list[LabelledFile], roots: Counter[Path]) -> None:
    """Refuse a folder that seems to hold two data sets."""
    if len(roots) > 1:
        first, second = (folder / name for name, _ in roots.most_common(2))
        raise ValueError(f"{folder} is ambiguous: it has images in {first} and {second}; give one of them to --data")
    if {"", "training"} <= {p.part for p in found}:
        raise ValueError(f"{folder} is ambiguous: some images are in a train folder, some are not; move them together")


@cache
def _data_set(above: tuple[str, ...]) -> Path:
    """Return the root of a data set: the leading folders of `above` that name neither a part nor a class."""
    return Path(*takewhile(lambda name: name.lower() not in PARTS and name.lower() not in LABELS, above))


def _check_classes(folder: Path, part: str, files: tuple[LabelledFile, ...]) -> None:
    missing = [name for label, name in enumerate(CLASSES) if all(p.label != label for p in files)]
    if part == "training" and len(missing) == len(CLASSES):
        raise ValueError(f"{folder} has no training images; put them into {folder / 'train'}")
    if files and missing:
        name = missing[0]
        raise ValueError(f"the {part} images of {folder} show no {name}; add a folder {name}s beside the other class")
