"""Walk the folders below a data folder: follow links, and tell what cannot be read."""

import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shell.command_line import printable

CLUTTER = (".", "__MACOSX")  # the names of hidden folders begin so, and of a by-product of macOS


@dataclass(frozen=True)
class Folder:
    """A folder that was read."""

    names: tuple[str, ...]  # from the top down to this one
    path: str
    identity: tuple[int, int]  # device and inode: the same for every link to it
    files: list[str]  # names, sorted


@dataclass(frozen=True)
class Fault:
    """Something below the top that was left out."""

    names: tuple[str, ...]  # from the top down to it
    problem: str  # one sentence that names it
    loses_images: bool = True  # False: they are found by another path


def walk(top: Path, faults: list[Fault], meaning: Callable[[tuple[str, ...]], Hashable]) -> Iterator[Folder]:
    """Yield the visible folders from `top` down, in a fixed order. Append to `faults` what is left out.

    A real folder that several links reach is yielded once for each `meaning` of the names on the way. A link to a
    folder above it is not followed.
    """
    first_path: dict[Hashable, str] = {}
    left: list[tuple[tuple[str, ...], str, tuple[tuple[int, int], ...]]] = [((), str(top), ())]
    while left:
        names, path, above = left.pop()
        try:
            stat = Path(path).stat()
            identity = stat.st_dev, stat.st_ino
            same = first_path.setdefault((identity, meaning(names)), path)
            if identity in above or same != path:
                where = "a folder above it" if identity in above else printable(same)
                faults.append(Fault(names, f"{printable(path)} is a link to {where}", loses_images=False))
                continue
            folders, files = _read(names, path, faults)
        except OSError as error:
            faults.append(Fault(names, f"{printable(path)} cannot be read ({error.strerror})"))
            continue
        yield Folder(names, path, identity, files)
        below = (*above, identity)
        left.extend(((*names, name), f"{path}{os.sep}{name}", below) for name in reversed(folders))


def _read(names: tuple[str, ...], path: str, faults: list[Fault]) -> tuple[list[str], list[str]]:
    """Return the sorted names of the visible folders and files in a folder."""
    folders, files = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if _is_folder(entry):
                if not name.startswith(CLUTTER):
                    folders.append(name)
            elif name.startswith("."):
                continue
            elif fault := _find_fault(entry, (*names, name)):
                faults.append(fault)
            else:
                files.append(name)
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


def _find_fault(entry: os.DirEntry[str], names: tuple[str, ...]) -> Fault | None:
    """Return what is wrong with an entry that is no folder; None for a file, even one that cannot be read."""
    try:
        if entry.is_file():
            return None
        if not entry.is_symlink() or Path(entry.path).exists():
            return Fault(names, f"{printable(entry.path)} is neither a file nor a folder", loses_images=False)
        target = Path(entry.path).readlink()
        problem = f"{printable(entry.path)} is a link to {printable(str(target))}, which does not exist"
    except OSError as error:
        target = Path()
        problem = f"{printable(entry.path)} cannot be read ({error.strerror})"
    return None if any(map(_has_extension, (Path(entry.name), target))) else Fault(names, problem)


def _has_extension(path: Path) -> bool:
    """Return whether a broken link's name, or its target's, is that of a file and not of a folder."""
    return path.suffix[1:].isalpha()
