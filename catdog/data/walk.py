"""Walk the folders below a data folder: follow links, and tell what cannot be read."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
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
    links: frozenset[str]  # those of the files that are links

    def real_paths(self) -> dict[str, str]:
        """Return where each file really is, by its path in this folder."""
        real = os.path.realpath(self.path)
        paths = {f"{self.path}{os.sep}{name}": f"{real}{os.sep}{name}" for name in self.files}
        return paths | {path: os.path.realpath(path) for path in (f"{self.path}{os.sep}{name}" for name in self.links)}


@dataclass(frozen=True)
class Fault:
    """Something below the top that was left out."""

    names: tuple[str, ...]  # from the top down to it
    problem: str  # one sentence that names it
    loses_images: bool = True  # False: they are found by another path


def walk(
    top: Path, faults: list[Fault], meaning: Callable[[tuple[str, ...]], frozenset[int | str]]
) -> Iterator[Folder]:
    """Yield the visible folders from `top` down. Append to `faults` what is left out.

    Real folders come before links, and links whose names mean much before those that mean little. Another way to a
    folder is left out unless the `meaning` of the names on it has something that the earlier ways lack. A link to a
    folder above it is not followed.
    """
    ways: dict[tuple[int, int], list[tuple[frozenset[int | str], str]]] = defaultdict(list)
    left: list[tuple[bool, int, tuple[str, ...], str, tuple[tuple[int, int], ...]]] = [(False, 0, (), str(top), ())]
    while left:
        by_link, _, names, path, above = heappop(left)
        try:
            stat = Path(path).stat()
            identity, told = (stat.st_dev, stat.st_ino), meaning(names)
            same = next((other for known, other in ways[identity] if told <= known), None)
            if identity in above or same:
                where = printable(same) if same and identity not in above else "a folder above it"
                faults.append(Fault(names, f"{printable(path)} is a link to {where}", loses_images=False))
                continue
            folders, files = _read(names, path, faults)
        except OSError as error:
            faults.append(Fault(names, f"{printable(path)} cannot be read ({error.strerror})"))
            continue
        ways[identity].append((told, path))
        yield Folder(names, path, identity, sorted(files), frozenset(name for name in files if files[name]))
        for name, is_link in folders.items():
            below = (*names, name)
            rank = by_link or is_link, -len(meaning(below))
            heappush(left, (*rank, below, f"{path}{os.sep}{name}", (*above, identity)))


def _read(names: tuple[str, ...], path: str, faults: list[Fault]) -> tuple[dict[str, bool], dict[str, bool]]:
    """Return the names of the visible folders and files in a folder, and whether each is a link."""
    folders, files = {}, {}
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if _is_folder(entry):
                if not name.startswith(CLUTTER):
                    folders[name] = entry.is_symlink()
            elif name.startswith("."):
                continue
            elif fault := _find_fault(entry, (*names, name)):
                faults.append(fault)
            else:
                files[name] = entry.is_symlink()
    return folders, files


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
