"""Drawn or real pictures -> decoded once, kept as bytes, split by content, batched on the device.

Decoded pictures are kept in $CATDOG_CACHE (default ~/.cache/catdog), one folder per data set and size, and mapped
into memory by every process that trains. Remove the folder at any time; it is made again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from errno import EACCES, ELOOP, ENOENT
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from catdog.data.sources import CLASSES, Listing, Photograph, list_photographs, read_picture
from catdog.data.synthetic import synthetic
from catdog.device import gpu_memory

__all__ = [
    "MEAN",
    "STD",
    "Data",
    "HeldOutTest",
    "Pictures",
    "describe_source",
    "load_data",
    "load_test",
    "locate",
    "preprocessing",
]

MEAN = (0.5, 0.5, 0.5)  # of pixels in 0 to 1; the first BatchNorm takes care of the rest
STD = (0.25, 0.25, 0.25)

TEST_SHARE = 0.2  # of the pictures, where the folder has no test part
VALIDATION_SHARE = 0.15  # of the training pictures
ROOM_ON_GPU = 0.5  # of its free memory that pictures may take; the rest is for training
NUM_DRAWN = {"training": 1200, "test": 1000}  # pictures of the synthetic set
FORMAT = 2  # of the cache; raise it when decoding or drawing changes
NAMES_SHOWN = 10
AT_ONCE = 1000  # files that wait for a thread; each takes 2 KB meanwhile

T = TypeVar("T")


@dataclass(frozen=True)
class Pictures:
    """Some rows of a shared array of decoded pictures."""

    images: Tensor  # (N, S, S, 3) uint8
    labels: Tensor  # (N,) int64, index into Data.classes
    rows: Tensor  # (n,) int64, which of the N are meant

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def y(self) -> Tensor:
        """The labels of these rows, (n,) int64."""
        return self.labels[self.rows]

    def to(self, device: str) -> "Pictures":
        """Copy these rows to a GPU that has room for them; else the shared array is used where it lies."""
        num_bytes = len(self) * self.images[0].numel()
        if torch.device(device).type == "cpu" or num_bytes > ROOM_ON_GPU * gpu_memory(device)[0]:
            return self
        rows = torch.arange(len(self), device=device)
        return Pictures(self.images[self.rows].to(device), self.labels[self.rows].to(device), rows)


@dataclass(frozen=True)
class Data:
    """What a network is trained and chosen on. The test pictures are not here: see `load_test`."""

    training: Pictures
    validation: Pictures
    classes: tuple[str, ...]
    fingerprint: str  # of the contents and labels of all pictures but the test's, whatever their names and size
    notes: tuple[str, ...]  # what a person should know: files left out and why, a sentence each


@dataclass(frozen=True)
class HeldOutTest:
    """The sealed test pictures: nothing is trained on them, and nothing chosen but at promotion."""

    pictures: Pictures
    fingerprint: str  # of their contents and labels
    num_left_out: int  # because their content also stands in the training pictures
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Decoded:
    """One cached array of pictures."""

    images: Tensor  # (N, S, S, 3) uint8, mapped from the file
    labels: np.ndarray  # (N,) uint8
    hashes: np.ndarray  # (N,) content hashes, hexadecimal, of one byte a digit
    readable: np.ndarray  # (N,) bool
    notes: tuple[str, ...]


def load_data(source: str, image_size: int) -> Data:
    """Load the training and validation pictures of `source`: "synthetic", "kaggle" or a folder.

    The first call decodes (with a progress bar); later ones map the result. Validation is the folder's own, or a
    stratified share split off by content hash, so that equal files never stand on both sides. Raises ValueError, in
    one sentence, for a folder that cannot be used.
    """
    decoded, sides = _training_side(source, image_size, _listing(source))
    training, validation = (np.flatnonzero(sides == side) for side in ("training", "validation"))
    used = np.concatenate((training, validation))
    fingerprint = _fingerprint(source, decoded, used)
    return Data(_rows(decoded, training), _rows(decoded, validation), CLASSES, fingerprint, decoded.notes)


def load_test(source: str, image_size: int) -> HeldOutTest:
    """Load the sealed test pictures of `source`. Meant for promotion alone."""
    listing = _listing(source)
    decoded, sides = _training_side(source, image_size, listing)
    if "test" in sides:
        rows = np.flatnonzero(sides == "test")
        return HeldOutTest(_rows(decoded, rows), _fingerprint(source, decoded, rows), 0, ())
    test = _decode(image_size, "test", listing)
    known = test.readable & np.isin(test.hashes, decoded.hashes)
    notes = test.notes
    if known.any():
        notes += (f"left out {known.sum()} of the test pictures: their content also stands in the training pictures",)
    rows = np.flatnonzero(test.readable & ~known)
    if len(np.unique(test.labels[rows])) < len(CLASSES):
        raise ValueError(f"{source} has no readable test pictures of each class that training has not seen; add some")
    return HeldOutTest(_rows(test, rows), _fingerprint(source, test, rows), int(known.sum()), notes)


def locate(source: str) -> str:
    """Turn "kaggle" into the folder of the data set, fetched where it is not there; others stay as they are."""
    return str(_folder(source)) if source == "kaggle" else source


def describe_source(source: str) -> str:
    """Say in a few words what `source` holds, without decoding it. Raises ValueError like `load_data`."""
    if source == "kaggle":
        return "kaggle (tongpython/cat-and-dog)"
    if source == "synthetic":
        return f"synthetic ({NUM_DRAWN['training']} drawn pictures to train, {NUM_DRAWN['test']} to test)"
    listing = list_photographs(_folder(source))
    num_training = len(listing.training) + len(listing.validation)
    test = f"{len(listing.test)} to test" if listing.test else f"{TEST_SHARE:.0%} of them split off to test"
    return f"{source} ({num_training} pictures to train, {test})"


def preprocessing(image_size: int) -> dict[str, Any]:
    """Describe, for a model's header, how a picture becomes the network's input."""
    return {"image_size": image_size, "resize": "stretch", "color": "RGB", "mean": [*MEAN], "std": [*STD]}


def cache_folder() -> Path:
    return Path(os.environ.get("CATDOG_CACHE") or Path.home() / ".cache" / "catdog")


def _listing(source: str) -> Listing | None:
    """List the files of a folder; None for pictures that are drawn."""
    return None if source == "synthetic" else list_photographs(_folder(source))


def _training_side(source: str, image_size: int, listing: Listing | None) -> tuple[_Decoded, np.ndarray]:
    """Decode all but a folder's own test pictures; say of each row on which side it stands ("" for none)."""
    decoded = _decode(image_size, "training", listing)
    sides = np.where(decoded.readable, "training", "").astype("<U10")  # room for "validation"
    contradictory = _contradictory(decoded)
    sides[contradictory] = ""
    if listing is None:
        given, has_test = np.zeros(len(sides), dtype=bool), True
    else:
        if contradictory.any():
            named = np.flatnonzero(contradictory)[:NAMES_SHOWN]
            paths = ", ".join((*listing.training, *listing.validation)[row].path for row in named)
            note = f"left out {contradictory.sum()} files that are a cat in one place and a dog in another: {paths}"
            decoded = replace(decoded, notes=(*decoded.notes, note))
        given = np.array([p.part == "validation" for p in (*listing.training, *listing.validation)])
        has_test = bool(listing.test)
    if not has_test:
        sides[_split_off(decoded, sides == "training", TEST_SHARE, "test")] = "test"
    if given.any():
        sides[(sides == "training") & np.isin(decoded.hashes, decoded.hashes[given])] = "validation"
    else:
        sides[_split_off(decoded, sides == "training", VALIDATION_SHARE, "validation")] = "validation"
    for side in ("training", "validation"):
        if len(np.unique(decoded.labels[sides == side])) < len(CLASSES):
            raise ValueError(f"{source} has too few readable pictures to hold out some of each class; add more")
    return decoded, sides


