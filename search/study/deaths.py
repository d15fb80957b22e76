"""Trials whose worker died. They are resumed; after too many deaths in one epoch they fail."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from search.study.locks import WORKER, SectionLostError, TrialLostError
from search.study.shared_study import SharedStudy, retried
from search.study.trials import DISPLACED

MAX_DEATHS = 3  # of workers on one trial, with no epoch ended in between
MAX_MACHINES = 10  # lost with the trial, with no epoch ended in between
LAST_WORDS = "last_words"  # user attribute of a trial: process, reason, whether memory ran out


@retried
def note_last_words(study: SharedStudy, trial: FrozenTrial, reason: str, *, starved: bool = False) -> None:
    """Store why this process will end itself while it holds a trial. `starved`: memory ran out."""
    study.note(trial, **{LAST_WORDS: (study.owner.process, reason, starved)})


@retried
def starved_trial(study: SharedStudy, process: str) -> FrozenTrial | None:
    """Return the trial with which a process ended itself because memory ran out."""
    trials = study.read_trials()
    return next((trial for trial in trials if trial.user_attrs.get(LAST_WORDS, [])[::2] == [process, True]), None)


def held_by(study: SharedStudy, process: str) -> FrozenTrial | None:
    """Return the trial that a process acquired last and did not end."""
    running = (trial for trial in study.trials() if trial.state == TrialState.RUNNING)
    return next((trial for trial in running if processes_of(trial)[:1] == [process]), None)


@retried
def count_death(study: SharedStudy, process: str, how: str = "", machine: str = "") -> bool:
    """Count the death of a process. Fail its trial after too many in one epoch, more if a `machine` was lost with it.

    Return whether the process had acquired a trial. Another process may have resumed the trial, and died too.
    """
    acquired = [trial for trial in study.read_trials() if process in processes_of(trial)]
    running = [trial for trial in acquired if trial.state == TrialState.RUNNING]
    if running:
        trial = min(running, key=lambda trial: processes_of(trial).index(process))
        with study.locks.exclusively("claim"), suppress(UpdateFinishedTrialError):  # it may end meanwhile
            _count_death(study, study.read_trial(trial), process, how, machine)
    return bool(acquired)


@retried
def give_up(study: SharedStudy, trial: FrozenTrial, process: str, reason: str) -> bool:
    """Fail a trial whose process was ended, unless another acquired it. Return False while the trial is locked."""
    with study.locks.exclusively("claim"):
        now = study.read_trial(trial)
        if now.state != TrialState.RUNNING or processes_of(now)[:1] != [process]:
            return True
        with held_briefly(study, trial) as locked:
            if locked:
                study.fail(trial, reason)
            return locked


def end_if_hopeless(study: SharedStudy, trial: FrozenTrial) -> bool:
    """End a locked trial that is surplus or whose workers died too often in one epoch. Return whether it ended."""
    if end_if_surplus(study, trial):
        return True
    deaths = trial.user_attrs.get("deaths", {})
    num, num_machines = deaths.get("count", 0), deaths.get("machines", 0)
    if deaths.get("step") != trial.last_step or (num < MAX_DEATHS and num_machines < MAX_MACHINES):
        return False
    epoch = (trial.last_step or 0) + 1
    study.fail(trial, f"its worker died {num + num_machines} times in epoch {epoch}{deaths['how']}")
    return True


def end_if_surplus(study: SharedStudy, run: FrozenTrial) -> bool:
    """End a locked or waiting run that does not count any more. Return whether it ended."""
    if displaced := study.displace(run):
        study.note(run, reason=run.user_attrs[DISPLACED])
        study.tell(run, TrialState.PRUNED)
    return displaced


def left_behind(study: SharedStudy, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the running trials that no process holds."""
    running = (trial for trial in trials if trial.state == TrialState.RUNNING)
    free = study.locks.free([trial for trial in running if trial.number < study.sweep.num_trials])
    return free if free and study.locks.are_settled() else []


def try_lock(study: SharedStudy, trial: FrozenTrial) -> bool:
    """Lock a running trial. Return False if another process holds it or has ended it in the meantime."""
    if not study.locks.try_lock(trial):
        return False
    with released_on_error(study, trial):
        is_running = study.read_trial(trial).state == TrialState.RUNNING
    if not is_running:
        study.locks.release(trial)
    return is_running


@contextmanager
def released_on_error(study: SharedStudy, trial: FrozenTrial | optuna.Trial) -> Iterator[None]:
    """Release a locked trial if the block raises."""
    try:
        yield
    except BaseException:
        study.locks.release(trial)
        raise


@contextmanager
def held_briefly(study: SharedStudy, trial: FrozenTrial) -> Iterator[bool]:
    """Lock a running trial without acquiring it; yield False if that is impossible."""
    locked = try_lock(study, trial)
    try:
        yield locked
    except TrialLostError as error:  # the server ended the connection
        raise SectionLostError(str(error)) from error
    finally:
        if locked:
            study.locks.release(trial)


def processes_of(trial: FrozenTrial) -> list[str]:
    """Return the processes that acquired a trial, the latest first."""
    worker = trial.user_attrs.get(WORKER, {})
    return [worker["process"], *worker["processes"]] if "process" in worker else []


def _count_death(study: SharedStudy, trial: FrozenTrial, process: str, how: str, machine: str) -> None:
    before = trial.user_attrs.get("deaths", {})
    if trial.state != TrialState.RUNNING or before.get("process") == process:
        return
    author, words, *_ = trial.user_attrs.get(LAST_WORDS, ("", ""))
    how = f" ({words})" if author == process else how
    deaths = before if before.get("step") == trial.last_step else {}
    deaths = {"count": 0, "machines": 0, **deaths, "step": trial.last_step, "how": how, "process": process}
    deaths["machines" if machine else "count"] += 1
    study.note(trial, deaths=deaths)
    with held_briefly(study, trial) as locked:  # else the next process that locks it checks the deaths
        failed = locked and end_if_hopeless(study, study.read_trial(trial))
    outcome = "it is given up" if failed else "another worker resumes it"
    worker = f"the worker of {study.sweep.label(trial)}"
    study.say(f"{machine} is gone, with {worker}; {outcome}" if machine else f"{worker} died{how}; {outcome}")
