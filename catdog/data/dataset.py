"""Load the training, validation and held-out test images of a source: drawn, Kaggle's or a folder.

A list of the images, kept in a file, tells later what has changed.
"""

import csv
import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from catdog.data.cache import FORMAT, NAMES_SHOWN, DecodedImages, load_drawings, load_images
from catdog.data.files import shorten, write_file
from catdog.data.sources import CLASSES, Listing, list_images
from catdog.data.split import assign_sides, count_least, find_contradictions
from catdog.device import gpu_memory
from shell.command_line import printable
from shell.redact import redact

MAX_GPU_SHARE = 0.5  # of a GPU's free memory that images may take; the rest is for training
FILES_SHOWN = 3  # of each change
NUM_DRAWN = {"training": 1200, "test": 1000}  # images of the synthetic set


Entry = tuple[str, str, str, str]  # class, first digits of the content's hash, side, path within the folder


@dataclass(frozen=True)
class ImageSubset:
    """Some rows of a shared array of decoded images."""

    images: Tensor  # (N, S, S, 3) uint8
    labels: Tensor  # (N,) int64, index into Data.classes
    rows: Tensor  # (n,) int64, the selected rows of the N

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def y(self) -> Tensor:
        """The labels of these rows, (n,) int64."""
        return self.labels[self.rows]

    def to(self, device: str) -> "ImageSubset":
        """Copy these rows to a GPU that has room for them. Otherwise return the shared array as it is."""
        num_bytes = len(self) * self.images[0].numel()
        if torch.device(device).type == "cpu" or num_bytes > MAX_GPU_SHARE * gpu_memory(device)[0]:
            return self
        rows = torch.arange(len(self), device=device)
        return ImageSubset(self.images[self.rows].to(device), self.y.to(device), rows)


@dataclass(frozen=True)
class Data:
    """The images for training and model selection. The test images are loaded by `load_test`."""

    training: ImageSubset
    validation: ImageSubset
    classes: tuple[str, ...]
    fingerprint: str  # of the contents and labels of these images, independent of their names and size
    notes: tuple[str, ...]  # files that were left out, and why, a sentence each
    num_test: tuple[int, ...]  # held-out test images of each class; of a folder's own test part before it is decoded

    def count_images(self) -> dict[str, tuple[int, ...]]:
        """Return the number of images of each class, by what they are for."""
        of_parts = {"train": self.training.y, "validate": self.validation.y}
        return {part: _per_class(y.numpy()) for part, y in of_parts.items()} | {"test": self.num_test}


@dataclass(frozen=True)
class HeldOutTest:
    """The held-out test images, used at promotion alone."""

    subset: ImageSubset
    fingerprint: str  # of their contents and labels
    num_left_out: int  # because their content is also among the training or validation images
    notes: tuple[str, ...]


def load_data(source: str, image_size: int) -> Data:
    """Load the training and validation images of `source`: "synthetic", "kaggle" or a folder.

    The first call decodes, with a progress bar; later calls map the result. Validation images are the folder's own, or
    a stratified share chosen by content hash, so equal files share a side. Raises ValueError for an unusable folder.
    """
    listing = _list_files(source)
    decoded, sides = _load_sides(source, image_size, listing)
    training, validation = (np.flatnonzero(sides == side) for side in ("training", "validation"))
    fingerprint = _fingerprint(source, decoded, np.concatenate((training, validation)))
    num_test = _count_test(decoded, sides, listing)
    return Data(_select(decoded, training), _select(decoded, validation), CLASSES, fingerprint, decoded.notes, num_test)


def load_test(source: str, image_size: int) -> HeldOutTest:
    """Load the held-out test images of `source`."""
    listing = _list_files(source)
    decoded, sides = _load_sides(source, image_size, listing)
    if "test" in sides:
        rows = np.flatnonzero(sides == "test")
        return HeldOutTest(_select(decoded, rows), _fingerprint(source, decoded, rows), 0, ())
    test = _load_decoded("test", image_size, listing)
    known = test.readable & np.isin(test.hashes, decoded.hashes)
    notes = test.notes
    if known.any():
        num_training = len(listing.training) if listing else len(decoded.hashes)
        parts = {"training": decoded.hashes[:num_training], "validation": decoded.hashes[num_training:]}
        where = " and ".join(part for part, hashes in parts.items() if np.isin(test.hashes[known], hashes).any())
        notes += (f"left out {known.sum()} of the test images: their content is also among the {where} images",)
    rows = np.flatnonzero(test.readable & ~known)
    if len(np.unique(test.labels[rows])) < len(CLASSES):
        none = f"{printable(source)} has no readable test images of each class that are in no other part; add some"
        raise ValueError("; ".join((none, *notes)))
    return HeldOutTest(_select(test, rows), _fingerprint(source, test, rows), int(known.sum()), notes)


