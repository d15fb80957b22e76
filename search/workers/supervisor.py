"""Run a sweep: one process per worker slot, replaced when it dies, until every trial of the budget has ended."""

import math
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

from filelock import FileLock, Timeout

from search.durable import what_blocks
from search.study.queue import num_free
from search.study.shared_study import SharedStudy
from search.task import Task, WorkerSlot
from search.workers import liveness
from search.workers.artifacts import open_artifacts, remove_checkpoints, remove_weights
from search.workers.backend import Backend, WorkerDiedError
from search.workers.liveness import TICK_SECONDS, Worker
from search.workers.loky_backend import LokyBackend
from search.workers.signals import deferred_signals, raise_if_stopped
from search.workers.tracking import Tracking
from search.workers.worker import Part, work

FILL_SECONDS = 3.0  # between two checks of the empty slots
CPU_SHARE = 0.003  # of one core, for reading the study and showing it
MAX_PAUSE_SECONDS = 5.0  # between two readings, whatever they cost


class TimeUpError(Exception):
    """The time limit of the whole command is reached."""


@dataclass(frozen=True)
class Limits:
    """Time limits, in seconds; None: no limit."""

    until: float | None = None  # time.monotonic() at which the whole command ends
    trial: float | None = None  # that a trial may run without ending an epoch

    def check(self) -> None:
        """Raise KeyboardInterrupt after a signal to stop, and TimeUpError when the command's time is over."""
        raise_if_stopped()
        if self.until is not None and time.monotonic() > self.until:
            raise TimeUpError("its time is over")


NO_LIMITS = Limits()
LOKY = LokyBackend()


