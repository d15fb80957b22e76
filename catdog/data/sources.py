"""List the labelled image files of a folder, in any of the usual layouts, or of Kaggle's data set.

Supported at any depth: Kaggle's `training_set/training_set/cats/`, `train/` with `test/` or `validation/`,
`PetImages/Cat/`, and flat `cat.0.jpg`. File extensions are ignored; the decoder looks at the content.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from catdog.data.files import shorten
from catdog.data.walk import (
    LABELS,
    Fault,
    Folder,
    facts,
    meaning,
    meaning_of,
    meaning_with_pieces,
    part_depth,
    walk,
    words_of,
)
from shell.command_line import did_you_mean, printable

CLASSES = ("cat", "dog")
NAMED = re.compile(r"(cat|dog)s?[._ -]*\(?\d")  # files whose name tells their class
FOLDERS_SHOWN = 4


@dataclass(frozen=True, slots=True)  # there may be a million of them
class LabelledFile:
    """One labelled file."""

    path: str
    label: int  # index into CLASSES
    part: str  # training, validation, test, or "" if no folder names it


@dataclass(frozen=True)
class Listing:
    """The labelled files of a folder."""

    folder: Path
    training: tuple[LabelledFile, ...]
    validation: tuple[LabelledFile, ...]  # if empty, they are split off the training images
    test: tuple[LabelledFile, ...]  # likewise
    notes: tuple[str, ...]  # files and folders that were left out, a sentence each


@dataclass(frozen=True)
class _Found:
    """The files in one folder."""

    folder: Folder
    part: str
    files: list[LabelledFile]

    @property
    def num_unlabelled(self) -> int:
        return len(self.folder.files) - len(self.files)


def list_images(folder: Path) -> Listing:
    """Find and label every file below `folder`. Links are followed.

    Raises ValueError for a folder that is missing, has no images, lacks one of the classes or is ambiguous, and if
    something of a part or of a class cannot be read.
    """
    _check_folder(folder)
    faults: list[Fault] = []
    found = sorted((_label(one) for one in walk(folder, faults)), key=lambda one: one.folder.names)
    labelled = _choose_ways([one for one in found if one.files], faults)
    _refuse_losses(faults, found_some=bool(labelled))
    unknown = _unlabelled_folders(found, labelled)
    if not labelled:
        expected = "expected folders named cats and dogs, or files named like cat.0.jpg"
        shown = printable(str(folder))
        raise ValueError(f"data folder {shown} holds no images of cats and dogs; {expected}{_hint(unknown)}")
    labelled = _leave_out_links(labelled, faults)
    _refuse_unclear_parts(folder, labelled)
    _refuse_two_data_sets(folder, labelled)
    parts = _sort_by_part(labelled)
    for part, files in parts.items():
        _check_classes(folder, part, files, found, _hint(unknown))
    notes = [f"left out: {fault.problem}" for fault in sorted(faults, key=lambda fault: fault.names)]
    notes += [f"left out: {empty} is empty" for part in parts if (empty := _empty_folder(found, part))]
    if unknown:
        notes.append(_describe_unlabelled(folder, unknown))
    return Listing(folder, parts["training"], parts["validation"], parts["test"], tuple(notes))


def _check_folder(folder: Path) -> None:
    try:
        folder.stat()
        problem = "" if folder.is_dir() else "is not a folder"
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError) and not folder.is_symlink()
        problem = "does not exist" if is_missing else f"cannot be read ({error.strerror})"
    if problem:
        beside = ["synthetic", "kaggle", *(path.name for path in folder.parent.glob("*/"))]
        remedy = did_you_mean(folder.name, beside) or "; give --data synthetic, kaggle or a folder"
        raise ValueError(f"data folder {printable(str(folder))} {problem}{remedy}")


def _label(folder: Folder) -> _Found:
    labels, part = meaning(folder.names)
    paths = [f"{folder.path}{os.sep}{name}" for name in folder.files]
    if len(labels) > 1 and paths:
        raise ValueError(f"{printable(paths[0])} is below both a cat and a dog folder; move it to one of them")
    if labels:
        return _Found(folder, part, [LabelledFile(path, min(labels), part) for path in paths])
    named = zip(paths, (NAMED.match(name.lower()) for name in folder.files), strict=True)
    return _Found(folder, part, [LabelledFile(path, LABELS[match[1]], part) for path, match in named if match])


def _refuse_losses(faults: Iterable[Fault], *, found_some: bool) -> None:
    """Raise ValueError if a part or a class would be incomplete without that being told, or all would be missing."""
    for fault in faults:
        labels, part = meaning_with_pieces(fault.names)
        if fault.loses_images and (labels or part or not found_some):
            what = " ".join(filter(None, (part, *(CLASSES[label] for label in labels)))) or "all"
            raise ValueError(f"{fault.problem}, so {what} images would be missing; {fault.remedy}")


def _choose_ways(labelled: Sequence[_Found], faults: list[Fault]) -> list[_Found]:
    """Keep the way to each folder whose names mean most. Raises ValueError if two show it as two classes or parts."""
    chosen: dict[tuple[int, int], _Found] = {}
    for one in sorted(labelled, key=lambda one: -len(facts(one.folder.names))):
        other = chosen.setdefault(one.folder.identity, one)
        paths = [printable(way.folder.path) for way in sorted((one, other), key=labelled.index)]
        known = {Path(file.path).name: file.label for file in other.files}
        if one.part != other.part or any(known.get(Path(f.path).name, f.label) != f.label for f in one.files):
            raise ValueError(f"{' and '.join(paths)} are the same folder; remove the link that should not be there")
        if one is not other:
            problem = f"{printable(one.folder.path)} is the same folder as {printable(other.folder.path)}"
            faults.append(Fault(one.folder.names, problem, loses_images=False))
    return [one for one in labelled if chosen[one.folder.identity] is one]


def _leave_out_links(labelled: Sequence[_Found], faults: list[Fault]) -> list[_Found]:
    """Leave out links to files that are listed already, unless they show them as another class or part."""
    if not any(one.folder.links for one in labelled):
        return list(labelled)
    real = {path: target for one in labelled for path, target in one.folder.real_paths().items()}
    links = {f"{one.folder.path}{os.sep}{name}" for one in labelled for name in one.folder.links}
    listed: dict[str, LabelledFile] = {}
    for file in sorted((file for one in labelled for file in one.files), key=lambda file: file.path in links):
        listed.setdefault(real[file.path], file)

    def is_known(file: LabelledFile) -> bool:
        other = listed[real[file.path]]
        return file is not other and file.label == other.label and file.part in ("", other.part)

    for one in labelled:
        if known := [file.path for file in one.files if is_known(file)]:
            first = f"{printable(known[0])} is a link to {printable(listed[real[known[0]]].path)}"
            more = f" (and {len(known) - 1} more such links)" if len(known) > 1 else ""
            faults.append(Fault(one.folder.names, first + more, loses_images=False))
    kept = [replace(one, files=[file for file in one.files if not is_known(file)]) for one in labelled]
    return [one for one in kept if one.files]


def _refuse_unclear_parts(folder: Path, labelled: Iterable[_Found]) -> None:
    """Raise ValueError if two names mean the same part, or images are in a folder of unknown name beside the parts."""
    known: dict[tuple[str, ...], dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for above, name in dict.fromkeys(_part_folder(one.folder.names) for one in labelled if one.part):
        words = "".join(word for word in words_of(name) if word not in LABELS)
        known[above][meaning_of(name)[1]][words] = name
    for above, parts in known.items():
        for part, names in parts.items():
            if len(names) > 1:
                both = " and ".join(printable(name) for name in sorted(names.values()))
                where = printable(str(folder.joinpath(*above)))
                raise ValueError(f"{where} is ambiguous: {both} both mean {part}; merge them, or rename one")
    for one in labelled:
        for depth, name in enumerate(() if one.part else one.folder.names):
            if one.folder.names[:depth] in known and meaning_of(name) == (None, ""):
                where = printable(str(folder.joinpath(*one.folder.names[: depth + 1])))
                remedy = "rename it to train, validation or test, or move it elsewhere"
                raise ValueError(
                    f"{printable(str(folder))} is ambiguous: {where} has images of no known part; {remedy}"
                )


def _part_folder(names: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Return the names above the first folder that names a part, and its name."""
    depth = part_depth(names) or 0
    return names[:depth], names[depth]