def load_data_and_count_test(source: str, image_size: int) -> Data:
    """Load like `load_data`, and count the test images without unreadable ones and copies of training images.

    It decodes the test images, and looks at their hashes alone. Raises ValueError, too, if a class has none left.
    """
    data = load_data(source, image_size)
    if source == "synthetic":
        return data
    test = load_test(source, image_size)
    notes = tuple(dict.fromkeys((*data.notes, *test.notes)))
    return replace(data, num_test=_per_class(test.subset.y.numpy()), notes=notes)


def note_images(path: Path, source: str, image_size: int, fingerprint: str) -> None:
    """Keep a list of the images of `source` in the file `path`, unless a whole one is there, without test folders."""
    if _read_list(path)[0] == fingerprint:
        return
    text = StringIO()
    csv.writer(text).writerows([(fingerprint,), *_list_entries(source, image_size)])
    write_file(path, gzip.compress(text.getvalue().encode(errors="surrogateescape"), mtime=0))


def describe_change(path: Path, source: str, image_size: int) -> str:
    """Describe how the images of `source` differ from those of a list that `note_images` kept."""
    shown = printable(source)
    before = _read_list(path)[1]
    if not before:
        return f"other images than those of {shown}"
    now = _list_entries(source, image_size)
    new, missing = _find_surplus(now, before), _find_surplus(before, now)
    if len(new) == len(now):
        return f"{len(before)} images, and none of the {len(now)} of {shown} is among them"
    if not new and not missing:
        used = (sum(side != "test" for _, _, side, _ in entries) for entries in (before, now))
        return "{} of the same images for training and validation, {} of {} are for these now".format(*used, shown)
    changed = {entry[3] for entry in new} & {entry[3] for entry in missing}
    kinds = {
        "new": [entry for entry in new if entry[3] not in changed],
        "missing": [entry for entry in missing if entry[3] not in changed],
        "changed": [entry for entry in new if entry[3] in changed],
    }
    changes = ", ".join(text for kind, entries in kinds.items() for text in _describe_entries(kind, entries))
    return f"{len(before)} images, {shown} has {len(now)} now: {changes}"


def locate(source: str) -> str:
    """Resolve "kaggle" to the folder of the data set, downloading it if necessary. Return other sources unchanged."""
    return str(_find_folder(source)) if source == "kaggle" else source


def _count_test(decoded: DecodedImages, sides: np.ndarray, listing: Listing | None) -> tuple[int, ...]:
    """Return the number of held-out images of each class, without decoding them."""
    if listing and listing.test:
        return _per_class(np.array([file.label for file in listing.test]))
    drawn = np.arange(0 if listing else NUM_DRAWN["test"]) % len(CLASSES)  # as many of each
    return _per_class(np.concatenate((drawn, decoded.labels[sides == "test"])))


def _per_class(labels: np.ndarray) -> tuple[int, ...]:
    return tuple(np.bincount(labels, minlength=len(CLASSES)).tolist())


