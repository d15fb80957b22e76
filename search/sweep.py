"""Run a sweep: one process per device, started again when it dies, until the ledger says that the budget is spent."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSPC
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from search.ledger import Ledger
from search.study import Sweep
from search.tracking import Tracking
from search.worker import CHECKPOINT, Objective, Place, die_with, work

__all__ = ["places", "run_sweep", "sole_owner"]

TICK_SECONDS = 0.5  # how often the view is drawn and the workers are looked at
# Where this process is killed, loky's tracker would list what it cleans up, in the middle of what comes next.
QUIET = "ignore::UserWarning:joblib.externals.loky.backend.resource_tracker"
MAX_FALSE_STARTS = 5  # deaths in a row of one place's workers before they took a trial


@dataclass
class _Worker:
    """A place and the process that works there; an executor of its own, so that no death touches another."""

    place: Place
    executor: ProcessPoolExecutor
    future: Future[None]
    false_starts: int  # how many before it died without having taken a trial


def places(devices: Sequence[str], num_workers: int, num_cores: int) -> list[Place]:
    """Deal workers onto devices in turn and share out the cores among them."""
    threads = max(1, num_cores // num_workers)
    return [Place(slot, devices[slot % len(devices)], threads) for slot in range(num_workers)]


def run_sweep(
    ledger: Ledger,
    objective: Objective,
    where: Sequence[Place],
    show: Callable[[], None],
    tracking: Tracking | None = None,
) -> None:
    """Keep a worker at each place until every trial of the budget has ended; call `show` about twice a second.

    Raises what a worker raises about its machine (OSError). Kill anything at any time, this process included: the
    same call goes on where the ledger stands.
    """
    _remove_checkpoints(ledger)
    start: Callable[..., _Worker] = partial(_start, ledger.sweep, objective, tracking)
    workers: list[_Worker] = []
    try:
        while left := ledger.num_unfinished():
            if not workers:  # at the start, or when a trial was left behind after our last worker had gone
                workers.extend(start(place) for place in where[:left])
            wait([worker.future for worker in workers], TICK_SECONDS, FIRST_COMPLETED)
            show()
            for index in reversed(range(len(workers))):
                workers[index : index + 1] = _look_after(workers[index], ledger, start)
        wait([worker.future for worker in workers], tracking.patience + TICK_SECONDS if tracking else 0)
    finally:
        _kill(workers)


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Hold the sweep of `folder` against a second command on this machine. Raises ValueError when there is one."""
    lock = FileLock(folder / "sweep.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(f"{folder} is being swept by another process; wait for it or give another --name") from error
    except OSError as error:
        if error.errno == ENOSPC:
            raise
        raise ValueError(f"{folder} cannot be written ({error.strerror}); run from a folder that can") from error
    try:
        yield
    finally:
        lock.release()


def _start(
    sweep: Sweep, objective: Objective, tracking: Tracking | None, place: Place, false_starts: int = 0
) -> _Worker:
    threads = {name: str(place.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.setdefault("PYTHONWARNINGS", QUIET)
    # Watched from the first moment on: a process that was never given its task would wait for it for ever.
    executor = ProcessPoolExecutor(max_workers=1, env=threads, initializer=die_with, initargs=(os.getpid(),))
    # Ctrl-C reaches the whole process group, and the parent decides: the child inherits a mask that blocks it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        future = executor.submit(work, sweep, objective, place, tracking)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _Worker(place, executor, future, false_starts)


def _kill(workers: Sequence[_Worker]) -> None:
    """End every worker at once, undisturbed by a second Ctrl-C; what they held stays in the ledger."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    for worker in workers:
        worker.executor.shutdown(wait=True, kill_workers=True)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remove_checkpoints(ledger: Ledger) -> None:
    """Remove what a process that died between telling a result and tidying up left."""
    for trial in ledger.trials():
        if trial.state.is_finished():
            (ledger.sweep.trial_folder(trial.number) / CHECKPOINT).unlink(missing_ok=True)


def _look_after(worker: _Worker, ledger: Ledger, start: Callable[..., _Worker]) -> list[_Worker]:
    """Return the worker while it works, its successor when it died, nothing when it found no more to do."""
    if not worker.future.done():
        return [worker]
    try:
        worker.future.result()
    except BrokenProcessPool as error:
        worker.executor.shutdown(wait=True, kill_workers=True)
        false_starts = 0 if ledger.count_death(worker.place.slot) else worker.false_starts + 1
        if false_starts >= MAX_FALSE_STARTS:
            message = f"the worker on {worker.place.device} died {false_starts} times before it took a trial"
            raise RuntimeError(message) from error
        return [start(worker.place, false_starts)]
    worker.executor.shutdown(wait=True)
    return []
