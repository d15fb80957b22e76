"""The loop of one worker: acquire a trial, train it, report every epoch, tell the result."""

import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from search.comet.client import wait_for_comet
from search.study.create import open_shared_study
from search.study.deaths import note_last_words
from search.study.locks import TrialLostError
from search.study.queue import AcquiredTrial, acquire
from search.study.shared_study import Owner, SharedStudy
from search.study.storage import StorageError, first_line
from search.study.sweep import Sweep
from search.study.trials import CONFIRMS, DISPLACED, parameters_of
from search.task import EpochMetrics, OutOfMemoryError, ProcessLostError, Task, TrialContext, WorkerSlot
from search.workers.artifacts import Artifacts, checkpoint_of, open_artifacts, remove_checkpoints
from search.workers.history import write_history
from search.workers.tracking import Reporter, Tracking
from shell.environment import describe, is_environments


@dataclass(frozen=True)
class Part:
    """A part of a sweep, as sent to a worker."""

    sweep: Sweep
    tracking: Tracking | None  # set in all parts or in none


def work(parts: Sequence[Part], owner: Owner, task: Task, slot: WorkerSlot) -> None:
    """Train trials until no part of the sweep has any left, those of the first part first.

    Raises OSError and StorageError for faults of the machine or of Comet's Optimizer, which are not a trial's fault,
    and ValueError if Comet refuses a request.
    """
    try:
        _work([_with_device(part, slot) for part in parts], owner, task, slot)
    except StorageError as error:
        raise StorageError(first_line(error)) from None  # an error's cause is not sent to another process


def _with_device(part: Part, slot: WorkerSlot) -> Part:
    """Replace the facts about the command's machine by facts about the worker's."""
    if not part.tracking or not slot.label:
        return part
    facts = {**part.tracking.facts, "host": platform.node(), "devices": slot.label}
    return replace(part, tracking=replace(part.tracking, facts=facts))


def _work(parts: Sequence[Part], owner: Owner, task: Task, slot: WorkerSlot) -> None:
    reporter = Reporter(parts[0].tracking) if parts[0].tracking else None
    artifacts = open_artifacts(parts[0].sweep)
    try:
        for study, tracking, acquired in _acquire_trials(parts, owner, slot):
            if reporter and tracking:
                reporter.tracking = tracking
            was_lost = not _train(study, acquired, task, slot, reporter, artifacts)
            if was_lost:
                study.say(f"{study.sweep.label(acquired.trial)} was given to another worker while this one was cut off")
            if reporter:
                reporter.close(study.read_trial(acquired.trial), news=study.news_of(acquired.trial))
            if was_lost:
                return  # the next process has another id: the end of this one counts against no trial
    finally:
        if reporter:
            reporter.finish()


def _acquire_trials(
    parts: Sequence[Part], owner: Owner, slot: WorkerSlot
) -> Iterator[tuple[SharedStudy, Tracking | None, AcquiredTrial]]:
    """Acquire trials while there are any; those of a part only if the parts before it have none."""
    studies: dict[str, SharedStudy] = {}
    while True:
        for part in parts:
            name = part.sweep.part
            study = studies[name] = studies.get(name) or open_shared_study(part.sweep, owner)
            ask = partial(acquire, study, slot.index, slot.label or slot.device)
            if acquired := wait_for_comet(ask, part.sweep.patience, study.say):
                yield study, part.tracking, acquired
                break
        else:
            return


def _train(
    study: SharedStudy,
    acquired: AcquiredTrial,
    task: Task,
    slot: WorkerSlot,
    reporter: Reporter | None,
    artifacts: Artifacts | None,
) -> bool:
    """Run an acquired trial and release it. Return False if another worker has it."""
    trial, folder = acquired.trial, study.sweep.trial_folder(acquired.trial.number)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if artifacts:
            artifacts.fetch(trial, folder)
        context = TrialContext(
            number=trial.number,
            confirms=trial.user_attrs.get(CONFIRMS),
            parameters=parameters_of(trial),
            seed=study.sweep.seed_of(trial),
            folder=folder,
            device=slot.device,
            checkpoint=checkpoint_of(study.sweep, acquired, folder),
            check=study.check,
        )
        TrialRun(study, trial, task, context, reporter, artifacts).run()
    except (TrialLostError, UpdateFinishedTrialError):
        return False
    finally:
        acquired.release()
    return True


@dataclass(frozen=True)
class TrialRun:
    """One trial in training."""

    study: SharedStudy
    trial: FrozenTrial
    task: Task
    context: TrialContext
    reporter: Reporter | None = None
    artifacts: Artifacts | None = None
    rows: list[EpochMetrics] = field(default_factory=list)  # the epochs so far

    def run(self) -> None:
        """Train until the task ends, fails or is pruned, and tell the study the result."""
        try:
            state, reason = self._train()
        except (OSError, StorageError, TrialLostError, UpdateFinishedTrialError):
            raise  # disk full, data gone, study unreachable: every other trial would fail too
        except ProcessLostError as error:
            is_starved = isinstance(error, OutOfMemoryError)
            note_last_words(self.study, self.trial, first_line(error), starved=is_starved)
            os._exit(1)  # counted as any other death
        except FloatingPointError as error:
            state, reason = TrialState.FAIL, first_line(error)
        except Exception as error:  # noqa: BLE001 - a configuration's mistake is a result of the search, not its end
            if is_environments(error):
                raise OSError(describe(error)) from None  # an error's cause is not sent to another process
            state, reason = TrialState.FAIL, f"{type(error).__name__}: {first_line(error)}"
        self._tell(state, reason)

    def _train(self) -> tuple[TrialState, str]:
        """Report each epoch until the last, or until the trial is pruned. Return its state and the reason."""
        state, reason, column = TrialState.COMPLETE, "", self.study.sweep.space.goal.column
        epochs = self.task(self.context)
        for row in self.reporter.tracked(self.trial, epochs) if self.reporter else epochs:
            if not math.isfinite(row[column]):
                raise FloatingPointError(f"diverged in epoch {len(self.rows) + 1}: {column} is {row[column]}")
            self.rows.append(row)
            is_pruned = self.study.report(self.trial, len(self.rows), self._best()[column])
            write_history(self.context.folder, self.rows)
            if is_pruned:
                state, reason = TrialState.PRUNED, f"stopped by {self.study.sweep.pruner} after epoch {len(self.rows)}"
                break
            if self.artifacts:
                self.artifacts.push(self.study, self.trial, self.context.folder)
        return state, self.trial.user_attrs.get(DISPLACED, reason)

    def _best(self) -> EpochMetrics:
        goal = self.study.sweep.space.goal
        return self.rows[goal.index([row[goal.column] for row in self.rows])]

    def _tell(self, state: TrialState, reason: str) -> None:
        """Record the result in the study, then remove the checkpoint: a kill at any point loses nothing."""
        study, trial, folder = self.study, self.trial, self.context.folder
        best = self._best() if self.rows else {}
        seconds = sum(row.get("seconds", 0) for row in self.rows)
        study.note(trial, metrics=dict(best), seconds=seconds, reason=reason)
        if self.artifacts:
            self.artifacts.push(study, trial, folder)
        study.tell(trial, state, best[study.sweep.space.goal.column] if state == TrialState.COMPLETE else None)
        if self.artifacts:
            self.artifacts.remove(study.read_trial(trial), "checkpoint")
        remove_checkpoints(folder)
