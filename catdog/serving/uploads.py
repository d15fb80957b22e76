"""Read image files from uploaded files and zip archives, within limits."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from catdog.data.decode import MAX_BYTES
from shell.command_line import printable

MAX_IMAGES = 500  # of one request, those in archives included
MAX_TOTAL = 512 * 2**20  # unpacked bytes of one request


@dataclass(frozen=True)
class ImageFile:
    """One of many uploaded files."""

    name: str  # the client's; for display only, never used as a path
    content: bytes = b""
    problem: str = ""  # one sentence, if there is no content


def unpack(uploads: Sequence[tuple[str, Path]]) -> list[ImageFile]:
    """Read named files and archives into memory. A broken one becomes an ImageFile with a problem.

    Raises ValueError, one sentence, if there are too many or they are too large in total.
    """
    files: list[ImageFile] = []
    total = 0
    for file in _read_uploads(uploads):
        total += len(file.content)
        if len(files) == MAX_IMAGES:
            raise ValueError(f"there are more than {MAX_IMAGES} images; send them in several requests")
        if total > MAX_TOTAL:
            raise ValueError(f"the images have more than {MAX_TOTAL / 2**20:.0f} MB; send them in several requests")
        files.append(file)
    return files


def _read_uploads(uploads: Sequence[tuple[str, Path]]) -> Iterator[ImageFile]:
    for name, path in uploads:
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"  # zipfile.is_zipfile would accept an image with an archive at its end
        if is_archive:
            yield from _read_archive(printable(name), path)
        else:
            yield ImageFile(printable(name), path.read_bytes())


def _read_archive(name: str, path: Path) -> Iterator[ImageFile]:
    """Read the members of an archive. Nothing is written to disk, so their names can do no harm."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not _is_clutter(member)]
            if len(members) > MAX_IMAGES or sum(member.file_size for member in members) > MAX_TOTAL:
                yield ImageFile(name, problem=f"holds more than {MAX_IMAGES} files or {MAX_TOTAL / 2**20:.0f} MB")
                return
            if not members:
                yield ImageFile(name, problem="the archive is empty")
            for member in members:
                yield _read_member(archive, member)
    except Exception:  # noqa: BLE001 - zipfile raises anything on a damaged directory
        yield ImageFile(name, problem="the archive is damaged")


def _is_clutter(member: zipfile.ZipInfo) -> bool:
    """Return whether a member is a folder, or a by-product of a file manager."""
    *folders, name = member.filename.split("/")
    return member.is_dir() or "__MACOSX" in folders or name.startswith(".") or name in {"Thumbs.db", "_DS_Store"}


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ImageFile:
    name = printable(member.filename)
    if member.file_size > MAX_BYTES:
        return ImageFile(name, problem=f"has more than {MAX_BYTES / 2**20:.0f} MB")
    if member.flag_bits & 1:
        return ImageFile(name, problem="is encrypted; send it without a password")
    try:
        with archive.open(member) as file:
            return ImageFile(name, file.read(MAX_BYTES))
    except Exception:  # noqa: BLE001 - zlib, zipfile and others raise anything on a damaged member
        return ImageFile(name, problem="is damaged in the archive")
