"""The locks that decide which process holds which trial. A lock is released when its holder dies, however it dies."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import optuna
from optuna.trial import FrozenTrial

from search.study.storage import StorageError

__all__ = ["WORKER", "Locks", "Section", "SectionLostError", "TrialLostError"]

Section = Literal["claim", "propose"]

WORKER = "worker"  # user attribute of a trial: its holder, and under which claim


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
