"""Decode or draw images once, and keep them as arrays on disk that every training process maps into memory.

The cache is $CATDOG_CACHE (default ~/.cache/catdog), with a folder per data set and size. Remove it at any time; it
is built again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from errno import EACCES, EISDIR, ELOOP, ENOENT, EPERM
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from catdog.data.decode import read_image
from catdog.data.files import shorten
from catdog.data.formats import UnreadableImageError, can_decode_heic, needs_pi_heif
from catdog.data.sources import LabelledFile, Listing
from catdog.data.synthetic import synthetic
from shell.command_line import printable

FORMAT, DECODING = 3, 5  # of the cache: raise one when drawing or decoding changes
NAMES_SHOWN = 10
UNREADABLE = (EACCES, EISDIR, ELOOP, ENOENT, EPERM)  # a file's own faults, not the disk's
CANNOT_BE_READ = "cannot be read"
CHUNK = 1000  # files in the queue of the threads; each takes 2 KB

T = TypeVar("T")


@dataclass(frozen=True)
class DecodedImages:
    """One cached array of images."""

    images: Tensor  # (N, S, S, 3) uint8, mapped from the file
    labels: np.ndarray  # (N,) uint8
    hashes: np.ndarray  # (N,) content hashes, 64 hexadecimal digits as bytes
    readable: np.ndarray  # (N,) bool
    left_out: Mapping[int, str]  # row of each unreadable image, and why: "are not images"
    notes: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Return the folder of the cache. Raises ValueError if neither CATDOG_CACHE nor a home folder names it."""
    try:
        return Path(os.environ.get("CATDOG_CACHE") or Path.home() / ".cache" / "catdog")
    except RuntimeError as error:
        raise ValueError("there is no home folder to cache images in; set CATDOG_CACHE to a writable folder") from error


def load_drawings(part: str, count: int, size: int, seed: int) -> DecodedImages:
    """Return `count` drawn images of `size` pixels, drawing them if they are not cached."""
    draw = partial(_draw, part=part, count=count, size=size, seed=seed)
    return _load_or_build(part, [[FORMAT, size], [count, part]], draw)


def load_images(part: str, listing: Listing, size: int) -> DecodedImages:
    """Return the images of a part of a folder, decoding them if not cached. "training" includes validation images."""
    files = listing.test if part == "test" else (*listing.training, *listing.validation)
    stamps = [[DECODING, size], *(_stamp(listing.folder, file) for file in files)]
    decode = partial(_decode, files=files, size=size)
    decoded = _load_or_build(part, stamps, decode)
    if cured := [row for row, reason in decoded.left_out.items() if _is_cured(files[row], reason)]:
        decoded = _load_or_build(part, [*stamps, cured], decode)
    return replace(decoded, notes=(*listing.notes, *_describe_left_out(files, decoded.left_out)))


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


def _load_or_build(part: str, stamps: Sequence[list[Any]], build: Callable[[Path], None]) -> DecodedImages:
    identity = hashlib.sha256()
    for stamp in stamps:
        identity.update(json.dumps(stamp).encode())
    folder = build_once(cache_folder() / f"{part}-{stamps[0][1]}px-{identity.hexdigest()[:24]}", build)
    left_out = json.loads((folder / "about.json").read_text(encoding="utf-8")).get("left_out", ())
    images = np.load(folder / "images.npy", mmap_mode="c")  # copy-on-write: torch needs a writable array
    columns = np.load(folder / "columns.npz")  # named as the fields are
    return DecodedImages(torch.from_numpy(images), **columns, left_out=dict(left_out))


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
    _save_columns(folder, labels, np.array(hashes, dtype="S64"), {})


def _decode(folder: Path, files: Sequence[LabelledFile], size: int) -> None:
    path, shape = folder / "images.npy", (len(files), size, size, 3)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # on a full disk, writing to the map of a sparse file would kill the process
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    hashes, left_out = np.zeros(len(files), dtype="S64"), {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the interpreter's lock
        chunks = (slice(start, start + CHUNK) for start in range(0, len(files), CHUNK))
        decoded = (one for chunk in chunks for one in pool.map(_decode_into, images[chunk], files[chunk]))
        for row, (digest, reason) in enumerate(_progress("decoding", len(files), decoded)):
            hashes[row] = digest
            if reason:
                left_out[row] = reason
    images.flush()
    if len(left_out) == len(files):
        first, *others = set(left_out.values())
        alike = f"they {first}: {shorten((file.path for file in files), 1)}"
        reasons = "; ".join(_describe_left_out(files, left_out)) if others else alike
        raise ValueError(f"none of the {len(files)} files could be read as an image: {reasons}")
    _save_columns(folder, [file.label for file in files], hashes, left_out)


def _decode_into(out: np.ndarray, file: LabelledFile) -> tuple[bytes, str]:
    """Decode a file into (S, S, 3) `out`. Return the hash of its content, or why it is left out: "are not images"."""
    try:
        content = Path(file.path).read_bytes()
    except OSError as error:
        if error.errno in UNREADABLE:
            return b"", f"{CANNOT_BE_READ} ({error.strerror})"
        # A disk error may be temporary, so the image must not be left out.
        raise OSError(f"{printable(file.path)} cannot be read ({error.strerror})") from error
    try:
        out[:] = np.asarray(read_image(content, len(out)))
    except UnreadableImageError as error:
        return b"", error.plural
    return hashlib.sha256(content).hexdigest().encode(), ""


def _is_cured(file: LabelledFile, reason: str) -> bool:
    """Return whether a file that was left out can be read by now, though it has not changed."""
    if reason.startswith(CANNOT_BE_READ):
        return os.access(file.path, os.R_OK)
    return reason == needs_pi_heif().plural and can_decode_heic()


def _describe_left_out(files: Sequence[LabelledFile], left_out: Mapping[int, str]) -> Iterator[str]:
    for reason in dict.fromkeys(left_out.values()):
        paths = [files[row].path for row, why in left_out.items() if why == reason]
        yield f"left out {len(paths)} of {len(files)} files that {reason}: {shorten(paths, NAMES_SHOWN)}"


def _save_columns(
    folder: Path, labels: Sequence[int] | np.ndarray, hashes: np.ndarray, left_out: Mapping[int, str]
) -> None:
    readable = hashes != b""
    np.savez(folder / "columns.npz", labels=np.asarray(labels, dtype=np.uint8), hashes=hashes, readable=readable)
    (folder / "about.json").write_text(json.dumps({"left_out": [*left_out.items()]}), encoding="utf-8")


def _progress(verb: str, total: int, items: Iterable[T]) -> Iterable[T]:
    """Show a progress bar on the terminal if rich is installed."""
    try:
        from rich.console import Console  # noqa: PLC0415 - optional here
        from rich.progress import track  # noqa: PLC0415
    except ImportError:
        return items
    console, text = Console(stderr=True), f"{verb} {total} images"
    return track(items, text, total, console=console, transient=True, disable=not console.is_terminal)