def _fingerprint(source: str, decoded: _Decoded, rows: np.ndarray) -> str:
    """Name the contents and labels of some pictures, in whatever order and at whatever size."""
    if source == "synthetic":  # drawn anew for each size, and always the same
        return hashlib.sha256(f"drawn {FORMAT} {NUM_DRAWN}".encode()).hexdigest()[:16]
    order = rows[np.lexsort((decoded.labels[rows], decoded.hashes[rows]))]
    whole = hashlib.sha256()
    for index, row in enumerate(order):
        whole.update(b"%s%s %d" % (b"\n" if index else b"", decoded.hashes[row], decoded.labels[row]))
    return whole.hexdigest()[:16]


def _contradictory(decoded: _Decoded) -> np.ndarray:
    """Mark pictures whose very content is called a cat in one place and a dog in another."""
    contents, which = np.unique(decoded.hashes, return_inverse=True)
    called = np.zeros((len(CLASSES), len(contents)), dtype=bool)
    called[decoded.labels[decoded.readable], which[decoded.readable]] = True
    both: np.ndarray = called[0] & called[1]
    return both[which]


def _split_off(decoded: _Decoded, among: np.ndarray, share: float, salt: str) -> np.ndarray:
    """Mark `share` of the contents of each class: those whose salted hashes come first."""
    marked = np.zeros(len(among), dtype=bool)
    for label in range(len(CLASSES)):
        of_class = among & (decoded.labels == label)
        contents, which = np.unique(decoded.hashes[of_class], return_inverse=True)
        salted = (hashlib.sha256(salt.encode() + b" " + content).digest() for content in contents)
        rank = np.fromiter(salted, dtype="S32", count=len(contents)).argsort().argsort()
        marked[of_class] = rank[which] < round(share * len(contents))
    return marked


