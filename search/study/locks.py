"""Locks that decide which process holds which trial. The system releases a lock when its holder dies.

A study in a file uses the kernel's locks on files in the run's folder. For a server see postgres_locks.py.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial

from search.study.storage import StorageError

Section = Literal["claim", "propose"]

WORKER = "worker"  # user attribute of a trial: its holder, and under which claim
POLL_SECONDS = 0.002  # filelock's default of 0.05 is longer than it takes to create a trial


class TrialLostError(Exception):
    """Another process has the trial."""


class SectionLostError(StorageError):
    """The connection to the server broke while this process was inside a critical section."""


class Locks(Protocol):
    """Locks between the processes that share a study."""

    def exclusively(self, section: Section) -> Any:
        """Enter a critical section: one process at a time."""

    def try_lock(self, trial: FrozenTrial | optuna.Trial) -> bool:
        """Lock a trial until `release` or death. Return False if another process holds it."""

    def acquired(self, trial: FrozenTrial, claim: str) -> None:
        """Set the claim under which a locked trial is held; the trial's attribute WORKER has the same claim."""

    def release(self, trial: FrozenTrial | optuna.Trial) -> None:
        """Release a trial, if it is locked."""

    def free(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials that no process holds."""

    def check(self) -> None:
        """Raise TrialLostError if a locked trial is no longer ours."""

    def are_settled(self) -> bool:
        """Return whether every living process has its locks; false for some seconds after a restart of the server."""


class FileLocks:
    """Locks of the kernel, on files in the folder of one part of a sweep."""

    def __init__(self, folder: Path, trials: Path) -> None:
        self.folder, self.trials = folder, trials
        self.held: dict[int, FileLock] = {}

    def exclusively(self, section: Section) -> FileLock:
        return FileLock(self.folder / f"{section}.lock", poll_interval=POLL_SECONDS)

    def try_lock(self, trial: FrozenTrial | optuna.Trial) -> bool:
        folder = self.trials / f"{trial.number:04}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        with suppress(Timeout):
            lock.acquire(blocking=False)
            self.held[trial.number] = lock
        return lock.is_locked

    def acquired(self, trial: FrozenTrial, claim: str) -> None:
        pass  # the kernel knows the holder

    def release(self, trial: FrozenTrial | optuna.Trial) -> None:
        if lock := self.held.pop(trial.number, None):
            lock.release()

    def free(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        return [trial for trial in trials if self._is_free(trial)]

    def check(self) -> None:
        pass

    def are_settled(self) -> bool:
        return True

    def _is_free(self, trial: FrozenTrial) -> bool:
        is_free = self.try_lock(trial)
        if is_free:
            self.release(trial)
        return is_free
