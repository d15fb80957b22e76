"""What becomes of workers that are stopped, stuck, dead or short of memory, and of what they held."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from search.study.deaths import count_death, give_up, held_by, starved_trial
from search.study.shared_study import SharedStudy
from search.task import WorkerSlot
from search.workers.loky_backend import Process, WorkerDiedError

__all__ = ["TICK_SECONDS", "Worker", "give_up_stuck", "kill_stopped", "look_after", "rests"]

TICK_SECONDS = 0.5  # how often the workers are looked at
STOPPED_SECONDS = 20.0  # how long a worker may be stopped by a signal
MAX_FALSE_STARTS = 5  # deaths in a row of one slot's workers before they took a trial


@dataclass
class Worker:
    """A slot and the process that works there."""

    slot: WorkerSlot
    id: str  # by which the study knows the process
    process: Process
    false_starts: int  # how many before it died without having taken a trial
    at: tuple[str, int, int] | None = None  # part, trial and epoch that it was last seen at
    idle: float = 0.0  # seconds that were watched since then
    stopped: float = 0.0  # seconds that it was watched to be stopped by a signal, until it was killed for that
    verdict: Callable[[], bool] | None = None  # gives its trial up, if that is to be; False: not yet


def kill_stopped(workers: Sequence[Worker], over: threading.Event) -> None:
    """Kill workers that stay stopped (SIGSTOP), until it is `over`; killed before anybody else gets their trial.

    In a thread of its own: what they hold, the study's lock for one, may be what the main thread waits for.
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


def give_up_stuck(workers: Sequence[Worker], studies: Sequence[SharedStudy], limit: float, seconds: float) -> None:
    """End workers none of whose epochs ended in all the time in which this process was there to watch them.

    They were watched for `seconds` since this was asked last.
    """
    for worker in workers:
        if worker.verdict:
            continue
        held = next(((study, trial) for study in studies if (trial := held_by(study, worker.id))), None)
        at = (held[0].sweep.part, held[1].number, held[1].last_step or 0) if held else None
        worker.idle = worker.idle + seconds if at == worker.at else 0.0
        worker.at = at
        if held and worker.idle > limit:
            study, trial = held
            worker.process.end()
            reason = f"no progress for {limit:g} s in epoch {(trial.last_step or 0) + 1} (--trial-timeout)"
            worker.verdict = partial(give_up, study, trial, worker.id, reason)


def _stopped_pids(worker: Worker) -> list[int]:
    """Return the worker's processes that are stopped by a signal; none where the system does not tell."""
    pids = []
    for pid in worker.process.pids():
        with suppress(OSError, IndexError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                pids.append(pid)
    return pids


def look_after(
    worker: Worker,
    workers: list[Worker],
    studies: Sequence[SharedStudy],
    start: Callable[..., None],
    resting: dict[WorkerSlot, tuple[SharedStudy, int]],
) -> None:
    """Give a worker that died a successor, and dismiss one that found no more to do, or memory for all but itself."""
    if worker.verdict:
        if not worker.verdict():
            return  # its lock is not free yet: asked again soon
    elif not worker.process.future.done():
        return
    successor = None
    try:
        if not worker.verdict:
            worker.process.result()
    except WorkerDiedError as death:
        if starved := _starved_beside_others(worker, workers, studies):
            resting[worker.slot] = starved
        else:
            successor = partial(start, worker.slot, _note_death(worker, studies, death))
    worker.process.end()
    workers.remove(worker)
    if successor or worker.verdict:
        (successor or partial(start, worker.slot))()


def _starved_beside_others(
    worker: Worker, workers: Sequence[Worker], studies: Sequence[SharedStudy]
) -> tuple[SharedStudy, int] | None:
    """Return the trial for which memory ran out while other workers had a share of the device's: it is not to blame."""
    device = worker.slot.device
    if worker.slot.alone or not any(w is not worker and w.slot.device == device for w in workers):
        return None
    for study in studies:
        if starved := starved_trial(study, worker.id):
            what = f"{study.sweep.label(starved)} found no memory on {device} beside others"
            study.say(f"{what}; until it has ended, fewer workers go on there")
            return study, starved.number
    return None


def rests(slot: WorkerSlot, resting: dict[WorkerSlot, tuple[SharedStudy, int]]) -> bool:
    """Say whether a slot waits for the end of a trial that needs the room; on another machine it does not."""
    if slot not in resting:
        return False
    study, number = resting[slot]
    trial = study.trials()[number]
    return not trial.state.is_finished() and study.ran_here(trial)


def _note_death(worker: Worker, studies: Sequence[SharedStudy], death: WorkerDiedError) -> int:
    """Have the studies count a death; return how many of the slot's workers died in a row without a trial."""
    if worker.stopped > STOPPED_SECONDS:
        studies[0].say(f"the worker on {worker.slot.device} was stopped for {STOPPED_SECONDS:g} s; a new one goes on")
        return 0
    took = [count_death(study, worker.id, death.how, death.machine) for study in studies]
    if any(took) or death.machine:
        return 0
    if worker.false_starts + 1 >= MAX_FALSE_STARTS:
        message = f"the worker on {worker.slot.device} died {MAX_FALSE_STARTS} times before it took a trial"
        raise RuntimeError(message) from death
    return worker.false_starts + 1
