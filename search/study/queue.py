"""Acquire trials: one that was left behind, else a new one while the budget lasts.

Both need the lock "claim", so that one process at a time counts and spends the budget. A process waits for Comet's
proposal under another lock, "propose", before the trial exists.
"""

import os
import socket
import uuid
from dataclasses import dataclass
from datetime import datetime

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from search.study.deaths import end_if_hopeless, left_behind, processes_of, released_on_error, try_lock
from search.study.locks import WORKER, Locks, SectionLostError, TrialLostError
from search.study.quota import SEARCH_ENDED, num_started
from search.study.shared_study import SharedStudy, retried
from search.study.trials import id_of

MAX_CLAIMS = 20  # earlier holders of a trial that are remembered


@dataclass(frozen=True)
class AcquiredTrial:
    """A trial that this process holds until `release` or its death."""

    id: str  # unique; the trial's attribute "claim" names its holder
    trial: FrozenTrial  # as it was when it was acquired, and the values reported since then
    locks: Locks

    @property
    def earlier_ids(self) -> list[str]:
        """Return the ids under which the trial was held before, the latest first."""
        worker = self.trial.user_attrs.get(WORKER, {})
        return [worker["claim"], *worker["before"]][:MAX_CLAIMS] if worker else []

    def release(self) -> None:
        self.locks.release(self.trial)


@retried
def num_free(study: SharedStudy) -> int:
    """Count the unfinished trials that no process works on."""
    with study.locks.exclusively("claim"):  # a new trial is locked only after its creation
        trials = study.read_trials()
        return study.quota.num_to_start(trials) + len(left_behind(study, trials))


@retried
def acquire(study: SharedStudy, slot: int, device: str) -> AcquiredTrial | None:
    """Resume a trial that was left behind, else start one while the budget lasts, else return None.

    Raises ServiceDownError if Comet must propose and is down; then nothing has changed.
    """
    try:
        trial = _acquire_with_comet(study) if study.sweep.search_id else _acquire(study)
        if not trial:
            return None
        with released_on_error(study, trial):
            acquired = AcquiredTrial(uuid.uuid4().hex, _with_parameters(study, trial), study.locks)
            study.note(acquired.trial, **{WORKER: _worker(study, acquired, slot, device)})
    except TrialLostError as error:  # the connection broke before the claim was stored
        raise SectionLostError(str(error)) from error
    study.locks.acquired(acquired.trial, acquired.id)
    return acquired


def _worker(study: SharedStudy, acquired: AcquiredTrial, slot: int, device: str) -> dict[str, object]:
    """Return the trial's attribute WORKER."""
    return {
        "slot": slot,
        "device": device,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process": study.owner.process,
        "home": study.owner.host,
        "processes": processes_of(acquired.trial)[:MAX_CLAIMS],
        "since": datetime.now().isoformat(),  # noqa: DTZ005 - as Optuna's times
        "claim": acquired.id,
        "before": acquired.earlier_ids,
    }


def _acquire(study: SharedStudy) -> optuna.Trial | None:
    with study.locks.exclusively("claim"):
        return _resume(study) or _start(study)


def _acquire_with_comet(study: SharedStudy) -> optuna.Trial | None:
    with study.locks.exclusively("claim"):
        trial = _resume(study)
    if not trial:
        return _start_with_comet(study)
    with released_on_error(study, trial):
        return _propose_with_comet(study, trial)


def _resume(study: SharedStudy) -> optuna.Trial | None:
    """Lock a trial that was left behind, unless its workers died too often or it does not count any more."""
    for trial in left_behind(study, study.trials()):
        if try_lock(study, trial):
            with released_on_error(study, trial):
                if not end_if_hopeless(study, study.read_trial(trial)):
                    study.proposals.sampler = _sampler(study, trial.number)
                    return optuna.Trial(study.proposals, id_of(trial))
            study.locks.release(trial)
    return None


def _start(study: SharedStudy) -> optuna.Trial | None:
    """Start the trial that was enqueued first, else one that is proposed. Return None if the budget is spent."""
    trials = study.trials()
    if not study.quota.enqueue_next(trials):
        return None
    study.proposals.sampler = _sampler(study, num_started(trials))
    trial = study.proposals.ask()
    locked = study.locks.try_lock(trial)
    assert locked, "no other process knows a trial that was just created"
    return trial


def _start_with_comet(study: SharedStudy) -> optuna.Trial | None:
    """Have Comet propose parameters before the trial exists: the answer may take long."""
    with study.locks.exclusively("propose"):
        number = num_started(study.read_trials())
        is_proposed = study.sweep.space.first_proposed <= number < study.budget()
        if is_proposed and not study.sweep.comet_sampler.reserve(study.optuna):
            study.optuna.set_user_attr(SEARCH_ENDED, number)
            study.say(f"Comet's search is over after {number} trials")
        with study.locks.exclusively("claim"):
            if trial := _start(study):
                with released_on_error(study, trial):
                    _with_parameters(study, trial)
            return trial


def _propose_with_comet(study: SharedStudy, trial: optuna.Trial) -> optuna.Trial | None:
    """Have Comet propose parameters for a trial that was left behind without any. Fail it if Comet has no more."""
    with study.locks.exclusively("propose"):
        if "parameters" in trial.user_attrs or study.sweep.comet_sampler.reserve(study.optuna):
            _with_parameters(study, trial)
            return trial
        study.fail(trial, "Comet's search was over before it proposed parameters for this trial")
        study.locks.release(trial)
        return None


def _with_parameters(study: SharedStudy, trial: optuna.Trial) -> FrozenTrial:
    """Have missing parameters proposed: a process may have died after it created the trial."""
    if "parameters" not in trial.user_attrs:
        study.sweep.space.suggest(trial)
    return study.read_trial(trial)


def _sampler(study: SharedStudy, number: int) -> BaseSampler:
    """Return the sampler of trial `number`, counted from the end of the prior sweep, if any."""
    return study.sweep.sampler(number + (study.prior.num_proposed if study.prior else 0))
