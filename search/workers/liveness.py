"""Find workers that are stopped, stuck, dead or short of memory, and decide about the trials that they held."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil

from search.study.deaths import count_death, give_up, held_by, starved_trial
from search.study.shared_study import SharedStudy
from search.task import WorkerSlot
from search.workers.backend import Process, WorkerDiedError

TICK_SECONDS = 0.5  # between two checks of the workers
STOPPED_SECONDS = 20.0  # after which a worker stopped by a signal is killed
MAX_FALSE_STARTS = 5  # deaths in a row in one slot, each before a trial was acquired


@dataclass
class Worker:
    """A worker's process, and for how long it has made no progress."""

    slot: WorkerSlot
    id: str  # of the process, in the study
    process: Process
    false_starts: int  # predecessors in a row that died before they acquired a trial
    position: tuple[str, int, int] | None = None  # part, trial and epoch at the last check
    idle_seconds: float = 0.0  # observed at this position
    stopped_seconds: float = 0.0  # observed stopped by a signal; it is killed after STOPPED_SECONDS
    give_up: Callable[[], bool] | None = None  # set if it was stuck: fails its trial; False while that is locked

    def has_ended(self) -> bool:
        """Say whether the process has ended; if it was stuck, whether its trial is settled, too."""
        return self.give_up() if self.give_up else self.process.future.done()


def kill_stopped(workers: Sequence[Worker], is_over: threading.Event) -> None:
    """Kill workers that stay stopped (SIGSTOP), before others resume their trials, until `is_over` is set.

    Run it in a thread of its own: the main thread may wait for a lock that a stopped worker holds.
    """
    while not is_over.wait(TICK_SECONDS):
        for worker in list(workers):
            if worker.stopped_seconds <= STOPPED_SECONDS:
                stopped = list(_stopped_processes(worker))
                worker.stopped_seconds = worker.stopped_seconds + TICK_SECONDS if stopped else 0.0
                if worker.stopped_seconds > STOPPED_SECONDS:
                    for process in stopped:
                        with suppress(psutil.Error):
                            process.kill()


def _stopped_processes(worker: Worker) -> Iterator[psutil.Process]:
    for pid in worker.process.pids():
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_STOPPED:
                yield process


def give_up_stuck(workers: Sequence[Worker], studies: Sequence[SharedStudy], limit: float, seconds: float) -> None:
    """End workers that ended no epoch in `limit` observed seconds, `seconds` of them since the last call."""
    for worker in workers:
        if worker.give_up:
            continue
        held = next(((study, trial) for study in studies if (trial := held_by(study, worker.id))), None)
        position = (held[0].sweep.part, held[1].number, held[1].last_step or 0) if held else None
        worker.idle_seconds = worker.idle_seconds + seconds if position == worker.position else 0.0
        worker.position = position
        if held and worker.idle_seconds > limit:
            study, trial = held
            worker.process.end()
            reason = f"no progress for {limit:g} s in epoch {(trial.last_step or 0) + 1} (--trial-timeout)"
            worker.give_up = partial(give_up, study, trial, worker.id, reason)


def starved_beside_others(
    worker: Worker, workers: Sequence[Worker], studies: Sequence[SharedStudy]
) -> tuple[SharedStudy, int] | None:
    """Return the trial that ran out of memory while other workers shared the device: this does not count as a death."""
    device = worker.slot.device
    if worker.slot.alone or not any(other is not worker and other.slot.device == device for other in workers):
        return None
    for study in studies:
        if starved := starved_trial(study, worker.id):
            what = f"{study.sweep.label(starved)} ran out of memory on {device}, which other workers share"
            study.say(f"{what}; fewer workers run there until it has ended")
            return study, starved.number
    return None


def is_paused(slot: WorkerSlot, paused: dict[WorkerSlot, tuple[SharedStudy, int]]) -> bool:
    """Say whether a slot stays empty until a trial on this machine that needs its memory has ended."""
    if slot not in paused:
        return False
    study, number = paused[slot]
    trial = study.trials()[number]
    return not trial.state.is_finished() and study.ran_here(trial)


def note_death(worker: Worker, studies: Sequence[SharedStudy], death: WorkerDiedError) -> int:
    """Count a death in the studies. Return the number of false starts in a row in this slot.

    Raises RuntimeError after too many.
    """
    if worker.stopped_seconds > STOPPED_SECONDS:
        studies[0].say(f"the worker on {worker.slot.device} was stopped for {STOPPED_SECONDS:g} s and is replaced")
        return 0
    had_trial = [count_death(study, worker.id, death.how, death.machine) for study in studies]
    if any(had_trial) or death.machine:
        return 0
    if worker.false_starts + 1 >= MAX_FALSE_STARTS:
        message = f"the worker on {worker.slot.device} died {MAX_FALSE_STARTS} times before it acquired a trial"
        raise RuntimeError(message) from death
    return worker.false_starts + 1
