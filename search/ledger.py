"""One Optuna study in one storage: every trial, every epoch's value, every state. Nothing else remembers anything.

A trial belongs to the process that holds its lock file, and the kernel lets go of a lock when its holder dies,
however it dies. So a trial that is RUNNING and not locked was left behind, and whoever asks next goes on with it.
Asking happens under one more lock, so that the budget is counted and spent by one process at a time.
"""

import json
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from os import getpid
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from search.comet import CometSampler
from search.study import CANDIDATES, CONFIRMS, PROMOTION, REPEAT, Sweep, open_storage, parameters_of

__all__ = ["Claim", "Ledger", "create_confirmation", "create_ledger"]

MAX_DEATHS = 3  # of workers on one trial, with no epoch finished in between
SEARCH, SEARCH_ENDED, NOTICE = "search", "search_ended", "notice"  # user attributes of the study


@dataclass(frozen=True)
class Claim:
    """A trial that this process holds, until `release` or death."""

    trial: FrozenTrial  # as it stood when it was taken; earlier epochs of a trial taken over are in it
    lock: FileLock

    def release(self) -> None:
        self.lock.release()


class Ledger:
    """The study of a sweep, opened by one process."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.storage = open_storage(sweep.folder)
        self.study = optuna.load_study(study_name=sweep.title, storage=self.storage)
        # Not the study's: with Hyperband there, Optuna shows TPE the trials of one bracket alone.
        self.pruner = sweep.make_pruner()

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def budget(self) -> int:
        """Return how many trials the sweep is to have: fewer than asked for where Comet's search ended before."""
        return min(self.sweep.num_trials, int(self.study.user_attrs.get(SEARCH_ENDED, self.sweep.num_trials)))

    def num_unfinished(self) -> int:
        """Count the trials that are still to be started or ended."""
        in_budget = self.trials()[: self.budget()]
        return self.budget() - sum(trial.state.is_finished() for trial in in_budget)

    def take(self, slot: int, device: str) -> Claim | None:
        """Go on with a trial that was left behind, else start one while the budget lasts, else return None.

        Raises ServiceDownError, and nothing has changed, where a proposal must come from Comet and Comet is down.
        """
        with self._claiming():
            claim = self._take_over()
            if not claim and not self.sweep.search_id:
                claim = self._start()
        if not claim and self.sweep.search_id:
            claim = self._start_with_comet()
        if claim:
            since = datetime.now().isoformat()  # noqa: DTZ005 - as Optuna's times
            worker = {"slot": slot, "device": device, "host": socket.gethostname(), "pid": getpid(), "since": since}
            self.note(claim.trial, worker=worker)
        return claim

    def reread(self, trial: FrozenTrial) -> FrozenTrial:
        return self.storage.get_trial(trial._trial_id)

    def news_of(self, trial: FrozenTrial) -> str:
        """Say that a trial is the best one so far; nothing where it is not."""
        complete = [other for other in self.trials() if other.state == TrialState.COMPLETE]
        if self.sweep.part != "search" or not complete or self.study.best_trial.number != trial.number:
            return ""
        return f"sweep {self.sweep.name}: trial {trial.number} is the best so far"

    def report(self, trial: FrozenTrial, step: int, value: float) -> bool:
        """Record what the trial is worth after epoch `step` (from 1); say whether the pruner wants it stopped."""
        if step < (trial.last_step or 0):
            return False  # recorded before the trial was taken over
        self.storage.set_trial_intermediate_value(trial._trial_id, step, value)
        if step >= self.sweep.epochs:
            return False  # nothing is left to save
        return self.pruner.prune(self.study, self.storage.get_trial(trial._trial_id))

    def note(self, trial: FrozenTrial, **entries: Any) -> None:
        """Write down facts about a trial that is not finished yet."""
        for key, value in entries.items():
            self.storage.set_trial_user_attr(trial._trial_id, key, value)

    def tell(self, trial: FrozenTrial, state: TrialState, value: float | None = None) -> None:
        """End a trial; only a COMPLETE one has a value."""
        self.study.sampler = self.sweep.sampler(trial.number)  # which may want to hear of it
        self.study.tell(trial.number, value, state)

    def report_left(self) -> int:
        """Tell Comet's Optimizer the results it has not taken yet, where it proposes; return how many are left."""
        sampler = self.sweep.sampler(0)
        return sampler.report_left(self.study) if isinstance(sampler, CometSampler) else 0

    def count_death(self, slot: int) -> bool:
        """Note that the worker in `slot` died; fail its trial when that happened too often in one epoch.

        Return whether it had taken a trial.
        """
        with self._claiming():
            for trial in self._running():
                worker = trial.user_attrs.get("worker", {})
                if (worker.get("slot"), worker.get("host")) != (slot, socket.gethostname()):
                    continue
                if (lock := self._try_lock(trial)) is None:
                    return True  # somebody goes on with it already, or it had just ended
                before = trial.user_attrs.get("deaths", {})
                num = 1 + (before.get("count", 0) if before.get("step") == trial.last_step else 0)
                self.note(trial, deaths={"step": trial.last_step, "count": num}, worker={})
                self.say(f"the worker of {self.sweep.label(trial)} died; a new one goes on with it")
                if num >= MAX_DEATHS:
                    self.note(trial, reason=f"its worker died {num} times in epoch {(trial.last_step or 0) + 1}")
                    self.tell(trial, TrialState.FAIL)
                lock.release()
                return True
        return False

    def say(self, text: str) -> None:
        """Leave a sentence for whoever watches the sweep."""
        self.study.set_user_attr(NOTICE, text)

    def notice(self) -> str:
        """Return the latest sentence that a worker left."""
        return str(self.study.user_attrs.get(NOTICE, ""))

    def uid(self) -> str:
        """Return what this sweep is called among all sweeps there are: 32 hexadecimal digits."""
        return str(self.study.user_attrs["uid"])

    def search_id(self) -> str:
        """Return the id of the search at Comet that this sweep goes on with; empty where there is none yet."""
        return str(self.study.user_attrs.get(SEARCH, ""))

    def note_search(self, search_id: str) -> None:
        self.study.set_user_attr(SEARCH, search_id)

    def promotion(self, weights: str) -> dict[str, Any]:
        """Return what came of the last attempt to promote `weights` (trials/0007, say); empty where there was none."""
        return dict(self.study.user_attrs.get(PROMOTION, {}).get(weights, {}))

    def note_promotion(self, weights: str, record: Mapping[str, Any]) -> None:
        self.study.set_user_attr(PROMOTION, {**self.study.user_attrs.get(PROMOTION, {}), weights: dict(record)})

    def note_candidates(self, candidates: Sequence[Mapping[str, Any]]) -> None:
        """Write down which configurations may win, the winner first."""
        self.study.set_user_attr(CANDIDATES, list(candidates))

    def _claiming(self) -> FileLock:
        return FileLock(self.sweep.folder / "claim.lock")

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def _try_lock(self, trial: FrozenTrial) -> FileLock | None:
        """Lock a running trial; None where another process holds it or has ended it in the meantime."""
        folder = self.sweep.trial_folder(trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        if self.storage.get_trial(trial._trial_id).state == TrialState.RUNNING:
            return lock
        lock.release()
        return None

    def _take_over(self) -> Claim | None:
        for trial in self._running():
            if trial.number < self.sweep.num_trials and (lock := self._try_lock(trial)):
                self.study.sampler = self.sweep.sampler(trial.number)
                return Claim(self._complete(optuna.Trial(self.study, trial._trial_id)), lock)
        return None

    def _start(self) -> Claim | None:
        trials = self.trials()
        if not trials:
            self._enqueue_baseline()
        num_started = _num_started(trials)
        if num_started >= self.budget():
            return None
        self.study.sampler = self.sweep.sampler(num_started)
        trial = self.study.ask()
        lock = self._try_lock(self.storage.get_trial(trial._trial_id))
        assert lock, "nobody else can know a trial that was just made"
        return Claim(self._complete(trial), lock)

    def _start_with_comet(self) -> Claim | None:
        """Have Comet propose before there is a trial, under a lock of its own: it may take its time."""
        with FileLock(self.sweep.folder / "propose.lock"):
            num_started = _num_started(self.trials())
            sampler = self.sweep.sampler(num_started)
            assert isinstance(sampler, CometSampler)
            if 0 < num_started < self.budget() and not sampler.reserve(self.study):
                self.study.set_user_attr(SEARCH_ENDED, num_started)
                self.say(f"Comet's search is over after {num_started} trials, the baseline included")
            with self._claiming():
                return self._start()

    def _enqueue_baseline(self) -> None:
        """Make trial 0 the README configuration, also where the space does not hold it."""
        space = self.sweep.space
        if space.holds_baseline:
            self.study.enqueue_trial(space.baseline)
        else:
            self.study.enqueue_trial({}, user_attrs={"parameters": space.baseline})

    def _complete(self, trial: optuna.Trial) -> FrozenTrial:
        """Have parameters proposed, where they are not: a process may have died between asking and proposing."""
        if "parameters" not in trial.user_attrs:
            self.sweep.space.suggest(trial)
        return self.storage.get_trial(trial._trial_id)


def _num_started(trials: Sequence[FrozenTrial]) -> int:
    return sum(trial.state != TrialState.WAITING for trial in trials)


def create_ledger(sweep: Sweep, settings: Mapping[str, Any]) -> Ledger:
    """Open the sweep's ledger, making folder and study where there are none.

    Raises ValueError, naming them, where the ledger was made with other `settings` (JSON-able), and OSError where
    the folder cannot be written.
    """
    sweep.folder.mkdir(parents=True, exist_ok=True)
    storage = open_storage(sweep.folder)
    study = optuna.create_study(
        study_name=sweep.name, storage=storage, direction=sweep.space.goal.direction, load_if_exists=True
    )
    known = study.user_attrs.get("settings")
    if known is None or not (study.get_trials(deepcopy=False) or study.user_attrs.get(SEARCH)):  # nothing begun
        study.set_user_attr("uid", uuid.uuid4().hex)
        study.set_user_attr("settings", dict(settings))
        (sweep.folder / "sweep.json").write_text(json.dumps(settings, indent=2))  # for people; nothing reads it
    elif changed := [key for key in settings if known.get(key) != settings[key]]:
        differences = ", ".join(f"{key} was {_short(known.get(key))}, is {_short(settings[key])}" for key in changed)
        raise ValueError(f"{sweep.folder} holds a sweep with other settings ({differences}); give another --name")
    return Ledger(sweep)


def create_confirmation(ledger: Ledger, wanted: Sequence[tuple[FrozenTrial, int]]) -> Ledger:
    """Open the confirmation's part of a ledger; it holds a run of each trial and repeat (from 1) that is `wanted`.

    Runs that were made before stay, whoever was killed when.
    """
    sweep = replace(ledger.sweep, part="confirmation", pruner="none", search_id="")
    storage, goal = ledger.storage, sweep.space.goal
    study = optuna.create_study(study_name=sweep.title, storage=storage, direction=goal.direction, load_if_exists=True)
    if "uid" not in study.user_attrs:
        study.set_user_attr("uid", uuid.uuid4().hex)
    there = {(run.user_attrs[CONFIRMS], run.user_attrs[REPEAT]) for run in study.get_trials(deepcopy=False)}
    for trial, repeat in wanted:
        if (trial.number, repeat) not in there:
            parameters = {name: value for name, value in parameters_of(trial).items() if name != "seed"}
            attributes = {"parameters": parameters, CONFIRMS: trial.number, REPEAT: repeat}
            study.enqueue_trial({}, user_attrs=attributes)
    return Ledger(replace(sweep, num_trials=len(study.get_trials(deepcopy=False))))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
