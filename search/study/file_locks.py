"""Locks of the kernel on files in the run's folder, for a study in a file."""

from collections.abc import Sequence
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial

from search.study.locks import Section

__all__ = ["FileLocks"]

POLL_SECONDS = 0.002  # filelock's own 0.05 are longer than it takes to make a trial


class FileLocks:
    """Locks on files in the folder of one part of a sweep."""

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
