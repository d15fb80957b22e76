"""Locks that decide which process holds which trial. A lock is released when its holder dies, however it dies.

For a study in a file they are locks of the kernel, on files in the run's folder; for a server see postgres_locks.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial

from search.study.storage import StorageError

Section = Literal["claim", "propose"]

WORKER = "worker"  # user attribute of a trial: its holder, and under which claim
POLL_SECONDS = 0.002  # filelock's own 0.05 are longer than it takes to make a trial


class TrialLostError(Exception):
    """A trial belongs to another process by now."""


class SectionLostError(StorageError):
    """The server was away while this process was inside a critical section."""


class Locks(Protocol):
    """Locks between the processes that share a study."""

    def exclusively(self, section: Section) -> Any:
        """Enter a critical section: one process at a time."""

    def try_lock(self, trial: FrozenTrial | optuna.Trial) -> bool:
        """Lock a trial until `release` or death. Return False if another process holds it."""

    def acquired(self, trial: FrozenTrial, claim: str) -> None:
        """Tell under which claim a locked trial is held; its attribute WORKER says the same."""

    def release(self, trial: FrozenTrial | optuna.Trial) -> None:
        """Release a trial."""

    def free(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials that no process holds."""

    def check(self) -> None:
        """Raise TrialLostError if a locked trial is no longer ours."""

    def are_settled(self) -> bool:
        """Return whether every living process has its locks. After a restart of the server they need some seconds."""


class FileLocks:
    """Locks of the kernel, on files in the folder of one part of a sweep."""

    def __init__(self, folder: Path, trials: Path) -> None:
        self.folder, self.trials = folder, trials
        self.held: dict[int, FileLock] = {}

    def exclusively(self, section: Section) -> FileLock:
        return FileLock(self.folder / f"{section}.lock", poll_interval=POLL_SECONDS)

    def try_lock(self, trial: FrozenTrial | optuna.Trial) -> bool:
        if lock := self._lock(trial):
            self.held[trial.number] = lock
        return lock is not None

    def acquired(self, trial: FrozenTrial, claim: str) -> None:
        """Do nothing: the kernel knows the holder."""

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
        if lock := self._lock(trial):
            lock.release()
        return lock is not None

    def _lock(self, trial: FrozenTrial | optuna.Trial) -> FileLock | None:
        folder = self.trials / f"{trial.number:04}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock
