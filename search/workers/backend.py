"""The interface of a backend, which starts, observes and ends the worker processes."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from search.task import WorkerSlot

Job = Callable[[WorkerSlot], None]
"""The whole work of one worker, in the slot it is given."""


class WorkerDiedError(Exception):
    """A worker's process died before its job was done."""

    def __init__(self, how: str = "", machine: str = "") -> None:
        super().__init__(f"the worker died{how}")
        self.how = how  # continues the sentence "the worker died": " by SIGKILL"
        self.machine = machine  # set if the machine was lost with the process: this counts less against its trial


class Process(Protocol):
    """A process that does one job."""

    future: Future[None]  # done when the process is

    def result(self) -> None:
        """Raise the job's error, or WorkerDiedError. Call it when `future` is done."""

    def is_waiting(self) -> bool:
        """Say whether it waits for a free machine."""

    def pids(self) -> list[int]:
        """Return its process ids on this machine."""

    def end(self) -> None:
        """End it if it has not ended, and wait until its locks are free."""


class Backend(Protocol):
    """A source of processes."""

    def start(self, job: Job, slot: WorkerSlot) -> Process:
        """Start a process that does a job."""
