"""Worker processes on this machine, started by loky."""

import os
import re
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool, ShutdownExecutorError

from search.task import WorkerSlot
from search.workers.backend import Job, Process, WorkerDiedError
from search.workers.process import initialize
from shell.environment import describe
from shell.redact import show_traceback

# If this process is killed, loky's resource tracker would print its clean-up into the output of the next command.
QUIET = "ignore::UserWarning:joblib.externals.loky.backend.resource_tracker"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps the semaphores of processes


class LokyBackend:
    def start(self, job: Job, slot: WorkerSlot) -> Process:
        threading.excepthook = _hand_over
        return _LokyProcess(job, slot)


class _LokyProcess:
    """One executor per process, so that a death affects no other worker."""

    def __init__(self, job: Job, slot: WorkerSlot) -> None:
        threads = {name: str(slot.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        os.environ.setdefault("PYTHONWARNINGS", QUIET)
        # The initializer runs before the job arrives: else a process whose parent died before that would wait for ever.
        start = {"env": threads, "initializer": initialize, "initargs": (os.getpid(),)}
        try:
            self.executor = ProcessPoolExecutor(max_workers=1, **start)
        except OSError as error:
            raise _not_started(error) from error
        try:
            self.future = self.executor.submit(job, slot)
        except (OSError, RuntimeError) as error:
            self._kill()
            raise _not_started(error) from error

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
        is_done = self.future.done() and not self.future.exception()
        if not is_done:
            self._kill()  # loky's thread, which does this too, may have failed
        self.executor.shutdown(wait=True, kill_workers=not is_done)

    def _kill(self) -> None:
        for process in list((self.executor._processes or {}).values()):  # noqa: SLF001 - see above
            if process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)


def _hand_over(failed: threading.ExceptHookArgs) -> None:
    """Give the error of a thread of loky's to who waits for its worker, which otherwise would be for ever."""
    work = getattr(failed.thread, "pending_work_items", None)
    if work is None or not failed.exc_value:
        show_traceback(failed.exc_type, failed.exc_value, failed.exc_traceback)
        return
    for item in work.values():
        if not item.future.done():
            item.future.set_exception(_not_started(failed.exc_value))


def _not_started(error: BaseException) -> OSError:
    """Return an error that says why a process could not be started, and the remedy."""
    is_closed = sys.platform == "linux" and not os.access(SHARED_MEMORY, os.W_OK | os.X_OK)
    remedy = f"{SHARED_MEMORY} cannot be written; mount it, or change its mode to 1777"
    return OSError(f"a worker process cannot be started: {remedy if is_closed else describe(error)}")


def _cause(text: str) -> str:
    signals = re.findall(r"(SIG[A-Z]+)", text)
    if not signals:
        return ""
    why = ", as the system does when memory is short" if signals[0] == "SIGKILL" else ""
    return f" by {signals[0]}{why}"
