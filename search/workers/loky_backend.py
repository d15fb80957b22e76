"""Worker processes on this machine, started by loky."""

import os
import re

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool, ShutdownExecutorError

from search.task import WorkerSlot
from search.workers.backend import Job, Process, WorkerDiedError
from search.workers.process import initialize

# If this process is killed, loky's resource tracker would print its clean-up into the output of the next command.
QUIET = "ignore::UserWarning:joblib.externals.loky.backend.resource_tracker"


class LokyBackend:
    def start(self, job: Job, slot: WorkerSlot) -> Process:
        return _LokyProcess(job, slot)


class _LokyProcess:
    """One executor per process, so that a death affects no other worker."""

    def __init__(self, job: Job, slot: WorkerSlot) -> None:
        threads = {name: str(slot.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        os.environ.setdefault("PYTHONWARNINGS", QUIET)
        # The initializer runs before the job arrives: else a process whose parent died before that would wait for ever.
        self.executor = ProcessPoolExecutor(max_workers=1, env=threads, initializer=initialize, initargs=(os.getpid(),))
        self.future = self.executor.submit(job, slot)

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
        self.executor.shutdown(wait=True, kill_workers=not is_done)


def _cause(text: str) -> str:
    signals = re.findall(r"(SIG[A-Z]+)", text)
    if not signals:
        return ""
    why = ", as the system does when memory is short" if signals[0] == "SIGKILL" else ""
    return f" by {signals[0]}{why}"
