"""Run a sweep: one process per device, started again when it dies, until the ledger says that the budget is spent."""

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import ENOSPC
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial

from search.artifacts import Artifacts, remove_checkpoints, remove_weights
from search.backends import Backend, LokyBackend, Process, WorkerDiedError
from search.ledger import Ledger
from search.tracking import Tracking
from search.worker import Objective, Place, work

__all__ = ["Limits", "TimeUpError", "places", "run_sweep", "sole_owner"]

TICK_SECONDS = 0.5  # how often the view is drawn and the workers are looked at
LOOK_SECONDS = 3.0  # how often places without a worker are looked at
STOPPED_SECONDS = 20.0  # how long a worker may be stopped by a signal
STOPS = (signal.SIGINT, signal.SIGTERM)  # what a person sends
MAX_FALSE_STARTS = 5  # deaths in a row of one place's workers before they took a trial


class TimeUpError(Exception):
    """The time that the user gave the sweep is over."""

    def __str__(self) -> str:
        return "its time is over"


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds; None: as long as they like."""

    until: float | None = None  # time.monotonic() at which the whole command ends
    trial: float | None = None  # that a trial may go without an epoch coming to its end


@dataclass
class _Worker:
    """A place and the process that works there."""

    place: Place
    id: str  # by which the ledger knows the process
    process: Process
    false_starts: int  # how many before it died without having taken a trial
    at: tuple[int, int] | None = None  # the trial and its epoch that it was last seen at
    idle: float = 0.0  # seconds that were watched since then
    stopped: float = 0.0  # seconds that it was watched to be stopped by a signal, until it was killed for that
    verdict: tuple[FrozenTrial, str, str] | None = None  # its trial is to be given up: which, whose, why


NO_LIMITS = Limits()
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

    For the main thread, where signals are handled. `show` is called about twice a second. Raises what a worker raises
    about its machine (OSError), and TimeUpError.
    Kill anything at any time, this process included: the same call goes on where the ledger stands.
    """
    removed: set[int] = set()
    resting: dict[Place, int] = {}  # where memory was too little beside others, until that trial has ended
    store = Artifacts(ledger.sweep.artifacts) if ledger.sweep.artifacts else None
    _tidy(ledger, store)
    workers: list[_Worker] = []
    start = partial(_start, workers, ledger, objective, tracking, backend)
    looked = -LOOK_SECONDS
    over = threading.Event()
    threading.Thread(target=_kill_stopped, args=(workers, over), daemon=True).start()
    try:
        while ledger.num_unfinished():
            now = time.monotonic()
            if limits.until is not None and now > limits.until:
                raise TimeUpError
            if now - looked > LOOK_SECONDS:  # places are idle at the start, and when others left a trial behind
                looked, taken = now, {worker.place for worker in workers}
                idle = [place for place in where if place not in taken and not _rests(place, resting, ledger)]
                for place in idle[: ledger.num_free()] if idle else ():
                    start(place)
            if workers:
                wait([worker.process.future for worker in workers], TICK_SECONDS, FIRST_COMPLETED)
            else:
                time.sleep(TICK_SECONDS)
            show()
            remove_weights(ledger.sweep, ledger.trials(), removed, store)
            if limits.trial is not None:
                _give_up_stuck(workers, ledger, limits.trial, time.monotonic() - now)
            for worker in workers[:]:
                _look_after(worker, workers, ledger, start, resting)
        ending = [worker.process.future for worker in workers if not worker.process.is_waiting()]
        wait(ending, tracking.patience + TICK_SECONDS if tracking else TICK_SECONDS)
        show()
        _tidy(ledger, store)
        remove_weights(ledger.sweep, ledger.trials(), removed, store)
    finally:
        over.set()
        _kill(workers)


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
    workers: list[_Worker],
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
        workers.append(_Worker(place, owner.process, backend.start(job, place), false_starts))


def _kill(workers: Sequence[_Worker]) -> None:
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