def _refuse_two_data_sets(folder: Path, labelled: Sequence[_Found]) -> None:
    """Raise ValueError for a folder that seems to hold two data sets, or images beside those of its train folder."""
    roots: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for one in labelled:
        root = tuple(takewhile(lambda name: meaning_of(name) == (None, ""), one.folder.names))
        roots[root].update(file.label for file in one.files)
    if len(roots) > 1:
        raise ValueError(f"{printable(str(folder))} is ambiguous: {_tell_roots_apart(folder, roots)}")
    of_part = {one.part: one for one in reversed(labelled)}
    if {"", "training"} <= set(of_part):
        above = {part: _part_folder(one.folder.names) for part, one in of_part.items() if part}
        folders = {part: folder.joinpath(*names, name) for part, (names, name) in above.items()}
        train = folders["training"]
        inside, test = printable(str(train)), printable(str(folders.get("test", train.with_name("test"))))
        outside = printable(of_part[""].files[0].path)
        raise ValueError(f"{outside} is outside {inside}; move such images into {inside} or {test}")


def _tell_roots_apart(folder: Path, roots: Mapping[tuple[str, ...], set[int]]) -> str:
    """Say where images are, by the folders of unknown name that hold them, and what to do.

    A folder with images of one class is probably this class, if no other one has both.
    """
    top = tuple(names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*roots, strict=False)))
    found: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for root, labels in roots.items():
        found[root[: len(top) + 1]] |= labels
    below = {root: labels for root, labels in found.items() if root != top}
    if all(len(labels) == 1 for labels in below.values()):
        remedies = [_name_class(folder.joinpath(*top), below, label) for label in range(len(CLASSES))]
        return f"the name of a folder tells no class; {', and '.join(filter(None, remedies))}"
    first, *others = sorted(found, key=lambda root: (root == top, -len(found[root]), root))
    paths = [printable(str(folder.joinpath(*root))) for root in (first, *others)]
    several = others[0] != top and len(found[others[0]]) > 1
    give = "give one of them to --data" if several else f"give {paths[0]} to --data, or move it elsewhere"
    return f"it has images in {paths[0]} and {paths[1]}; {give}"


