"""Run a sweep: one process per device, started again when it dies, until the study says that the budget is spent."""

import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from errno import ENOSPC
from functools import partial
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from search.study.queue import num_free
from search.study.shared_study import SharedStudy
from search.task import Task, WorkerSlot
from search.workers.artifacts import Artifacts, remove_checkpoints, remove_weights
from search.workers.liveness import TICK_SECONDS, Worker, give_up_stuck, kill_stopped, look_after, rests
from search.workers.loky_backend import Backend, LokyBackend
from search.workers.tracking import Tracking
from search.workers.worker import Part, work

__all__ = [
    "Limits",
    "TimeUpError",
    "WorkerPool",
    "run_sweep",
    "sole_owner",
    "stop_by_signals",
    "worker_pool",
    "worker_slots",
]

LOOK_SECONDS = 3.0  # how often worker_slots without a worker are looked at
SHARE = 0.003  # of one core, for looking at the study and showing what is there
MAX_PAUSE = 5.0  # seconds between two looks, whatever they cost
STOPS = (signal.SIGINT, signal.SIGTERM)  # what a person sends


class TimeUpError(Exception):
    """The time that the user gave the sweep is over."""

    def __str__(self) -> str:
        return "its time is over"


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds; None: as long as they like."""

    until: float | None = None  # time.monotonic() at which the whole command ends
    trial: float | None = None  # that a trial may go without an epoch coming to its end


NO_LIMITS = Limits()
ASKED_TO_STOP = threading.Event()  # by a signal
LOKY = LokyBackend()


def worker_slots(devices: Sequence[str], num_workers: int, num_cores: int) -> list[WorkerSlot]:
    """Deal workers onto devices in turn and share out the cores among them."""
    threads = max(1, num_cores // num_workers)
    return [WorkerSlot(slot, devices[slot % len(devices)], threads) for slot in range(num_workers)]


@dataclass(frozen=True)
class WorkerPool:
    """Workers at their worker_slots, for all parts of a sweep; `worker_pool` makes it, and ends them."""

    parts: Sequence[tuple[SharedStudy, Tracking | None]]  # the first that has a trial left is worked on
    task: Task
    where: Sequence[WorkerSlot]
    limits: Limits
    backend: Backend
    workers: list[Worker] = field(default_factory=list)
    resting: dict[WorkerSlot, tuple[SharedStudy, int]] = field(
        default_factory=dict
    )  # until the end of a trial short of memory

    @property
    def studies(self) -> list[SharedStudy]:
        return [study for study, _ in self.parts]

    def complete(self, study: SharedStudy, show: Callable[[], None]) -> None:
        """Keep a worker at each slot while there is something for it, until every trial of one part has ended.

        For the main thread, where signals are handled. `show` is called at once where a worker ends, else every few
        seconds. Raises what a worker raises about its machine (OSError), and TimeUpError; the workers are ended then.
        """
        removed: set[int] = set()
        store, looked, pause = _store_of(study), -LOOK_SECONDS, TICK_SECONDS
        try:
            while study.num_unfinished():
                now, spent = time.monotonic(), time.thread_time()
                _require_time(self.limits)
                if now - looked > LOOK_SECONDS:
                    looked = now
                    self._fill_idle_places()
                watched = _watch(self.workers, pause, self.limits)
                show()
                remove_weights(study.sweep, study.trials(), removed, store)
                if self.limits.trial is not None:
                    give_up_stuck(self.workers, self.studies, self.limits.trial, watched)
                for worker in self.workers[:]:
                    look_after(worker, self.workers, self.studies, self._start, self.resting)
                pause = min(max(TICK_SECONDS, (time.thread_time() - spent) / SHARE), MAX_PAUSE)
            show()
            remove_weights(study.sweep, study.trials(), removed, store)
        except BaseException:
            _kill(self.workers)
            raise

    def _fill_idle_places(self) -> None:
        """Start workers where there are none: at the start, and when others left a trial behind."""
        taken = {worker.slot for worker in self.workers}
        idle = [slot for slot in self.where if slot not in taken and not rests(slot, self.resting)]
        for slot in idle[: sum(num_free(study) for study in self.studies)] if idle else ():
            self._start(slot)

    def _start(self, slot: WorkerSlot, false_starts: int = 0) -> None:
        owner = replace(self.studies[0].owner, process=uuid.uuid4().hex)
        parts = [Part(study.sweep, tracking) for study, tracking in self.parts]
        job = partial(work, parts, owner, self.task)
        with _undisturbed():  # a process that is in no list would outlive this one
            self.workers.append(Worker(slot, owner.process, self.backend.start(job, slot), false_starts))


@contextmanager
def worker_pool(
    parts: Sequence[tuple[SharedStudy, Tracking | None]],
    task: Task,
    where: Sequence[WorkerSlot],
    limits: Limits = NO_LIMITS,
    backend: Backend = LOKY,
) -> Iterator[WorkerPool]:
    """Have workers for a sweep: its search first, then its confirmation, on which nobody waits for the search's end.

    Kill anything at any time, this process included: the same calls go on where the studies stand.
    """
    pool = WorkerPool(parts, task, where, limits, backend)
    _tidy(pool.studies)
    over = threading.Event()
    threading.Thread(target=kill_stopped, args=(pool.workers, over), daemon=True).start()
    try:
        yield pool
        ending = [worker.process.future for worker in pool.workers if not worker.process.is_waiting()]
        wait(ending, max([0.0, *(tracking.patience for _, tracking in parts if tracking)]) + TICK_SECONDS)
        _tidy(pool.studies)
    finally:
        over.set()
        _kill(pool.workers)


def run_sweep(
    study: SharedStudy,
    task: Task,
    where: Sequence[WorkerSlot],
    show: Callable[[], None],
    tracking: Tracking | None = None,
    limits: Limits = NO_LIMITS,
    backend: Backend = LOKY,
) -> None:
    """Keep a worker at each slot while there is a trial for it, until every trial of the budget has ended.

    As `WorkerPool.complete`, for one part alone.
    """
    with worker_pool([(study, tracking)], task, where, limits, backend) as pool:
        pool.complete(study, show)


def _watch(workers: Sequence[Worker], seconds: float, limits: Limits) -> float:
    """Wait until a worker ends, or for some seconds; return those in which this process was there to watch.

    Raises what ends the whole command.
    """
    watched, until = 0.0, time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        _require_time(limits)
        futures = [worker.process.future for worker in workers if not worker.verdict]
        if not futures:
            time.sleep(TICK_SECONDS)
        ended = futures and wait(futures, min(TICK_SECONDS, until - now), FIRST_COMPLETED).done
        watched += min(time.monotonic() - now, 2 * TICK_SECONDS)  # it may have been stopped
        if ended:
            break
    return watched


def _require_time(limits: Limits) -> None:
    if ASKED_TO_STOP.is_set():
        raise KeyboardInterrupt
    if limits.until is not None and time.monotonic() > limits.until:
        raise TimeUpError


def stop_by_signals() -> None:
    """Have Ctrl-C and SIGTERM raise KeyboardInterrupt, at the latest within `run_sweep`.

    Python drops what a handler raises where it interrupts a finalizer or a callback of a weak reference.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        ASKED_TO_STOP.set()
        signal.default_int_handler(number, frame)

    ASKED_TO_STOP.clear()
    for number in STOPS:
        signal.signal(number, stop)


@contextmanager
def sole_owner(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the sweep of `folder` against a second command. Raises ValueError when there is one.

    Where it is `shared`, its study on a server, commands on other machines may come to help.
    """
    lock = FileLock(folder / (f"sweep-{socket.gethostname()}.lock" if shared else "sweep.lock"))
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


def _kill(workers: Sequence[Worker]) -> None:
    """End every worker at once, undisturbed by a second Ctrl-C; what they held stays in the study."""
    with _undisturbed():
        for worker in workers:
            worker.process.end()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Have signals wait. To block them does for this thread and what it starts; another thread may still take one."""
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOPS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _store_of(study: SharedStudy) -> Artifacts | None:
    return Artifacts(study.sweep.artifacts) if study.sweep.artifacts else None


def _tidy(studies: Sequence[SharedStudy]) -> None:
    """Remove the checkpoints that a process that died between telling a result and tidying up left."""
    for study in studies:
        store = _store_of(study)
        for trial in study.trials():
            if trial.state.is_finished():
                remove_checkpoints(study.sweep.trial_folder(trial.number))
                if store:
                    store.remove(trial, "checkpoint")
