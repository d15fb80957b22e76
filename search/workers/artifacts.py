"""The files of trials: remove those that are not kept, exchange the others between machines."""

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

from search.durable import write_text
from search.study.queue import AcquiredTrial
from search.study.shared_study import SharedStudy
from search.study.sweep import Sweep
from search.study.trials import ordered
from shell.redact import redact

FILES = "files"  # user attribute of a trial: keys in the store by file names in its folder
WEIGHTS = "model.safetensors"
FETCHED = ".stored.json"  # in a trial's folder: the keys of the files in it
LOCAL = ("lock", "comet.json")  # files about this machine only


def checkpoint_of(sweep: Sweep, acquired: AcquiredTrial, folder: Path) -> Path:
    """Return the path of a trial's checkpoint. Move the one of an earlier worker there.

    With a server, each worker has a file of its own, as its machine may be cut off and come back.
    """
    if not sweep.storage:
        return folder / "checkpoint.pt"
    for name in acquired.earlier_ids:
        if found := list(folder.glob(f"checkpoint-{name}.pt*")):  # also the previous one, .pt.before
            for path in found:
                path.replace(folder / path.name.replace(name, acquired.id))
            break
    return folder / f"checkpoint-{acquired.id}.pt"


def remove_checkpoints(folder: Path) -> None:
    for path in folder.glob("checkpoint*"):
        path.unlink(missing_ok=True)


def remove_weights(
    sweep: Sweep, trials: Sequence[FrozenTrial], removed: set[int], store: "Artifacts | None" = None
) -> None:
    """Remove the weights of all ended trials but the best `sweep.keep`, also from the store.

    Adds their numbers to `removed` and skips trials in it, as no later result moves a trial back among the best.
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
    """Return the trials whose weights exist and will be removed, because others are better."""
    surplus = ordered(ended, sweep.space.goal)[sweep.keep :]
    return [trial for trial in surplus if (sweep.trial_folder(trial.number) / WEIGHTS).exists()]


class Artifacts:
    """A store that all machines of a sweep reach: s3://BUCKET, or a shared folder.

    Only the files that the study lists belong to a trial. A worker that lost the trial may have written others.
    """

    def __init__(self, address: str) -> None:
        self.address, self.store = address, _open(address)
        self.seen: dict[Path, tuple[int, int]] = {}

    def fetch(self, trial: FrozenTrial, folder: Path) -> None:
        """Copy a trial's files into `folder` unless they are there; skip those that the store has lost.

        Replace files that were written or fetched here before if another worker has continued the trial since.
        """
        files: dict[str, str] = trial.user_attrs.get(FILES, {})
        fetched: dict[str, str] = {}
        with suppress(FileNotFoundError, ValueError):
            fetched = json.loads((folder / FETCHED).read_text(encoding="utf-8"))
        for name, key in files.items():
            if trial.state.is_finished() and name.startswith("checkpoint"):
                continue  # its worker died before removing it
            path = folder / Path(name).name
            if (path.exists() and fetched.get(name) == key) or self._fetch_file(key, path):
                self.seen[path] = _mark(path)
        write_text(folder / FETCHED, json.dumps(files))

    def fetch_all(self, study: SharedStudy) -> None:
        """Copy the files of all ended trials into their folders, but weights of the best only."""
        trials = study.trials()
        remove_weights(study.sweep, trials, set(), self)
        for trial in trials:
            if trial.state.is_finished():
                folder = study.sweep.trial_folder(trial.number)
                folder.mkdir(parents=True, exist_ok=True)
                self.fetch(trial, folder)
                remove_checkpoints(folder)

    def push(self, study: SharedStudy, trial: FrozenTrial, folder: Path) -> None:
        """Store the changed files of `folder`, list them in the study, then remove the files that they replace."""
        before = study.read_trial(trial).user_attrs.get(FILES, {})
        now: dict[str, str] = {}
        for path in sorted(folder.iterdir()):
            if not path.is_file() or path.name.startswith(".") or path.suffix == ".before" or path.name in LOCAL:
                continue
            mark, key = _mark(path), before.get(path.name)
            if key is None or self.seen.get(path) != mark:
                key = f"{study.sweep.title.replace(' ', '-')}-{trial.number:04}-{uuid.uuid4().hex}"
                with path.open("rb") as file, self._as_os_error():
                    self.store.write(key, file)
                self.seen[path] = mark
            now[path.name] = key
        if now != before:
            study.note(trial, **{FILES: now})
            write_text(folder / FETCHED, json.dumps(now))
            self._remove(set(before.values()) - set(now.values()))

    def remove(self, trial: FrozenTrial, beginning: str) -> None:
        """Remove the files of an ended trial whose names start with `beginning`."""
        self._remove([key for name, key in trial.user_attrs.get(FILES, {}).items() if name.startswith(beginning)])

    def _fetch_file(self, key: str, path: Path) -> bool:
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
        """Raise OSError if the store is unreachable, which is no trial's fault."""
        try:
            yield
        except (ArtifactNotFound, OSError):
            raise
        except Exception as error:
            raise OSError(f"the artifact store {self.address} is unreachable ({redact(error)})") from error


def open_artifacts(sweep: Sweep) -> Artifacts | None:
    return Artifacts(sweep.artifacts) if sweep.artifacts else None


def validated_artifacts(address: str) -> str:
    """Return an address unchanged, without creating anything. Raises ValueError if it cannot be opened."""
    if address.startswith("s3://"):
        _open(address)
    elif address:
        path = Path(address).absolute()
        there = next(str(above) for above in (path, *path.parents) if os.path.lexists(above))
        if not (os.path.isdir(there) and os.access(there, os.W_OK)):  # noqa: PTH112 - Path.is_dir raises
            raise ValueError(f"--artifacts is {address}; {there} is not a writable folder")
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


def _mark(path: Path) -> tuple[int, int]:
    """Return a value that changes whenever the file does."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size
