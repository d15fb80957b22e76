"""The study of a sweep, as one process opens, reads and writes it. It is the only state of a sweep.

A trial belongs to the process that holds its lock (locks.py). The system releases the lock when this process dies. So
a trial that is RUNNING and not locked was left behind; the next process that acquires a trial resumes it (queue.py).
"""

import functools
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from search.durable import retry_while_unreachable
from search.study.locks import WORKER, FileLocks, Locks, SectionLostError
from search.study.postgres_locks import PostgresLocks
from search.study.quota import ConfirmationQuota, Quota, SearchQuota
from search.study.storage import StorageError, first_line, is_passing, note_down, open_storage, version_of
from search.study.sweep import CANDIDATES, PROMOTION, SHORTFALL, Sweep
from search.study.trials import DISPLACED, id_of
from search.study.warm_start import WarmStartStudy, prior_sweep_of

RUNGS = "rungs"  # user attribute of a trial: the rungs that it had passed before its latest epoch
RUNG = "completed_rung_"  # prefix of the names under which Optuna's SuccessiveHalvingPruner stores a passed rung
COMET_SEARCH, NOTICE = "search", "notice"  # user attributes of the study

Operation = TypeVar("Operation", bound=Callable[..., Any])
_is_retried: ContextVar[bool] = ContextVar("is_retried", default=False)


@dataclass(frozen=True)
class Owner:
    """A process that acquires trials."""

    process: str  # unique among all processes of all sweeps
    host: str  # where its command runs; a worker may run elsewhere


def retried(operation: Operation) -> Operation:
    """Repeat an operation on a SharedStudy while the storage is unreachable, for `sweep.patience` seconds.

    An operation inside another one is not repeated alone, because the outer one may have lost a lock.
    """

    @functools.wraps(operation)
    def repeat(study: "SharedStudy", *args: Any, **kwargs: Any) -> Any:
        if _is_retried.get():
            return operation(study, *args, **kwargs)
        token = _is_retried.set(True)
        try:
            call = functools.partial(operation, study, *args, **kwargs)
            return retry_while_unreachable(call, study.sweep.patience, _is_unreachable, study.on_failure)
        finally:
            _is_retried.reset(token)

    return cast("Operation", repeat)