def _read_list(path: Path) -> tuple[str, list[Entry]]:
    """Return the fingerprint and the entries of a list; none if it is damaged or, of an earlier version, not there."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
            (fingerprint,), *rows = csv.reader(file)
        return fingerprint, [(label, digest, side, name) for label, digest, side, name in rows]
    except (OSError, EOFError, ValueError, csv.Error, zlib.error):
        return "", []


def _list_entries(source: str, image_size: int) -> list[Entry]:
    """List the images of `source`, those of a test folder excepted."""
    listing = _list_files(source)
    decoded, sides = _load_sides(source, image_size, listing)
    files = (*listing.training, *listing.validation) if listing else ()
    paths = [file.path[len(str(listing.folder)) + 1 :] for file in files] if listing else [""] * len(sides)
    rows = zip(decoded.labels, decoded.hashes, sides, paths, strict=True)
    return [(CLASSES[label], digest[:16].decode(), str(side), path) for label, digest, side, path in rows if side]


def _find_surplus(entries: Sequence[Entry], others: Sequence[Entry]) -> list[Entry]:
    """Return the entries whose class and content `others` lacks; of equal ones those whose path it lacks, too."""
    left, paths = Counter(entry[:2] for entry in others), {entry[3] for entry in others}
    surplus = []
    for entry in sorted(entries, key=lambda entry: entry[3] not in paths):
        if left[entry[:2]]:
            left[entry[:2]] -= 1
        else:
            surplus.append(entry)
    return surplus


def _describe_entries(kind: str, entries: Sequence[Entry]) -> Iterator[str]:
    for name in CLASSES:
        if paths := [path for label, _, _, path in entries if label == name]:
            yield f"{len(paths)} {kind} in {name}s ({shorten(paths, FILES_SHOWN)})"


def _find_folder(source: str) -> Path:
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
        fault = f"--data kaggle could not fetch tongpython/cat-and-dog ({redact(error)})"
        raise ValueError(f"{fault}; download it by hand and give its folder") from error


def _list_files(source: str) -> Listing | None:
    """List the files of a folder. Drawn images have none."""
    return None if source == "synthetic" else list_images(_find_folder(source))


def _load_decoded(part: str, size: int, listing: Listing | None) -> DecodedImages:
    if listing:
        return load_images(part, listing, size)
    return load_drawings(part, NUM_DRAWN[part], size, seed=list(NUM_DRAWN).index(part))


def _load_sides(source: str, image_size: int, listing: Listing | None) -> tuple[DecodedImages, np.ndarray]:
    """Load all but a folder's own test images, with the side of each: training, validation, test, or ""."""
    decoded = _load_decoded("training", image_size, listing)
    labels, hashes = decoded.labels, decoded.hashes
    contradictory = find_contradictions(labels, hashes, decoded.readable)
    files = (*listing.training, *listing.validation) if listing else ()
    if contradictory.any():  # never among drawn images
        paths = shorten((files[row].path for row in np.flatnonzero(contradictory)), NAMES_SHOWN)
        note = f"left out {contradictory.sum()} files that are a cat in one place and a dog in another: {paths}"
        decoded = replace(decoded, notes=(*decoded.notes, note))
    in_validation = np.array([file.part == "validation" for file in files] or [False] * len(labels))
    usable, has_test = decoded.readable & ~contradictory, listing is None or bool(listing.test)
    sides = assign_sides(labels, hashes, usable, in_validation, has_test=has_test)
    for side in ("training", "validation"):
        if len(np.unique(labels[sides == side])) < len(CLASSES):
            too_few = _describe_too_few(labels[usable], hashes[usable], in_validation, has_test=has_test)
            raise ValueError("; ".join((f"{printable(source)} has {too_few}", *decoded.notes)))
    return decoded, sides


def _describe_too_few(labels: np.ndarray, hashes: np.ndarray, in_validation: np.ndarray, *, has_test: bool) -> str:
    if in_validation.any():
        return "too few readable images for training and validation; add more of each class to both folders"
    numbers = [(len(np.unique(hashes[labels == label])), name) for label, name in enumerate(CLASSES)]
    has = " and ".join(f"{number} {name}" + "s" * (number != 1) for number, name in numbers)
    return f"too few images: {has} that differ and can be read; give at least {count_least(has_test=has_test)} of each"


def _select(decoded: DecodedImages, rows: np.ndarray) -> ImageSubset:
    return ImageSubset(decoded.images, torch.from_numpy(decoded.labels.astype(np.int64)), torch.from_numpy(rows))


def _fingerprint(source: str, decoded: DecodedImages, rows: np.ndarray) -> str:
    """Hash the contents and labels of some images, independent of their order and size."""
    if source == "synthetic":  # drawn again for each size, and always the same
        return hashlib.sha256(f"drawn {FORMAT} {NUM_DRAWN}".encode()).hexdigest()[:16]
    order = rows[np.lexsort((decoded.labels[rows], decoded.hashes[rows]))]
    whole = hashlib.sha256()
    for index, row in enumerate(order):
        whole.update(b"%s%s %d" % (b"\n" if index else b"", decoded.hashes[row], decoded.labels[row]))
    return whole.hexdigest()[:16]
