"""Run a sweep: one process per device, started again when it dies, until the ledger says that the budget is spent."""

import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import ENOSPC
from functools import partial
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from search.artifacts import Artifacts, remove_checkpoints, remove_weights
from search.backends import Backend, LokyBackend
from search.ledger import Ledger
from search.tracking import Tracking
from search.watch import TICK_SECONDS, Worker, give_up_stuck, kill_stopped, look_after, rests
from search.worker import Objective, Place, work

__all__ = ["Limits", "TimeUpError", "places", "run_sweep", "sole_owner", "stop_by_signals"]

LOOK_SECONDS = 3.0  # how often places without a worker are looked at
SHARE = 0.003  # of one core, for looking at the ledger and showing what is there
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
    limits: Limits = NO_LIMITS,
    backend: Backend = LOKY,
) -> None:
    """Keep a worker at each place while there is a trial for it, until every trial of the budget has ended.

    For the main thread, where signals are handled. `show` is called at once where a worker ends, else every few
    seconds. Raises what a worker raises about its machine (OSError), and TimeUpError.
    Kill anything at any time, this process included: the same call goes on where the ledger stands.
    """
    removed: set[int] = set()
    resting: dict[Place, int] = {}  # where memory was too little beside others, until that trial has ended
    store = Artifacts(ledger.sweep.artifacts) if ledger.sweep.artifacts else None
    _tidy(ledger, store)
    workers: list[Worker] = []
    start = partial(_start, workers, ledger, objective, tracking, backend)
    looked = -LOOK_SECONDS
    over = threading.Event()
    threading.Thread(target=kill_stopped, args=(workers, over), daemon=True).start()
    try:
        pause = TICK_SECONDS
        while ledger.num_unfinished():
            now, spent = time.monotonic(), time.thread_time()
            _require_time(limits)
            if now - looked > LOOK_SECONDS:  # places are idle at the start, and when others left a trial behind
                looked, taken = now, {worker.place for worker in workers}
                idle = [place for place in where if place not in taken and not rests(place, resting, ledger)]
                for place in idle[: ledger.num_free()] if idle else ():
                    start(place)
            watched = _watch(workers, pause, limits)
            show()
            remove_weights(ledger.sweep, ledger.trials(), removed, store)
            if limits.trial is not None:
                give_up_stuck(workers, ledger, limits.trial, watched)
            for worker in workers[:]:
                look_after(worker, workers, ledger, start, resting)
            pause = min(max(TICK_SECONDS, (time.thread_time() - spent) / SHARE), MAX_PAUSE)
        ending = [worker.process.future for worker in workers if not worker.process.is_waiting()]
        wait(ending, tracking.patience + TICK_SECONDS if tracking else TICK_SECONDS)
        show()
        _tidy(ledger, store)
        remove_weights(ledger.sweep, ledger.trials(), removed, store)
    finally:
        over.set()
        _kill(workers)


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

    Where it is `shared`, its ledger on a server, commands on other machines may come to help.
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


def _start(
    workers: list[Worker],
    ledger: Ledger,
    objective: Objective,
    tracking: Tracking | None,
    backend: Backend,
    place: Place,
    false_starts: int = 0,
) -> None:
    owner = replace(ledger.owner, process=uuid.uuid4().hex)
    job = partial(work, ledger.sweep, owner, objective, tracking)
    with _undisturbed():  # a process that is in no list would outlive this one
        workers.append(Worker(place, owner.process, backend.start(job, place), false_starts))


def _kill(workers: Sequence[Worker]) -> None:
    """End every worker at once, undisturbed by a second Ctrl-C; what they held stays in the ledger."""
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


def _tidy(ledger: Ledger, store: Artifacts | None) -> None:
    """Remove the checkpoints that a process that died between telling a result and tidying up left."""
    for trial in ledger.trials():
        if trial.state.is_finished():
            remove_checkpoints(ledger.sweep.trial_folder(trial.number))
            if store:
                store.remove(trial, "checkpoint")
