"""Decode or draw images once, and keep them as arrays on disk that every training process maps into memory.

The cache is $CATDOG_CACHE (default ~/.cache/catdog), with a folder per data set and size. Remove it at any time; it
is built again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from errno import EACCES, ELOOP, ENOENT
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from catdog.data.decode import read_image
from catdog.data.sources import LabelledFile, Listing
from catdog.data.synthetic import synthetic

FORMAT = 3  # of the cache; raise it when decoding or drawing changes
NAMES_SHOWN = 10
CHUNK = 1000  # files in the queue of the threads; each takes 2 KB

T = TypeVar("T")


@dataclass(frozen=True)
class DecodedImages:
    """One cached array of images."""

    images: Tensor  # (N, S, S, 3) uint8, mapped from the file
    labels: np.ndarray  # (N,) uint8
    hashes: np.ndarray  # (N,) content hashes, 64 hexadecimal digits as bytes
    readable: np.ndarray  # (N,) bool
    notes: tuple[str, ...]


def cache_folder() -> Path:
    return Path(os.environ.get("CATDOG_CACHE") or Path.home() / ".cache" / "catdog")


def load_drawings(part: str, count: int, size: int, seed: int) -> DecodedImages:
    """Return `count` drawn images of `size` pixels, drawing them if they are not cached."""
    return _load_or_build(part, size, [[count, part]], partial(_draw, part=part, count=count, size=size, seed=seed))


def load_images(part: str, listing: Listing, size: int) -> DecodedImages:
    """Return the images of a part of a folder, decoding them if not cached. "training" includes validation images."""
    files = listing.test if part == "test" else (*listing.training, *listing.validation)
    stamps = [_stamp(listing.folder, file) for file in files]
    return _load_or_build(part, size, stamps, partial(_decode, files=files, size=size, notes=list(listing.notes)))


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Let one process build `folder` while others wait. The folder appears whole or not at all."""
    if folder.exists():
        return folder
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        problem = f"cannot cache decoded images in {folder.parent} ({error.strerror})"
        raise ValueError(f"{problem}; set CATDOG_CACHE to a writable folder") from error
    half_built = folder.with_name(f"{folder.name}.partial")
    try:
        if not folder.exists():
            shutil.rmtree(half_built, ignore_errors=True)  # left by a killed process
            half_built.mkdir()
            build(half_built)
            half_built.rename(folder)
    finally:
        shutil.rmtree(half_built, ignore_errors=True)
        lock.release()
    return folder


def _load_or_build(part: str, size: int, stamps: Iterable[list[Any]], build: Callable[[Path], None]) -> DecodedImages:
    identity = hashlib.sha256(json.dumps([FORMAT, size]).encode())
    for stamp in stamps:
        identity.update(json.dumps(stamp).encode())
    folder = build_once(cache_folder() / f"{part}-{size}px-{identity.hexdigest()[:24]}", build)
    notes = json.loads((folder / "about.json").read_text(encoding="utf-8"))["notes"]
    images = np.load(folder / "images.npy", mmap_mode="c")  # copy-on-write: torch needs a writable array
    columns = np.load(folder / "columns.npz")  # named as the fields are
    return DecodedImages(torch.from_numpy(images), **columns, notes=tuple(notes))


def _stamp(folder: Path, file: LabelledFile) -> list[Any]:
    """Return values that change when the file changes."""
    name = [file.path[len(str(folder)) + 1 :], file.label, file.part]
    try:
        stat = Path(file.path).stat()
    except OSError:  # a dangling link, for example; decoding reports it
        return name
    return [*name, stat.st_size, stat.st_mtime_ns]


def _draw(folder: Path, part: str, count: int, size: int, seed: int) -> None:
    images, labels = synthetic(count, size, seed, progress=partial(_progress, "drawing", count))
    np.save(folder / "images.npy", images)
    hashes = [hashlib.sha256(f"{part} {index}".encode()).hexdigest() for index in range(count)]  # equal at any size
    _save_columns(folder, labels, np.array(hashes, dtype="S64"), [])


def _decode(folder: Path, files: Sequence[LabelledFile], size: int, notes: list[str]) -> None:
    path, shape = folder / "images.npy", (len(files), size, size, 3)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # on a full disk, writing to the map of a sparse file would kill the process
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the interpreter's lock
        chunks = (slice(start, start + CHUNK) for start in range(0, len(files), CHUNK))
        decoded = (digest for chunk in chunks for digest in pool.map(_decode_into, images[chunk], files[chunk]))
        hashes = np.fromiter(_progress("decoding", len(files), decoded), dtype="S64", count=len(files))
    images.flush()
    broken = [file.path for file, digest in zip(files, hashes, strict=True) if not digest]
    if len(broken) == len(files):
        raise ValueError(f"none of the {len(broken)} files could be read as an image, for example {broken[0]}")
    if broken:
        names = ", ".join(broken[:NAMES_SHOWN])
        more = f" and {len(broken) - NAMES_SHOWN} more" if len(broken) > NAMES_SHOWN else ""
        notes = [*notes, f"left out {len(broken)} of {len(files)} files that are not images: {names}{more}"]
    _save_columns(folder, [file.label for file in files], hashes, notes)


def _decode_into(out: np.ndarray, file: LabelledFile) -> bytes:
    """Decode a file into (S, S, 3) `out`. Return the hash of its content, or b"" if it cannot be read."""
    try:
        content = Path(file.path).read_bytes()
    except OSError as error:
        if error.errno not in (ENOENT, EACCES, ELOOP):
            raise  # a disk error may be temporary, so the image must not be left out
        return b""
    try:
        out[:] = np.asarray(read_image(content, len(out)))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow's decoders raise anything on a broken file
        return b""
    return hashlib.sha256(content).hexdigest().encode()


def _save_columns(folder: Path, labels: Sequence[int] | np.ndarray, hashes: np.ndarray, notes: list[str]) -> None:
    readable = hashes != b""
    np.savez(folder / "columns.npz", labels=np.asarray(labels, dtype=np.uint8), hashes=hashes, readable=readable)
    (folder / "about.json").write_text(json.dumps({"notes": notes}), encoding="utf-8")


def _progress(verb: str, total: int, items: Iterable[T]) -> Iterable[T]:
    """Show a progress bar on the terminal if rich is installed."""
    try:
        from rich.console import Console  # noqa: PLC0415 - optional here
        from rich.progress import track  # noqa: PLC0415
    except ImportError:
        return items
    console, text = Console(stderr=True), f"{verb} {total} images"
    return track(items, text, total, console=console, transient=True, disable=not console.is_terminal)
