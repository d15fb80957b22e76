"""How a worker's process is started, watched and ended: by loky on this machine; cluster.py does it with Ray."""

import os
import re
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool, ShutdownExecutorError

from search.task import WorkerSlot
from search.workers.process import begin

__all__ = ["Backend", "Job", "LokyBackend", "Process", "WorkerDiedError"]

# Where this process is killed, loky's tracker would list what it cleans up, in the middle of what comes next.
QUIET = "ignore::UserWarning:joblib.externals.loky.backend.resource_tracker"

Job = Callable[[WorkerSlot], None]
"""All that a worker does, at the slot that it is told."""


class WorkerDiedError(Exception):
    """A worker's process has gone before its job was done."""

    def __init__(self, how: str = "", machine: str = "") -> None:
        super().__init__(f"the worker died{how}")
        self.how = how  # what follows "died" in a sentence
        self.machine = machine  # that went with it, or out of reach: its trial is not to blame


class Process(Protocol):
    """A process that does one job."""

    future: Future[None]  # done when the process is

    def result(self) -> None:
        """Raise what the job raised, or WorkerDiedError; call it when `future` is done."""

    def is_waiting(self) -> bool:
        """Say whether there is no room for it yet."""

    def pids(self) -> list[int]:
        """Return its processes on this machine."""

    def end(self) -> None:
        """End it if it has not ended, and wait until it holds nothing any more."""


class Backend(Protocol):
    """Where processes come from."""

    def start(self, job: Job, slot: WorkerSlot) -> Process:
        """Start a process that does a job."""


class LokyBackend:
    """Processes of this machine."""

    def start(self, job: Job, slot: WorkerSlot) -> Process:
        return _LokyProcess(job, slot)


class _LokyProcess:
    """An executor of its own for each process, so that no death touches another."""

    def __init__(self, job: Job, slot: WorkerSlot) -> None:
        threads = {name: str(slot.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        os.environ.setdefault("PYTHONWARNINGS", QUIET)
        # Watched from the first moment on: a process that was never given its context would wait for it for ever.
        self.executor = ProcessPoolExecutor(max_workers=1, env=threads, initializer=begin, initargs=(os.getpid(),))
        self.future: Future[None] = self.executor.submit(job, slot)

    def result(self) -> None:
        try:
            self.future.result()
        except (BrokenProcessPool, ShutdownExecutorError) as error:
            raise WorkerDiedError(_cause(str(error))) from error

    def is_waiting(self) -> bool:
        return False

    def pids(self) -> list[int]:
        return list(self.executor._processes or ())  # noqa: SLF001 - loky has no public name for them

    def end(self) -> None:
        well = self.future.done() and not self.future.exception()
        self.executor.shutdown(wait=True, kill_workers=not well)


def _cause(text: str) -> str:
    signals = re.findall(r"(SIG[A-Z]+)", text)
    if not signals:
        return ""
    why = ", as the system does when memory is short" if signals[0] == "SIGKILL" else ""
    return f" by {signals[0]}{why}"