class SharedStudy:
    """The study of one part of a sweep, opened by one process."""

    def __init__(
        self, sweep: Sweep, on_wait: Callable[[str], None] = lambda _: None, owner: Owner | None = None
    ) -> None:
        self.sweep, self.on_wait = sweep, on_wait
        self.owner = owner or Owner(uuid.uuid4().hex, socket.gethostname())
        self.storage = open_storage(sweep.folder, sweep.storage, locking=True)
        self.optuna = optuna.load_study(study_name=sweep.stored_name, storage=self.storage)
        self.search = self.optuna  # the study of the search, which also carries the notices of a confirmation
        self.prior = prior_sweep_of(self.optuna)
        self.quota: Quota = SearchQuota(sweep, self.optuna, self.prior)
        if sweep.part == "confirmation":
            self.search = optuna.load_study(study_name=replace(sweep, part="search").stored_name, storage=self.storage)
            self.quota = ConfirmationQuota(sweep, self.optuna, self.search)
        self.locks = locks_of(sweep, self.storage, self.optuna)
        # Not the study's own: if that is Hyperband, Optuna filters the trials that the sampler sees.
        self.pruner = sweep.make_pruner()
        self.proposals = WarmStartStudy(self.optuna, sweep.space, self.prior)
        self.seen: tuple[object, list[FrozenTrial]] = (None, [])  # the storage's version, and the trials it had

    def on_failure(self, error: Exception, num_failures: int, _: float) -> None:
        """Say once that the study is unreachable."""
        if num_failures == 1:
            self.on_wait(f"the study is unreachable, waiting for it ({first_line(error)})")

    def close(self) -> None:
        """Release every connection. The object cannot be used afterwards."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    @functools.cached_property
    def _version(self) -> Callable[[], object]:
        return version_of(self.storage)

    @retried
    def trials(self) -> list[FrozenTrial]:
        """Return all trials: the same list until a process writes to the storage, as reading takes milliseconds."""
        version = self._version()
        if version != self.seen[0]:
            self.seen = version, self.read_trials()
        return self.seen[1]

    @retried
    def read_trials(self) -> list[FrozenTrial]:
        """Read all trials from the storage."""
        return self.optuna.get_trials(deepcopy=False)

    @retried
    def read_trial(self, trial: FrozenTrial | optuna.Trial) -> FrozenTrial:
        return self.storage.get_trial(id_of(trial))

    # The docstrings of the next four are in `Quota` and `Locks`.

    @retried
    def budget(self) -> int:
        return self.quota.budget()

    @retried
    def counted(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        return self.quota.counted(trials)

    @retried
    def num_unfinished(self) -> int:
        return self.quota.num_unfinished(self.trials())

    @retried
    def check(self) -> None:
        self.locks.check()

    @retried
    def report(self, trial: FrozenTrial, step: int, value: float) -> bool:
        """Store the value of our trial after epoch `step` (from 1). Return whether the trial must stop."""
        if step < (trial.last_step or 0):
            return False  # stored before the trial was resumed
        known = self.storage.get_trial_system_attrs(id_of(trial))  # where pruners store their state
        rungs = [name for name in known if name.startswith(RUNG)]
        if step > (trial.last_step or 0) and rungs != trial.user_attrs.get(RUNGS, []):
            self.note(trial, **{RUNGS: rungs})  # the trial continued after these
            trial.user_attrs[RUNGS] = rungs
        self.storage.set_trial_intermediate_value(id_of(trial), step, value)
        trial.intermediate_values[step] = value  # no other process writes to our trial
        if step >= self.sweep.epochs:
            return False  # nothing is left to save
        if self.quota.surplus(trial):
            with self.locks.exclusively("claim"):  # else `choose` could count it meanwhile
                return self.displace(trial)
        # An earlier worker may have died before it acted on the pruner's answer: then the pruner is asked again.
        unanswered = set(rungs) - set(trial.user_attrs.get(RUNGS, []))
        trial.system_attrs = {name: entry for name, entry in known.items() if name not in unanswered}
        return self.pruner.prune(self.optuna, trial)

    @retried
    def note(self, trial: FrozenTrial | optuna.Trial, **entries: Any) -> None:
        """Store user attributes of an unfinished trial, all or none."""
        note_down(self.storage, id_of(trial), entries)

    @retried
    def tell(self, trial: FrozenTrial | optuna.Trial, state: TrialState, value: float | None = None) -> None:
        """End a trial. Only a COMPLETE one has a value."""
        if self.sweep.search_id:
            self.optuna.sampler = self.sweep.comet_sampler  # reports the result to Comet
            self.optuna.tell(trial.number, value, state, skip_if_finished=True)
            return
        if state == TrialState.PRUNED and isinstance(trial, FrozenTrial) and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]  # as in Study.tell
        # The effect of Study.tell, without reading the whole trial before and after.
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(id_of(trial), state, None if value is None else [value])

    def fail(self, trial: FrozenTrial | optuna.Trial, reason: str) -> None:
        self.note(trial, reason=reason)
        self.tell(trial, TrialState.FAIL)

    def displace(self, run: FrozenTrial) -> bool:
        """Note on a surplus run that it does not count. Return whether it is surplus. Requires the lock "claim"."""
        if why := self.quota.surplus(run):
            self.note(run, **{DISPLACED: why})
            run.user_attrs[DISPLACED] = why  # after `note`, which may fail: then all of this is repeated
        return bool(why)

    @retried
    def news_of(self, trial: FrozenTrial) -> str:
        """Return a sentence if a trial is the best one so far, else an empty text."""
        complete = any(other.state == TrialState.COMPLETE for other in self.read_trials())
        if self.sweep.part != "search" or not complete or self.optuna.best_trial.number != trial.number:
            return ""
        return f"sweep {self.sweep.name}: trial {trial.number} is the best so far"

    @retried
    def report_left(self) -> int:
        """Report the results that Comet's Optimizer lacks. Return how many are left."""
        return self.sweep.comet_sampler.report_left(self.optuna) if self.sweep.search_id else 0

    def ran_here(self, trial: FrozenTrial) -> bool:
        """Return whether the last worker of a trial belonged to a command on this machine."""
        worker = trial.user_attrs.get(WORKER, {})
        return bool(worker.get("home", worker.get("host")) == socket.gethostname())

    @retried
    def say(self, text: str) -> None:
        """Store a sentence for the user who watches the sweep."""
        self.search.set_user_attr(NOTICE, text)

    @retried
    def notice(self) -> str:
        """Return the latest stored sentence."""
        return str(self.search.user_attrs.get(NOTICE, ""))

    @retried
    def uid(self) -> str:
        """Return the unique name of this part of a sweep: 32 hexadecimal digits."""
        return str(self.optuna.user_attrs["uid"])

    @retried
    def search_id(self) -> str:
        """Return the id of this sweep's search at Comet; empty if there is none."""
        return str(self.optuna.user_attrs.get(COMET_SEARCH, ""))

    @retried
    def note_search(self, search_id: str) -> None:
        self.optuna.set_user_attr(COMET_SEARCH, search_id)

    @retried
    def promotion(self, weights: str) -> dict[str, Any]:
        """Return the record of the last attempt to promote `weights` (trials/0007, for example); empty if none."""
        return dict(self.optuna.user_attrs.get(PROMOTION, {}).get(weights, {}))

    @retried
    def note_promotion(self, weights: str, record: Mapping[str, Any]) -> None:
        self.optuna.set_user_attr(PROMOTION, {**self.optuna.user_attrs.get(PROMOTION, {}), weights: dict(record)})

    @retried
    def note_candidates(self, candidates: Sequence[Mapping[str, Any]], shortfall: str = "") -> None:
        """Store the configurations that may win, the winner first, and why there are fewer than wanted."""
        self.optuna.set_user_attr(SHORTFALL, shortfall)
        self.optuna.set_user_attr(CANDIDATES, list(candidates))


def _is_unreachable(error: Exception) -> bool:
    return isinstance(error, SectionLostError) or (isinstance(error, StorageError) and is_passing(error))


def locks_of(sweep: Sweep, storage: RDBStorage, study: optuna.Study) -> Locks:
    """Return the locks of a part of a sweep: of the PostgreSQL server if there is one, else of files."""
    if storage.engine.dialect.name == "postgresql":
        return PostgresLocks(storage, study._study_id)  # noqa: SLF001 - it has no public name
    return FileLocks(sweep.folder, sweep.trial_folder(0).parent)
