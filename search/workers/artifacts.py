"""What trials leave behind: what of it is kept, and how it gets from machine to machine."""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial

from search.files import write_text
from search.study.queue import AcquiredTrial
from search.study.shared_study import SharedStudy
from search.study.sweep import Sweep
from search.study.trials import ordered

__all__ = [
    "FILES",
    "Artifacts",
    "checkpoint_of",
    "remove_checkpoints",
    "remove_weights",
    "validated_artifacts",
    "weights_to_remove",
]

FILES = "files"  # user attribute of a trial: its files' names in the store, by their names in its folder
WEIGHTS = "model.safetensors"
BROUGHT = ".stored.json"  # in a trial's folder: which of the store's files those here are
OURS_ALONE = ("lock", "comet.json")  # files that say something about this machine only


def checkpoint_of(sweep: Sweep, claim: AcquiredTrial, folder: Path) -> Path:
    """Return where a trial's checkpoint goes, with what an earlier holder of the trial left there.

    Where machines may be cut off and come back, each claim has a file of its own.
    """
    if not sweep.storage:
        return folder / "checkpoint.pt"
    path = folder / f"checkpoint-{claim.id}.pt"
    for name in claim.earlier_ids:
        found = list(folder.glob(f"checkpoint-{name}.pt*"))  # and the one before it
        for earlier in found:
            earlier.replace(folder / earlier.name.replace(name, claim.id))
        if found:
            break
    return path


def remove_checkpoints(folder: Path) -> None:
    """Remove what a trial that has ended needs no more."""
    for path in folder.glob("checkpoint*"):
        path.unlink(missing_ok=True)


def remove_weights(
    sweep: Sweep, trials: Sequence[FrozenTrial], removed: set[int], store: "Artifacts | None" = None
) -> None:
    """Remove the weights of all ended trials but the best `sweep.keep`, also from the store.

    `removed` are the numbers of those that earlier calls removed; no result can bring them back among the best.
    """
    if sweep.part != "search":
        return
    ended = [trial for trial in trials if trial.state.is_finished() and trial.number not in removed]
    for trial in ordered(ended, sweep.space.goal)[sweep.keep :]:
        (sweep.trial_folder(trial.number) / WEIGHTS).unlink(missing_ok=True)
        if store:
            store.remove(trial, WEIGHTS)
        removed.add(trial.number)


def weights_to_remove(sweep: Sweep, ended: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials whose weights are there and will be removed, as others are better."""
    surplus = ordered(ended, sweep.space.goal)[sweep.keep :]
    return [trial for trial in surplus if (sweep.trial_folder(trial.number) / WEIGHTS).exists()]


class Artifacts:
    """A store that all machines of a sweep reach: an address s3://BUCKET, or a folder that all of them see.

    The study says which of its files are a trial's: one that was written by somebody who had lost the trial is none.
    """

    def __init__(self, address: str) -> None:
        self.address, self.store = address, _open(address)
        self.seen: dict[Path, tuple[int, int]] = {}

    def fetch(self, trial: FrozenTrial, folder: Path) -> None:
        """Bring a trial's files into `folder`, but those that are there. One that the store has lost is left out.

        What was made or brought here before is out of date where others have gone on with the trial since.
        """
        files, brought = trial.user_attrs.get(FILES, {}), _read(folder / BROUGHT)
        for name, key in files.items():
            if trial.state.is_finished() and name.startswith("checkpoint"):
                continue  # what somebody died before removing
            path = folder / Path(name).name
            if (path.exists() and brought.get(name) == key) or self._bring(key, path):
                self.seen[path] = _mark(path)
        write_text(folder / BROUGHT, json.dumps(files))

    def fetch_all(self, study: SharedStudy) -> None:
        """Bring the files of all trials that have ended, and the weights of the best of them."""
        trials = study.trials()
        remove_weights(study.sweep, trials, set(), self)
        for trial in trials:
            if trial.state.is_finished():
                folder = study.sweep.trial_folder(trial.number)
                folder.mkdir(parents=True, exist_ok=True)
                self.fetch(trial, folder)
                remove_checkpoints(folder)

    def push(self, study: SharedStudy, trial: FrozenTrial, folder: Path) -> None:
        """Put what changed in `folder` into the store and have the study say so; then drop what that replaces."""
        before = study.read_trial(trial).user_attrs.get(FILES, {})
        now: dict[str, str] = {}
        for path in sorted(folder.iterdir()):
            if not path.is_file() or path.name.startswith(".") or path.suffix == ".before" or path.name in OURS_ALONE:
                continue
            mark = _mark(path)
            if path.name in before and self.seen.get(path) == mark:
                now[path.name] = before[path.name]
                continue
            key = now[path.name] = f"{study.sweep.title.replace(' ', '-')}-{trial.number:04}-{uuid.uuid4().hex}"
            with path.open("rb") as file, self._as_os_error():
                self.store.write(key, file)
            self.seen[path] = mark
        if now != before:
            study.note(trial, **{FILES: now})
            write_text(folder / BROUGHT, json.dumps(now))
            self._remove(set(before.values()) - set(now.values()))

    def remove(self, trial: FrozenTrial, beginning: str) -> None:
        """Remove those files of a trial that has ended whose names begin so."""
        self._remove([key for name, key in trial.user_attrs.get(FILES, {}).items() if name.startswith(beginning)])

    def _bring(self, key: str, path: Path) -> bool:
        partial = path.with_name(f".{path.name}.fetched")
        try:
            with self._as_os_error(), self.store.open_reader(key) as reader, partial.open("wb") as file:
                shutil.copyfileobj(reader, file)
        except ArtifactNotFound:
            partial.unlink(missing_ok=True)
            return False
        partial.replace(path)
        return True

    def _remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            with suppress(ArtifactNotFound), self._as_os_error():
                self.store.remove(key)

    @contextmanager
    def _as_os_error(self) -> Iterator[None]:
        """Tell a store that is out of reach from a configuration that does not work."""
        try:
            yield
        except (ArtifactNotFound, OSError):
            raise
        except Exception as error:
            raise OSError(f"the artifact store {self.address} is out of reach ({error})") from error


def validated_artifacts(address: str) -> str:
    """Return an address that can be opened; make nothing. Raises ValueError, one sentence, for one that cannot."""
    if address.startswith("s3://"):
        _open(address)
    elif address:
        path = Path(address).absolute()
        there = next(str(above) for above in (path, *path.parents) if os.path.lexists(above))
        if not (os.path.isdir(there) and os.access(there, os.W_OK)):  # noqa: PTH112 - Path.is_dir raises
            raise ValueError(f"--artifacts is {address}; {there} is no folder that can be written")
    return address


def _open(address: str) -> Any:
    if not address.startswith("s3://"):
        Path(address).mkdir(parents=True, exist_ok=True)
        return FileSystemArtifactStore(address)
    try:
        import boto3  # noqa: F401, PLC0415 - an extra
        from optuna.artifacts import Boto3ArtifactStore  # noqa: PLC0415
    except ImportError as error:
        raise ValueError("--artifacts s3://... needs boto3; pip install boto3 (extra s3)") from error
    return Boto3ArtifactStore(address.removeprefix("s3://").strip("/"))


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def _mark(path: Path) -> tuple[int, int]:
    """Return what changes when a file does."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size
