"""Walk the folders below a data folder: follow links, tell what names mean, and what cannot be read."""

import errno
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from pathlib import Path
from unicodedata import normalize

from shell.command_line import printable

CLUTTER = (".", "__MACOSX")  # the names of hidden folders begin so, and of a by-product of macOS
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    *(".jp2", ".ppm", ".pgm"),
)
LABELS = {"cat": 0, "cats": 0, "dog": 1, "dogs": 1}
PARTS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "training"),
    **dict.fromkeys(
        ("val", "valid", "validate", "validation", "dev", "development", "eval", "evaluation"), "validation"
    ),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}
FILLERS = (
    *("dataset", "datasets", "data", "set", "sets", "split", "splits", "folder", "only", "image", "images", "img"),
    *("imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "jpg", "jpeg", "png", "class"),
    *("v", "version", "final", "copy", "public", "private"),
)


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
    remedy: str = "make it readable, or remove it"


@cache
def _split(letters: str) -> tuple[str, ...]:
    """Split the letters of a folder's name into words that are known here; empty if they are not."""
    for word in sorted((*PARTS, *LABELS, *FILLERS), key=len, reverse=True):
        if letters == word:
            return (word,)
        if letters.startswith(word) and (rest := _split(letters[len(word) :])):
            return (word, *rest)
    return ()


def words_of(name: str) -> tuple[str, ...]:
    """Return the known words of a folder's name, without digits and marks: test, images of "Test-Images 2"."""
    return _split("".join(filter(str.isalpha, normalize("NFKC", name).casefold())))


@cache
def meaning_of(name: str) -> tuple[int | None, str]:
    """Return the class and the part that the name of a folder tells: None and "" if it tells none, or several."""
    words = words_of(name)
    labels, parts = {LABELS[word] for word in words if word in LABELS}, {PARTS[word] for word in words if word in PARTS}
    return (labels.pop() if len(labels) == 1 else None), (parts.pop() if len(parts) == 1 else "")


def part_depth(names: tuple[str, ...]) -> int | None:
    """Return the depth of the first folder that names a part: not of `trainval`, if one below it names a part."""
    depths = [depth for depth, name in enumerate(names) if meaning_of(name)[1]]
    return next((depth for depth in depths if "trainval" not in words_of(names[depth])), min(depths, default=None))


@cache
def meaning(names: tuple[str, ...]) -> tuple[frozenset[int], str]:
    """Return the classes that the names of some folders tell, and the part that one of them tells."""
    labels = frozenset(label for label, _ in map(meaning_of, names) if label is not None)
    depth = part_depth(names)
    return labels, "" if depth is None else meaning_of(names[depth])[1]


@cache
def facts(names: tuple[str, ...]) -> frozenset[int | str]:
    """Return all that `meaning` tells, as a set."""
    labels, part = meaning(names)
    return labels | ({part} if part else frozenset())


def meaning_with_pieces(names: tuple[str, ...]) -> tuple[frozenset[int], str]:
    """Return what some names mean, and the pieces between the dots of the last one: test of "test.d"."""
    return meaning((*names, *"".join(names[-1:]).split(".")))


def walk(top: Path, faults: list[Fault]) -> Iterator[Folder]:
    """Yield the visible folders from `top` down. Append to `faults` what is left out.

    Real folders come before links, and links whose names mean much before those that mean little. Another way to a
    folder is left out unless the names on it tell something that those of the earlier ways do not. A link to a
    folder above it is not followed.
    """
    ways: dict[tuple[int, int], list[tuple[frozenset[int | str], str]]] = defaultdict(list)
    left: list[tuple[bool, int, tuple[str, ...], str, tuple[tuple[int, int], ...]]] = [(False, 0, (), str(top), ())]
    while left:
        by_link, _, names, path, above = heappop(left)
        try:
            stat = Path(path).stat()
            identity, told = (stat.st_dev, stat.st_ino), facts(names)
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
            rank = by_link or is_link, -len(facts(below))
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
        if _is_file_name(entry.name, target):
            return None
    except OSError as error:
        problem = f"{printable(entry.path)} cannot be read ({error.strerror})"
        if error.errno == errno.ELOOP:  # nothing can make it readable
            return Fault(names, problem, remedy="remove it")
    return Fault(names, problem)


def _is_file_name(name: str, target: Path) -> bool:
    """Return whether a link that leads nowhere was one to a file, and not to a folder."""
    path = Path(name)
    if path.suffix.casefold() in IMAGE_SUFFIXES:
        return True
    return meaning_with_pieces((name,)) == (frozenset(), "") and any(one.suffix[1:].isalpha() for one in (path, target))