def _rows(decoded: _Decoded, rows: np.ndarray) -> Pictures:
    return Pictures(decoded.images, torch.from_numpy(decoded.labels.astype(np.int64)), torch.from_numpy(rows))


def _folder(source: str) -> Path:
    if source != "kaggle":
        return Path(source)
    try:
        import kagglehub  # noqa: PLC0415 - only this source needs it, and the network
    except ImportError as error:
        raise ValueError("--data kaggle needs kagglehub; install it, or give a folder") from error
    try:
        return Path(kagglehub.dataset_download("tongpython/cat-and-dog"))
    except Exception as error:  # whatever its HTTP client raises: no network, no access, no space
        raise ValueError(
            f"--data kaggle could not fetch tongpython/cat-and-dog ({error}); download it by hand and give its folder"
        ) from error


def _decode(size: int, part: str, listing: Listing | None) -> _Decoded:
    """Return the cached pictures of one part, decoding or drawing them where they are not there yet."""
    identity = hashlib.sha256(json.dumps([FORMAT, size]).encode())
    if listing is None:
        identity.update(json.dumps([NUM_DRAWN[part], part]).encode())
        build = partial(_draw, size=size, part=part)
    else:
        photographs = listing.test if part == "test" else (*listing.training, *listing.validation)
        for photograph in photographs:
            identity.update(json.dumps(_stamp(listing.folder, photograph)).encode())
        build = partial(_decode_files, photographs=photographs, size=size, notes=list(listing.notes))
    folder = _built_once(cache_folder() / f"{part}-{size}px-{identity.hexdigest()[:24]}", build)
    about = json.loads((folder / "about.json").read_text())
    images = np.load(folder / "images.npy", mmap_mode="c")  # copy-on-write: torch wants a writable array
    columns = np.load(folder / "columns.npz")
    hashes = columns["hashes"].astype("S64")
    return _Decoded(torch.from_numpy(images), columns["labels"], hashes, columns["readable"], tuple(about["notes"]))


def _stamp(folder: Path, photograph: Photograph) -> list[Any]:
    name = [photograph.path[len(str(folder)) + 1 :], photograph.label, photograph.part]
    try:
        stat = Path(photograph.path).stat()
    except OSError:  # a link to nowhere, say: decoding will name it
        return name
    return [*name, stat.st_size, stat.st_mtime_ns]