def _kill_stopped(workers: Sequence[_Worker], over: threading.Event) -> None:
    """Kill workers that stay stopped (SIGSTOP), until it is `over`; killed before anybody else gets their trial.

    In a thread of its own: what they hold, the ledger's lock for one, may be what the main thread waits for.
    """
    while not over.wait(TICK_SECONDS):
        for worker in list(workers):
            if worker.stopped <= STOPPED_SECONDS:
                pids = _stopped_pids(worker)
                worker.stopped = worker.stopped + TICK_SECONDS if pids else 0.0
                if worker.stopped > STOPPED_SECONDS:
                    for pid in pids:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)


def _give_up_stuck(workers: Sequence[_Worker], ledger: Ledger, limit: float, seconds: float) -> None:
    """End workers none of whose epochs ended in all the time in which this process was there to watch them."""
    seconds = min(seconds, 2 * TICK_SECONDS)  # this process may have been stopped too
    for worker in workers:
        trial = None if worker.verdict else ledger.held_by(worker.id)
        at = (trial.number, trial.last_step or 0) if trial else None
        worker.idle = worker.idle + seconds if at == worker.at else 0.0
        worker.at = at
        if trial and worker.idle > limit:
            worker.process.end()
            reason = f"no progress for {limit:g} s in epoch {(trial.last_step or 0) + 1} (--trial-timeout)"
            worker.verdict = trial, worker.id, reason


def _stopped_pids(worker: _Worker) -> list[int]:
    """Return the worker's processes that are stopped by a signal; none where the system does not tell."""
    pids = []
    for pid in worker.process.pids():
        with suppress(OSError, IndexError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                pids.append(pid)
    return pids


def _look_after(
    worker: _Worker,
    workers: list[_Worker],
    ledger: Ledger,
    start: Callable[..., None],
    resting: dict[Place, int],
) -> None:
    """Give a worker that died a successor, and dismiss one that found no more to do, or memory for all but itself."""
    if worker.verdict:
        if not ledger.give_up(*worker.verdict):
            return  # its lock is not free yet: asked again soon
    elif not worker.process.future.done():
        return
    successor = None
    try:
        if not worker.verdict:
            worker.process.result()
    except WorkerDiedError as death:
        if starved := _starved_beside_others(worker, workers, ledger):
            resting[worker.place] = starved.number
            ledger.say(
                f"{ledger.sweep.label(starved)} found no memory on {worker.place.device} beside others; "
                "until it has ended, fewer workers go on there"
            )
        else:
            successor = partial(start, worker.place, _note_death(worker, ledger, death))
    worker.process.end()
    workers.remove(worker)
    if successor or worker.verdict:
        (successor or partial(start, worker.place))()


def _starved_beside_others(worker: _Worker, workers: Sequence[_Worker], ledger: Ledger) -> FrozenTrial | None:
    """Return the trial for which memory ran out while other workers had a share of the device's: it is not to blame."""
    device = worker.place.device
    if worker.place.alone or not any(w is not worker and w.place.device == device for w in workers):
        return None
    return ledger.starved(worker.id)


def _rests(place: Place, resting: dict[Place, int], ledger: Ledger) -> bool:
    """Say whether a place waits for the end of a trial that needs the room; on another machine it does not."""
    if place not in resting:
        return False
    trial = ledger.trials()[resting[place]]
    return not trial.state.is_finished() and ledger.ran_here(trial)


def _note_death(worker: _Worker, ledger: Ledger, death: WorkerDiedError) -> int:
    """Have the ledger count a death; return how many of the place's workers died in a row without a trial."""
    if worker.stopped > STOPPED_SECONDS:
        ledger.say(f"the worker on {worker.place.device} was stopped for {STOPPED_SECONDS:g} s; a new one goes on")
        return 0
    if ledger.count_death(worker.id, death.how, death.machine) or death.machine:
        return 0
    if worker.false_starts + 1 >= MAX_FALSE_STARTS:
        message = f"the worker on {worker.place.device} died {MAX_FALSE_STARTS} times before it took a trial"
        raise RuntimeError(message) from death
    return worker.false_starts + 1