def _name_class(top: Path, below: Mapping[tuple[str, ...], set[int]], label: int) -> str:
    """Say how to tell a class by the names of the folders below `top` that hold nothing else."""
    name = f"{CLASSES[label]}s"
    folders = [str(top / root[-1]) for root, labels in sorted(below.items()) if labels == {label}]
    if len(folders) == 1 and not (top / name).exists():
        return f"rename {printable(folders[0])} to {name}"
    return f"move {shorten(folders, FOLDERS_SHOWN)} into {printable(str(top / name))}" if folders else ""


def _sort_by_part(labelled: Iterable[_Found]) -> dict[str, tuple[LabelledFile, ...]]:
    files: dict[str, list[LabelledFile]] = defaultdict(list)
    for one in labelled:
        files[one.part] += one.files
    parts = {part: tuple(files[part]) for part in ("training", "validation", "test")}
    parts["training"] += tuple(files[""])
    if not parts["test"]:  # train/ + validation/: the held-out part serves as the test set
        parts["test"], parts["validation"] = parts["validation"], ()
    return parts


def _empty_folder(found: Sequence[_Found], part: str, *labels: int) -> str:
    """Return the topmost folder of a part, or of its classes `labels`, if no such folder holds a file; else ""."""
    unnamed = "" if part == "training" and labels else part
    named = [one for one in found if one.part in (part, unnamed) and meaning(one.folder.names)[0].issuperset(labels)]
    return "" if any(one.folder.files for one in named) else printable("".join(one.folder.path for one in named[:1]))


def _check_classes(
    folder: Path, part: str, files: tuple[LabelledFile, ...], found: Sequence[_Found], hint: str
) -> None:
    labels = {file.label for file in files}
    missing = [name for label, name in enumerate(CLASSES) if label not in labels]
    if part == "training" and len(missing) == len(CLASSES):
        raise ValueError(
            f"{printable(str(folder))} has no training images; put them into {printable(str(folder / 'train'))}"
        )
    if files and missing:
        empty = _empty_folder(found, part, CLASSES.index(missing[0]))
        remedy = f"put some into {empty}" if empty else f"add a folder {missing[0]}s beside the other class{hint}"
        raise ValueError(f"the {part} images of {printable(str(folder))} show no {missing[0]}; {remedy}")


def _unlabelled_folders(found: Iterable[_Found], labelled: Iterable[_Found]) -> dict[tuple[str, ...], int]:
    """Count the files without a class, by folder. A link may give a class to the files of a folder elsewhere."""
    chosen = {one.folder.identity: one for one in labelled}
    return {
        one.folder.names: one.num_unlabelled
        for one in found
        if one.num_unlabelled and chosen.get(one.folder.identity, one) is one
    }


def _hint(unknown: Iterable[tuple[str, ...]]) -> str:
    """Name the folders that may be misnamed classes."""
    strange = [str(Path(*names)) for names in unknown if names and meaning_of(names[-1]) == (None, "")]
    remedy = "; rename folders of cats or dogs to cats and dogs"
    return f"{remedy} (of unknown name: {shorten(strange, FOLDERS_SHOWN)})" if strange else ""


def _describe_unlabelled(folder: Path, unknown: Mapping[tuple[str, ...], int]) -> str:
    where = shorten([f"{Path(*names)} ({number})" for names, number in unknown.items()], FOLDERS_SHOWN)
    number = sum(unknown.values())
    files = "file" if number == 1 else "files"
    told = f"left out {number} {files} of {printable(str(folder))} whose names tell neither cat nor dog, in {where}"
    return told + _hint(unknown)