def _built_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Let one process build `folder`, others wait; it appears whole or not at all."""
    if folder.exists():
        return folder
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise ValueError(
            f"cannot keep decoded pictures in {folder.parent} ({error.strerror}); "
            "set CATDOG_CACHE to a folder that can be written"
        ) from error
    half_built = folder.with_name(f"{folder.name}.partial")
    try:
        if not folder.exists():
            shutil.rmtree(half_built, ignore_errors=True)  # what a killed process left
            half_built.mkdir()
            build(half_built)
            half_built.rename(folder)
    finally:
        shutil.rmtree(half_built, ignore_errors=True)
        lock.release()
    return folder


def _draw(folder: Path, size: int, part: str) -> None:
    seed = list(NUM_DRAWN).index(part)
    images, labels = synthetic(NUM_DRAWN[part], size, seed, progress=partial(_progress, "drawing", NUM_DRAWN[part]))
    np.save(folder / "images.npy", images)
    hashes = [hashlib.sha256(f"{part} {index}".encode()).hexdigest() for index in range(len(labels))]  # at any size
    _save_columns(folder, labels, hashes, [True] * len(labels), [])


def _decode_files(folder: Path, photographs: Sequence[Photograph], size: int, notes: list[str]) -> None:
    shape = (len(photographs), size, size, 3)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    _reserve(folder / "images.npy")
    hashes = np.zeros(len(photographs), dtype="S64")

    def decode(row: int) -> None:
        try:
            content = Path(photographs[row].path).read_bytes()
        except OSError as error:
            if error.errno not in (ENOENT, EACCES, ELOOP):
                raise  # the disk's fault, which may pass; a picture is not left out for it
            return
        try:
            images[row] = np.asarray(read_picture(content, size))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - Pillow's decoders raise anything on a broken file; it is left out and named
            return
        hashes[row] = hashlib.sha256(content).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the interpreter's lock
        rows = range(len(photographs))
        parts = (rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE))
        for _ in _progress("decoding", len(photographs), (done for part in parts for done in pool.map(decode, part))):
            pass
    readable = hashes != b""
    images.flush()
    broken = [p.path for p, good in zip(photographs, readable, strict=True) if not good]
    if len(broken) == len(photographs):
        raise ValueError(f"none of the {len(broken)} files could be read as a picture, {broken[0]} for one")
    if broken:
        names = ", ".join(broken[:NAMES_SHOWN])
        more = f" and {len(broken) - NAMES_SHOWN} more" if len(broken) > NAMES_SHOWN else ""
        notes.append(f"left out {len(broken)} of {len(photographs)} files that are no pictures: {names}{more}")
    _save_columns(folder, [p.label for p in photographs], hashes, readable, notes)


def _reserve(path: Path) -> None:
    """Take the disk space of a sparse file; writing to its memory map would end the process where there is none."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _save_columns(
    folder: Path,
    labels: Sequence[int] | np.ndarray,
    hashes: Sequence[str] | np.ndarray,
    readable: Sequence[bool] | np.ndarray,
    notes: list[str],
) -> None:
    np.savez(
        folder / "columns.npz",
        labels=np.asarray(labels, dtype=np.uint8),
        hashes=np.asarray(hashes, dtype="S64"),
        readable=np.asarray(readable, dtype=bool),
    )
    (folder / "about.json").write_text(json.dumps({"notes": notes}))


def _progress(what: str, total: int, items: Iterable[T]) -> Iterable[T]:
    """Show a bar on the terminal where rich is installed."""
    try:
        from rich.console import Console  # noqa: PLC0415 - optional here
        from rich.progress import track  # noqa: PLC0415
    except ImportError:
        return items
    console = Console(stderr=True)
    return track(
        items, f"{what} {total} pictures", total, console=console, transient=True, disable=not console.is_terminal
    )
