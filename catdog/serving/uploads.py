"""What strangers send -> pictures, or one sentence about why not: files, and zip archives, within limits."""

import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from catdog.data.sources import FORMATS, read_picture, read_preview
from catdog.device import release_freed_memory

__all__ = ["MAX_BYTES", "MAX_PICTURES", "MAX_TOTAL", "Item", "decode", "preview", "unpack"]

MAX_BYTES = 32 * 2**20  # of one picture
MAX_PIXELS = 50_000_000  # of one picture; the largest sensors of today's telephones have as many
MAX_PICTURES = 500  # at once, in archives and beside them
MAX_TOTAL = 512 * 2**20  # bytes of all pictures at once, unpacked
LARGE = 8_000_000  # pixels from which on pictures are decoded one at a time: the largest need a gigabyte

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Item:
    """One of many files."""

    name: str  # as its sender calls it: for showing, never a path of ours
    content: bytes = b""
    problem: str = ""  # why there is no content, one sentence


def decode(content: bytes, size: int) -> np.ndarray:
    """Turn the content of an image file into (size, size, 3) bytes. Raises ValueError, one sentence.

    What it would cost is read off the file's head first, so that a small file cannot fill the memory.
    """
    return np.array(_read_within_limits(content, size, read_picture))


def preview(content: bytes, size: int) -> Image.Image:
    """Return a picture for people, at most `size` pixels wide and high. Raises ValueError like `decode`."""
    return _read_within_limits(content, size, read_preview)


def _read_within_limits(content: bytes, size: int, read: Callable[[bytes, int], Image.Image]) -> Image.Image:
    num_pixels = _count_pixels(content)
    try:
        if num_pixels <= LARGE:
            return read(content, size)
        with _one_at_a_time:
            picture = read(content, size)
            release_freed_memory()
            return picture
    except Exception as error:
        raise ValueError("the picture is cut off or damaged") from error


def _count_pixels(content: bytes) -> int:
    if not content:
        raise ValueError("the file is empty")
    if len(content) > MAX_BYTES:
        raise ValueError(f"the file has {len(content) / 2**20:.0f} MB; at most {MAX_BYTES / 2**20:.0f} MB are taken")
    limit = f"at most {MAX_PIXELS / 1e6:.0f} million pixels are taken"
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"the picture is too large; {limit}") from None
    except Exception:  # noqa: BLE001 - Pillow's readers raise anything on what is no picture
        raise ValueError("this file is not a picture that can be read") from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"the picture has {width:,} x {height:,} pixels; {limit}")
    return width * height


def unpack(files: Sequence[tuple[str, Path]]) -> list[Item]:
    """Read named files, archives among them, into memory; a broken one becomes an Item that says why.

    Raises ValueError, one sentence, where they are too many or too large in all.
    """
    items: list[Item] = []
    total = 0
    for item in _items(files):
        total += len(item.content)
        if len(items) == MAX_PICTURES:
            raise ValueError(f"there are more than {MAX_PICTURES} pictures; send them in several goes")
        if total > MAX_TOTAL:
            raise ValueError(f"the pictures have more than {MAX_TOTAL / 2**20:.0f} MB; send them in several goes")
        items.append(item)
    return items


def _items(files: Sequence[tuple[str, Path]]) -> Iterator[Item]:
    for name, path in files:
        if zipfile.is_zipfile(path):
            yield from _members(name, path)
        else:
            yield Item(name, path.read_bytes())


def _members(name: str, path: Path) -> Iterator[Item]:
    """Read the pictures of an archive. Nothing is written to disk, so that their names can do no harm."""
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = [member for member in archive.infolist() if not _is_clutter(member)]
            if len(wanted) > MAX_PICTURES or sum(member.file_size for member in wanted) > MAX_TOTAL:
                yield Item(name, problem=f"holds more than {MAX_PICTURES} files or {MAX_TOTAL / 2**20:.0f} MB")
                return
            if not wanted:
                yield Item(name, problem="the archive is empty")
            for member in wanted:
                yield _read(archive, member)
    except Exception:  # noqa: BLE001 - zipfile raises anything on a damaged list of members
        yield Item(name, problem="the archive is damaged")


def _is_clutter(member: zipfile.ZipInfo) -> bool:
    """Say whether a member is a folder or what file managers leave behind."""
    parts = member.filename.split("/")
    return (
        member.is_dir() or "__MACOSX" in parts or parts[-1].startswith(".") or parts[-1] in {"Thumbs.db", "_DS_Store"}
    )


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Item:
    if member.file_size > MAX_BYTES:
        return Item(member.filename, problem=f"has more than {MAX_BYTES / 2**20:.0f} MB")
    if member.flag_bits & 1:
        return Item(member.filename, problem="is encrypted; send it without a password")
    try:
        with archive.open(member) as file:
            return Item(member.filename, file.read(MAX_BYTES))
    except Exception:  # noqa: BLE001 - zlib, zipfile and others raise anything on a damaged member
        return Item(member.filename, problem="is damaged in the archive")
