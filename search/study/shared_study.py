"""One Optuna study in one storage: every trial, every epoch's value, every state. Nothing else remembers anything.

A trial belongs to the process that holds its lock (locks.py), which is dropped when its holder dies, however it dies.
So a trial that is RUNNING and not locked was left behind, and whoever asks next goes on with it. Asking happens under
one more lock, so that the budget is counted and spent by one process at a time.
"""

import functools
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from search.comet.optimizer import CometSampler
from search.study.locks import WORKER, FileLocks, Locks, SectionLostError, ServerLocks, TrialLostError
from search.study.storage import StorageError, first_line, is_passing, note_down, open_storage, version_of
from search.study.sweep import CANDIDATES, PROMOTION, Sweep
from search.study.warm_start import WarmStartStudy, prior_sweep_of

__all__ = ["NOTICE", "AcquiredTrial", "Owner", "SharedStudy", "insisting", "locks_of"]

MAX_DEATHS = 3  # of workers on one trial, with no epoch finished in between
MAX_MACHINES = 10  # that went while they had it, likewise
MAX_CLAIMS = 20  # of earlier holders of a trial that are remembered
RETRY_SECONDS = 1.0  # between two attempts to reach a study that is away
LAST_WORDS, RUNGS = "last_words", "rungs"  # user attributes of a trial
RUNG = (
    "completed_rung_"  # how the names begin under which Optuna's SuccessiveHalvingPruner notes a rung that was passed
)
SEARCH, SEARCH_ENDED, NOTICE = "search", "search_ended", "notice"  # user attributes of the study


@dataclass(frozen=True)
class AcquiredTrial:
    """A trial that this process holds, until `release` or death."""

    id: str  # unlike any other's
    trial: FrozenTrial  # as it stood when it was taken, and what was reported of it since then
    locks: Locks

    @property
    def before(self) -> list[str]:
        """Return the claims by which the trial was held before, the latest first."""
        return _claims(self.trial)

    def release(self) -> None:
        self.locks.release(self.trial)


@dataclass(frozen=True)
class Owner:
    """Who takes trials."""

    process: str  # unlike any other's
    host: str  # where its command runs; a worker may run elsewhere


Method = TypeVar("Method", bound=Callable[..., Any])


def insisting(method: Method) -> Method:
    """Have a method of SharedStudy tried again for `patience` seconds while the storage is out of reach."""

    @functools.wraps(method)
    def insist(self: "SharedStudy", *args: Any, **kwargs: Any) -> Any:
        deadline = None
        while True:
            try:
                return method(self, *args, **kwargs)
            except StorageError as error:
                if not (is_passing(error) or isinstance(error, SectionLostError)):
                    raise
                if deadline is None:
                    deadline = time.monotonic() + self.sweep.patience
                    self.on_wait(f"the study is out of reach, waiting for it ({first_line(error)})")
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_SECONDS)

    return cast("Method", insist)


