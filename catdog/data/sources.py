"""A folder of photographs -> labelled files, whichever of the usual layouts it has; one file -> one picture.

Understood are, at any depth: Kaggle's `training_set/training_set/cats/`, `train/` with `test/` or `validation/`,
`PetImages/Cat/`, and flat `cat.0.jpg`. Files are opened by content; their extension means nothing.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import takewhile
from pathlib import Path

from PIL import Image, ImageOps

__all__ = ["CLASSES", "FORMATS", "Listing", "Photograph", "list_photographs", "read_picture", "read_preview"]

CLASSES = ("cat", "dog")

# whose heads are cheap to read
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
NAMED = re.compile(r"(cat|dog)s?[._ -]*\(?\d")  # files that say what they show
LABELS = {"cat": 0, "cats": 0, "dog": 1, "dogs": 1}
PARTS = {
    **dict.fromkeys(("train", "training", "train_set", "training_set"), "training"),
    **dict.fromkeys(("val", "valid", "validation", "validation_set", "val_set"), "validation"),
    **dict.fromkeys(("test", "testing", "test_set", "testing_set"), "test"),
}


@dataclass(frozen=True, slots=True)  # there may be a million of them
class Photograph:
    """One labelled file."""

    path: str
    label: int  # index into CLASSES
    part: str  # training, validation, test, or "" where no folder says


@dataclass(frozen=True)
class Listing:
    """The labelled files of a folder."""

    folder: Path
    training: tuple[Photograph, ...]
    validation: tuple[Photograph, ...]  # empty: to be split off the training pictures
    test: tuple[Photograph, ...]  # empty: to be split off the training pictures
    notes: tuple[str, ...]  # what was left out, a sentence each


def list_photographs(folder: Path) -> Listing:
    """Find and label every file below `folder`.

    Raises ValueError, in one sentence, for a folder that is missing, has no pictures, lacks one of the classes, or
    can be read in more than one way.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"data folder {folder} {what}; give --data synthetic, kaggle or a folder")
    found, unlabelled = [], 0
    roots: Counter[Path] = Counter()
    for above, path in _files(folder):
        photograph = _label(above, path)
        if photograph:
            found.append(photograph)
            roots[_data_set(above)] += 1
        else:
            unlabelled += 1
    if not found:
        raise ValueError(
            f"data folder {folder} holds no pictures of cats and dogs; expected folders named cats and dogs, or "
            "files named like cat.0.jpg"
        )
    _refuse_mixture(folder, found, roots)
    parts = {part: tuple(p for p in found if p.part == part) for part in ("training", "validation", "test")}
    parts["training"] += tuple(p for p in found if not p.part)
    if not parts["test"]:  # train/ + validation/: what was held out serves as the sealed test
        parts["test"], parts["validation"] = parts["validation"], ()
    for part, photographs in parts.items():
        _refuse_one_class(folder, part, photographs)
    notes = (f"left out {unlabelled} files of {folder} that no name calls cat or dog",) if unlabelled else ()
    return Listing(folder, parts["training"], parts["validation"], parts["test"], notes)


def read_picture(content: bytes, size: int) -> Image.Image:
    """Decode a picture of any format and mode, upright, as RGB of (size, size) pixels.

    The whole picture is kept: it is stretched to a square. Raises OSError, ValueError or an Image.DecompressionBomb
    error for what is no picture.
    """
    return _open_upright(content, size).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)


def read_preview(content: bytes, size: int) -> Image.Image:
    """Decode a picture for people: upright RGB in its own proportions, at most `size` pixels wide and high."""
    picture = _open_upright(content, size)
    picture.thumbnail((size, size))
    return picture


def _open_upright(content: bytes, size: int) -> Image.Image:
    with Image.open(BytesIO(content), formats=FORMATS) as image:
        image.draft("RGB", (size, size))  # JPEG alone: decode at 1/2, 1/4 or 1/8 of the size
        return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: convert("RGB") would clip, not scale
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _files(folder: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the visible files below `folder` in a fixed order, each with the names of the folders between."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        above = Path(root).relative_to(folder).parts
        yield from ((above, f"{root}{os.sep}{name}") for name in sorted(names) if not name.startswith("."))


def _label(above: tuple[str, ...], path: str) -> Photograph | None:
    lowered = [name.lower() for name in above]
    labels = {LABELS[name] for name in lowered if name in LABELS}
    if len(labels) > 1:
        raise ValueError(f"{path} lies below both a cat and a dog folder; move it to one of them")
    if not labels and (named := NAMED.match(path.rpartition(os.sep)[2].lower())):
        labels = {LABELS[named[1]]}
    part = next((PARTS[name] for name in lowered if name in PARTS), "")
    return Photograph(path, labels.pop(), part) if labels else None


def _refuse_mixture(folder: Path, found: list[Photograph], roots: Counter[Path]) -> None:
    """Refuse a folder that seems to hold two data sets, where either could be meant."""
    if len(roots) > 1:
        first, second = (folder / name for name, _ in roots.most_common(2))
        raise ValueError(f"{folder} is ambiguous: it has pictures in {first} and {second}; give one of them to --data")
    if {"", "training"} <= {p.part for p in found}:
        raise ValueError(
            f"{folder} is ambiguous: some pictures stand in a train folder and some beside it; move them together"
        )


@cache
def _data_set(above: tuple[str, ...]) -> Path:
    """Return the folder in which the parts or classes of the data set stand to which the folders `above` belong."""
    return Path(*takewhile(lambda name: name.lower() not in PARTS and name.lower() not in LABELS, above))


def _refuse_one_class(folder: Path, part: str, photographs: tuple[Photograph, ...]) -> None:
    missing = [name for label, name in enumerate(CLASSES) if all(p.label != label for p in photographs)]
    if part == "training" and len(missing) == len(CLASSES):
        raise ValueError(f"{folder} has no training pictures; put them into {folder / 'train'}")
    if photographs and missing:
        raise ValueError(
            f"the {part} pictures of {folder} show no {missing[0]}; add a folder {missing[0]}s beside the other class"
        )