def worker_slots(devices: Sequence[str], num_workers: int, num_cores: int) -> list[WorkerSlot]:
    """Assign workers to devices in turn and divide the cores among them."""
    threads = max(1, num_cores // num_workers)
    return [WorkerSlot(index, devices[index % len(devices)], threads) for index in range(num_workers)]


@dataclass(frozen=True)
class WorkerPool:
    """The workers of a sweep, shared by its parts. `worker_pool` creates it and ends the workers."""

    parts: Sequence[tuple[SharedStudy, Tracking | None]]  # workers train trials of the first part that has any
    task: Task
    slots: Sequence[WorkerSlot]
    limits: Limits
    backend: Backend
    workers: list[Worker] = field(default_factory=list)
    paused: dict[WorkerSlot, tuple[SharedStudy, int]] = field(default_factory=dict)  # until a trial has ended

    @property
    def studies(self) -> list[SharedStudy]:
        return [study for study, _ in self.parts]

    def complete(self, study: SharedStudy, show: Callable[[], None]) -> None:
        """Keep a worker in each slot, as long as there are trials, until every trial of one part has ended.

        Call it in the main thread, which handles signals. Calls `show` when a worker ends, else every few seconds.
        Raises a worker's error about its machine (OSError), and TimeUpError, after it has ended all workers.
        """
        removed: set[int] = set()
        store, filled, pause = open_artifacts(study.sweep), -math.inf, TICK_SECONDS
        try:
            while study.num_unfinished():
                cpu_seconds = time.thread_time()
                self.limits.check()
                if time.monotonic() - filled > FILL_SECONDS:
                    filled = time.monotonic()
                    self._fill_slots()
                observed_seconds = _wait_for_end(self.workers, pause, self.limits)
                show()
                remove_weights(study.sweep, study.trials(), removed, store)
                if self.limits.trial is not None:
                    liveness.give_up_stuck(self.workers, self.studies, self.limits.trial, observed_seconds)
                for worker in self.workers[:]:
                    self._replace_if_ended(worker)
                cpu_seconds = time.thread_time() - cpu_seconds
                pause = min(max(TICK_SECONDS, cpu_seconds / CPU_SHARE), MAX_PAUSE_SECONDS)
            show()
            remove_weights(study.sweep, study.trials(), removed, store)
        except BaseException:
            _end_all(self.workers)
            raise

    def _fill_slots(self) -> None:
        """Start workers in empty slots: at first, and later if another command left a trial behind."""
        occupied = {worker.slot for worker in self.workers}
        empty = [slot for slot in self.slots if slot not in occupied and not liveness.is_paused(slot, self.paused)]
        for slot in empty[: sum(num_free(study) for study in self.studies)] if empty else ():
            self._start(slot)

    def _start(self, slot: WorkerSlot, false_starts: int = 0) -> None:
        owner = replace(self.studies[0].owner, process=uuid.uuid4().hex)
        job = partial(work, [Part(study.sweep, tracking) for study, tracking in self.parts], owner, self.task)
        with deferred_signals():  # a process that is not in the list would never be ended
            self.workers.append(Worker(slot, owner.process, self.backend.start(job, slot), false_starts))

    def _replace_if_ended(self, worker: Worker) -> None:
        if not worker.has_ended():
            return
        false_starts = self._false_starts_after(worker)
        worker.process.end()
        self.workers.remove(worker)
        if false_starts is not None:
            self._start(worker.slot, false_starts)

    def _false_starts_after(self, worker: Worker) -> int | None:
        """Return the false starts that an ended worker's successor begins with; None if it needs no successor."""
        if worker.give_up:
            return 0
        try:
            worker.process.result()
        except WorkerDiedError as death:
            if starved := liveness.starved_beside_others(worker, self.workers, self.studies):
                self.paused[worker.slot] = starved
                return None
            return liveness.note_death(worker, self.studies, death)
        return None  # it found no more trials


@contextmanager
def worker_pool(
    parts: Sequence[tuple[SharedStudy, Tracking | None]],
    task: Task,
    slots: Sequence[WorkerSlot],
    limits: Limits = NO_LIMITS,
    backend: Backend = LOKY,
) -> Iterator[WorkerPool]:
    """Provide workers for a sweep: idle ones start its confirmation before its search has ended.

    Any process may be killed at any time, this one included: the same calls then resume the sweep.
    """
    pool = WorkerPool(parts, task, slots, limits, backend)
    _remove_old_checkpoints(pool.studies)
    is_over = threading.Event()
    threading.Thread(target=liveness.kill_stopped, args=(pool.workers, is_over), daemon=True).start()
    try:
        yield pool
        ending = [worker.process.future for worker in pool.workers if not worker.process.is_waiting()]
        wait(ending, max((tracking.patience for _, tracking in parts if tracking), default=0.0) + TICK_SECONDS)
        _remove_old_checkpoints(pool.studies)
    finally:
        is_over.set()
        _end_all(pool.workers)


def run_sweep(
    study: SharedStudy,
    task: Task,
    slots: Sequence[WorkerSlot],
    show: Callable[[], None],
    tracking: Tracking | None = None,
    limits: Limits = NO_LIMITS,
    backend: Backend = LOKY,
) -> None:
    """Complete one part of a sweep, as `WorkerPool.complete` does."""
    with worker_pool([(study, tracking)], task, slots, limits, backend) as pool:
        pool.complete(study, show)


def _wait_for_end(workers: Sequence[Worker], seconds: float, limits: Limits) -> float:
    """Wait until a worker ends, for `seconds` at most. Return the seconds in which this process was not stopped."""
    observed, until = 0.0, time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        limits.check()
        futures = [worker.process.future for worker in workers if not worker.give_up]
        if not futures:
            time.sleep(TICK_SECONDS)
        ended = futures and wait(futures, min(TICK_SECONDS, until - now), FIRST_COMPLETED).done
        observed += min(time.monotonic() - now, 2 * TICK_SECONDS)  # more: this process was stopped
        if ended:
            break
    return observed


@contextmanager
def sole_owner(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Lock the sweep of `folder` against a second command. Raises ValueError if one is running.

    If its study is on a server (`shared`), commands on other machines may join.
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
        remedy = "make it writable, or run from a folder that can be written: runs/ belongs to the current directory"
        raise ValueError(what_blocks(folder) or f"{folder} cannot be written ({error.strerror}); {remedy}") from error
    try:
        yield
    finally:
        lock.release()


def _end_all(workers: Sequence[Worker]) -> None:
    """End every worker, even if a second Ctrl-C arrives. The study keeps their trials."""
    with deferred_signals():
        for worker in workers:
            worker.process.end()


def _remove_old_checkpoints(studies: Sequence[SharedStudy]) -> None:
    """Remove checkpoints of ended trials: a worker may have died between reporting a result and removing them."""
    for study in studies:
        store = open_artifacts(study.sweep)
        for trial in study.trials():
            if trial.state.is_finished():
                remove_checkpoints(study.sweep.trial_folder(trial.number))
                if store:
                    store.remove(trial, "checkpoint")