class SharedStudy:
    """The study of a sweep, opened by one process.

    What is asked of it is asked again, for `sweep.patience` seconds, while the storage is away or locked.
    """

    def __init__(
        self, sweep: Sweep, on_wait: Callable[[str], None] = lambda _: None, owner: Owner | None = None
    ) -> None:
        self.sweep, self.on_wait = sweep, on_wait
        self.owner = owner or Owner(uuid.uuid4().hex, socket.gethostname())
        self.storage = open_storage(sweep.folder, sweep.storage, locking=True)
        self.optuna = optuna.load_study(study_name=sweep.title, storage=self.storage)
        self.locks = locks_of(sweep, self.storage, self.optuna)
        # Not the study's: with Hyperband there, Optuna filters what the sampler is shown.
        self.pruner = sweep.make_pruner()
        self.earlier = prior_sweep_of(self.optuna)
        self.informed = WarmStartStudy(self.optuna, sweep.space, self.earlier)
        self.seen: tuple[object, list[FrozenTrial]] = (None, [])  # the trials, and the storage's version before

    def close(self) -> None:
        """Let go of everything; the study can be used no more."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    @insisting
    def trials(self) -> list[FrozenTrial]:
        """Return all trials: the same list until anybody writes to the storage, as reading takes milliseconds."""
        version = self._version()
        if version != self.seen[0]:
            self.seen = version, self._trials()
        return self.seen[1]

    @insisting
    def budget(self) -> int:
        """Return how many trials the sweep is to have: fewer than asked for where Comet's search ended before."""
        if not self.sweep.search_id:
            return self.sweep.num_trials
        return min(self.sweep.num_trials, int(self.optuna.user_attrs.get(SEARCH_ENDED, self.sweep.num_trials)))

    def counted(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        """Return those of all trials that belong to the budget: an earlier command may have wanted more."""
        return trials[: self.budget()]

    def num_unfinished(self) -> int:
        """Count the trials that are still to be started or ended."""
        budget = self.budget()
        return budget - sum(trial.state.is_finished() for trial in self.trials()[:budget])

    @insisting
    def num_free(self) -> int:
        """Count the unfinished trials that nobody works on."""
        with self.locks.exclusively("claim"):  # a trial is made before it is locked
            trials = self._trials()
            return max(0, self.budget() - _num_started(trials[: self.budget()])) + len(self._left_behind(trials))

    @insisting
    def take(self, slot: int, device: str) -> AcquiredTrial | None:
        """Go on with a trial that was left behind, else start one while the budget lasts, else return None.

        Raises ServiceDownError, and nothing has changed, where a proposal must come from Comet and Comet is down.
        """
        trial = None
        try:
            with self.locks.exclusively("claim"):
                trials = self._trials()
                trial = self._take_over(trials)
                if not trial and not self.sweep.search_id:
                    trial = self._start(trials)
            if self.sweep.search_id:
                trial = self._complete_with_comet(trial) if trial else self._start_with_comet()
            if not trial:
                return None
            claim = AcquiredTrial(uuid.uuid4().hex, self._complete(trial), self.locks)
            since = datetime.now().isoformat()  # noqa: DTZ005 - as Optuna's times
            where = {"slot": slot, "device": device, "host": socket.gethostname(), "pid": os.getpid()}
            whose = {"process": self.owner.process, "home": self.owner.host, "processes": _processes(claim.trial)}
            worker = {**where, **whose, "since": since, "claim": claim.id, "before": claim.before}
            self._note(claim.trial, **{WORKER: worker})
        except BaseException as error:
            if trial:
                self.locks.release(trial)
            if isinstance(error, TrialLostError):  # cut off before the claim was noted
                raise SectionLostError(str(error)) from error
            raise
        self.locks.claimed(claim.trial, claim.id)
        return claim

    @insisting
    def check(self) -> None:
        """Raise TrialLostError where a trial that this process holds is somebody else's by now."""
        self.locks.check()

    @insisting
    def reread(self, trial: FrozenTrial) -> FrozenTrial:
        return self.storage.get_trial(trial._trial_id)

    @insisting
    def news_of(self, trial: FrozenTrial) -> str:
        """Say that a trial is the best one so far; nothing where it is not."""
        complete = [other for other in self._trials() if other.state == TrialState.COMPLETE]
        if self.sweep.part != "search" or not complete or self.optuna.best_trial.number != trial.number:
            return ""
        return f"sweep {self.sweep.name}: trial {trial.number} is the best so far"

    @insisting
    def report(self, trial: FrozenTrial, step: int, value: float) -> bool:
        """Record what our trial is worth after epoch `step` (from 1); say whether the pruner wants it stopped."""
        if step < (trial.last_step or 0):
            return False  # recorded before the trial was taken over
        known = self.storage.get_trial_system_attrs(trial._trial_id)  # where pruners keep what they know
        rungs = [name for name in known if name.startswith(RUNG)]
        if step > (trial.last_step or 0) and rungs != trial.user_attrs.get(RUNGS, []):
            self._note(trial, **{RUNGS: rungs})  # the trial went on from there
            trial.user_attrs[RUNGS] = rungs
        self.storage.set_trial_intermediate_value(trial._trial_id, step, value)
        trial.intermediate_values[step] = value  # nobody else writes to a trial that is ours
        if step >= self.sweep.epochs:
            return False  # nothing is left to save
        # A process may have died with the pruner's answer in hand: then that is asked for again.
        unanswered = set(rungs) - set(trial.user_attrs.get(RUNGS, []))
        trial.system_attrs = {name: entry for name, entry in known.items() if name not in unanswered}
        return self.pruner.prune(self.optuna, trial)

    @insisting
    def note(self, trial: FrozenTrial, **entries: Any) -> None:
        """Write down facts about a trial that is not finished yet."""
        self._note(trial, **entries)

    @insisting
    def note_last_words(self, trial: FrozenTrial, text: str, *, starved: bool = False) -> None:
        """Write down why this process is about to end itself while it holds a trial: `starved` of memory, perhaps."""
        self._note(trial, **{LAST_WORDS: (self.owner.process, text, starved)})

    @insisting
    def starved(self, process: str) -> FrozenTrial | None:
        """Return the trial with which a process ended itself because memory ran out."""
        for trial in self._trials():
            if trial.user_attrs.get(LAST_WORDS, [])[::2] == [process, True]:
                return trial
        return None

    @insisting
    def tell(self, trial: FrozenTrial, state: TrialState, value: float | None = None) -> None:
        """End a trial; only a COMPLETE one has a value."""
        self._tell(trial, state, value)

    @insisting
    def report_left(self) -> int:
        """Tell Comet's Optimizer the results it has not taken yet, where it proposes; return how many are left."""
        sampler = self.sweep.sampler(0)
        return sampler.report_left(self.optuna) if isinstance(sampler, CometSampler) else 0

    def ran_here(self, trial: FrozenTrial) -> bool:
        """Say whether it was a worker of a command on this machine that held a trial last."""
        worker = trial.user_attrs.get(WORKER, {})
        return bool(worker.get("home", worker.get("host")) == socket.gethostname())

    def held_by(self, process: str) -> FrozenTrial | None:
        """Return the trial that a process of ours took last and did not end."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and trial.user_attrs.get(WORKER, {}).get("process") == process:
                return trial
        return None

    @insisting
    def count_death(self, process: str, how: str = "", machine: str = "") -> bool:
        """Note that a process of ours died; fail its trial when that happened too often in one epoch.

        Where a `machine` went with it, the trial is hardly to blame. Return whether it had taken a trial. Another
        process may have gone on with it by now, and died too.
        """
        taken = [trial for trial in self._trials() if process in _processes(trial)]
        running = [trial for trial in taken if trial.state == TrialState.RUNNING]
        for trial in sorted(running, key=lambda trial: _processes(trial).index(process))[:1]:
            with self.locks.exclusively("claim"), suppress(UpdateFinishedTrialError):  # it may just end
                self._count_death(self.storage.get_trial(trial._trial_id), process, how, machine)
        return bool(taken)

    @insisting
    def give_up(self, trial: FrozenTrial, process: str, reason: str) -> bool:
        """Fail a trial whose process was ended, if nobody else took it; False while it is still locked."""
        with self.locks.exclusively("claim"):
            now = self.storage.get_trial(trial._trial_id)
            if now.state != TrialState.RUNNING or _processes(now)[:1] != [process]:
                return True
            with self._locked(trial) as locked:
                if locked:
                    self._fail(trial, reason)
                return locked

    @insisting
    def say(self, text: str) -> None:
        """Leave a sentence for whoever watches the sweep."""
        self._say(text)

    @insisting
    def notice(self) -> str:
        """Return the latest sentence that a worker left."""
        return str(self.optuna.user_attrs.get(NOTICE, ""))

    @insisting
    def uid(self) -> str:
        """Return what this sweep is called among all sweeps there are: 32 hexadecimal digits."""
        return str(self.optuna.user_attrs["uid"])

    @insisting
    def search_id(self) -> str:
        """Return the id of the search at Comet that this sweep goes on with; empty where there is none yet."""
        return str(self.optuna.user_attrs.get(SEARCH, ""))

    @insisting
    def note_search(self, search_id: str) -> None:
        self.optuna.set_user_attr(SEARCH, search_id)

    @insisting
    def promotion(self, weights: str) -> dict[str, Any]:
        """Return what came of the last attempt to promote `weights` (trials/0007, say); empty where there was none."""
        return dict(self.optuna.user_attrs.get(PROMOTION, {}).get(weights, {}))

    @insisting
    def note_promotion(self, weights: str, record: Mapping[str, Any]) -> None:
        self.optuna.set_user_attr(PROMOTION, {**self.optuna.user_attrs.get(PROMOTION, {}), weights: dict(record)})

    @insisting
    def note_candidates(self, candidates: Sequence[Mapping[str, Any]]) -> None:
        """Write down which configurations may win, the winner first."""
        self.optuna.set_user_attr(CANDIDATES, list(candidates))

    @functools.cached_property
    def _version(self) -> Callable[[], object]:
        return version_of(self.storage)

    def _say(self, text: str) -> None:
        self.optuna.set_user_attr(NOTICE, text)

    def _note(self, trial: FrozenTrial | optuna.Trial, **entries: Any) -> None:
        note_down(self.storage, trial._trial_id, entries)

    def _tell(self, trial: FrozenTrial | optuna.Trial, state: TrialState, value: float | None = None) -> None:
        if self.sweep.search_id:
            self.optuna.sampler = self.sweep.sampler(trial.number)  # which wants to hear of it
            self.optuna.tell(trial.number, value, state, skip_if_finished=True)
            return
        if state == TrialState.PRUNED and isinstance(trial, FrozenTrial) and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]  # as Study.tell has it
        # What Study.tell does, without its reading the whole trial before and after.
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])

    def _count_death(self, trial: FrozenTrial, process: str, how: str, machine: str) -> None:
        before = trial.user_attrs.get("deaths", {})
        if trial.state != TrialState.RUNNING or before.get("process") == process:
            return
        author, words, *_ = trial.user_attrs.get(LAST_WORDS, ("", ""))
        how = f" ({words})" if author == process else how
        deaths = before if before.get("step") == trial.last_step else {}
        deaths = {"count": 0, "machines": 0, **deaths, "step": trial.last_step, "how": how, "process": process}
        deaths["machines" if machine else "count"] += 1
        self._note(trial, deaths=deaths)
        with self._locked(trial) as locked:  # else whoever is to take it over next finds that out
            failed = locked and self._end_if_hopeless(self.storage.get_trial(trial._trial_id))
        what = "it is given up" if failed else "others go on with it"
        whose = f"the worker of {self.sweep.label(trial)}"
        self._say(f"{machine} has gone, with {whose}; {what}" if machine else f"{whose} died{how}; {what}")

    def _end_if_hopeless(self, trial: FrozenTrial) -> bool:
        """Fail a locked trial whose workers have died too often in one epoch; say whether it was failed."""
        deaths = trial.user_attrs.get("deaths", {})
        num, num_machines = deaths.get("count", 0), deaths.get("machines", 0)
        if deaths.get("step") != trial.last_step or (num < MAX_DEATHS and num_machines < MAX_MACHINES):
            return False
        epoch = (trial.last_step or 0) + 1
        self._fail(trial, f"its worker died {num + num_machines} times in epoch {epoch}{deaths['how']}")
        return True

    def _fail(self, trial: FrozenTrial | optuna.Trial, reason: str) -> None:
        self._note(trial, reason=reason)
        self._tell(trial, TrialState.FAIL)

    def _trials(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False)

    def _running(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        running = (trial for trial in trials if trial.state == TrialState.RUNNING)
        return [trial for trial in running if trial.number < self.sweep.num_trials]

    def _try_lock(self, trial: FrozenTrial) -> bool:
        """Lock a running trial; False where another process holds it or has ended it in the meantime."""
        if not self.locks.try_lock(trial):
            return False
        try:
            if self.storage.get_trial(trial._trial_id).state == TrialState.RUNNING:
                return True
        except BaseException:
            self.locks.release(trial)
            raise
        self.locks.release(trial)
        return False

    @contextmanager
    def _locked(self, trial: FrozenTrial) -> Iterator[bool]:
        """Hold a running trial for a moment, without a claim; False where that cannot be."""
        locked = self._try_lock(trial)
        try:
            yield locked
        except TrialLostError as error:  # cut off in that moment
            raise SectionLostError(str(error)) from error
        finally:
            if locked:
                self.locks.release(trial)

    def _left_behind(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        free = self.locks.free(self._running(trials))
        return free if free and self.locks.are_settled() else []

    def _take_over(self, trials: Sequence[FrozenTrial]) -> optuna.Trial | None:
        for trial in self._left_behind(trials):
            if not self._try_lock(trial):
                continue
            try:
                if not self._end_if_hopeless(self.storage.get_trial(trial._trial_id)):
                    self.informed.sampler = self._proposer(trial.number)
                    return optuna.Trial(self.informed, trial._trial_id)
            except BaseException:
                self.locks.release(trial)
                raise
            self.locks.release(trial)
        return None

    def _proposer(self, number: int) -> BaseSampler:
        """Make what proposes trial `number`: it comes after all that an earlier sweep proposed."""
        return self.sweep.sampler(number + (self.earlier.num_proposed if self.earlier else 0))

    def _start(self, trials: Sequence[FrozenTrial]) -> optuna.Trial | None:
        num_started = _num_started(trials)
        if num_started >= self.budget():
            return None
        if num_started == len(trials):  # else a process died after it had enqueued one
            self._enqueue(num_started)
        return self._ask(num_started)

    def _ask(self, number: int) -> optuna.Trial:
        """Start trial `number`: the first that was enqueued, else one that is proposed now."""
        self.informed.sampler = self._proposer(number)
        trial = self.informed.ask()
        locked = self.locks.try_lock(trial)
        assert locked, "nobody else can know a trial that was just made"
        return trial

    def _start_with_comet(self) -> optuna.Trial | None:
        """Have Comet propose before there is a trial, under a lock of its own: it may take its time."""
        with self.locks.exclusively("propose"):
            num_started = _num_started(self._trials())
            sampler = self.sweep.sampler(num_started)
            assert isinstance(sampler, CometSampler)
            if self.sweep.space.first_proposed <= num_started < self.budget() and not sampler.reserve(self.optuna):
                self.optuna.set_user_attr(SEARCH_ENDED, num_started)
                self._say(f"Comet's search is over after {num_started} trials")
            with self.locks.exclusively("claim"):
                trial = self._start(self._trials())
                if trial:
                    self._complete(trial)
                return trial

    def _complete_with_comet(self, trial: optuna.Trial) -> optuna.Trial | None:
        """Have parameters proposed for a trial that was left behind without; fail it where Comet has no more."""
        with self.locks.exclusively("propose"):
            sampler = self.sweep.sampler(trial.number)
            assert isinstance(sampler, CometSampler)
            if "parameters" in trial.user_attrs or sampler.reserve(self.optuna):
                self._complete(trial)
                return trial
            self._fail(trial, "Comet's search was over before anything was proposed for it")
            self.locks.release(trial)
            return None

    def _enqueue(self, number: int) -> None:
        """Begin with the baseline, also where the space does not hold it, then go on with what won before."""
        space = self.sweep.space
        if number == 0 and space.baseline is not None:
            if space.baseline_is_outside:
                self.optuna.enqueue_trial({}, user_attrs={"parameters": space.baseline})
            else:
                self.optuna.enqueue_trial(space.baseline)
        elif number == space.first_proposed and self.earlier and self.earlier.winner:
            self.optuna.enqueue_trial(self.earlier.winner)

    def _complete(self, trial: optuna.Trial) -> FrozenTrial:
        """Have parameters proposed, where they are not: a process may have died between asking and proposing."""
        try:
            if "parameters" not in trial.user_attrs:
                self.sweep.space.suggest(trial)
            return self.storage.get_trial(trial._trial_id)
        except BaseException:
            self.locks.release(trial)
            raise


def _claims(trial: FrozenTrial) -> list[str]:
    worker = trial.user_attrs.get(WORKER, {})
    return [worker["claim"], *worker["before"]][:MAX_CLAIMS] if worker else []


def _processes(trial: FrozenTrial) -> list[str]:
    """Return the processes that took a trial, the latest first."""
    worker = trial.user_attrs.get(WORKER, {})
    return [worker["process"], *worker["processes"]][:MAX_CLAIMS] if "process" in worker else []


def _num_started(trials: Sequence[FrozenTrial]) -> int:
    return sum(trial.state != TrialState.WAITING for trial in trials)


def locks_of(sweep: Sweep, storage: RDBStorage, study: optuna.Study) -> Locks:
    if storage.engine.dialect.name == "postgresql":
        return ServerLocks(storage, study._study_id)
    return FileLocks(sweep.folder, sweep.trial_folder(0).parent)
