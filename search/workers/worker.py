"""One device's loop: take a trial, drive its training, report every epoch, tell the result."""

import csv
import io
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from search.comet.client import wait_for_comet
from search.files import write_text
from search.space.space import Goal
from search.study.create import open_shared_study
from search.study.deaths import note_last_words
from search.study.locks import TrialLostError
from search.study.queue import AcquiredTrial, acquire
from search.study.shared_study import Owner, SharedStudy
from search.study.storage import StorageError, first_line
from search.study.sweep import Sweep
from search.study.trials import CONFIRMS, DISPLACED, parameters_of
from search.task import EpochMetrics, OutOfMemoryError, ProcessLostError, Task, TrialContext, WorkerSlot
from search.workers.artifacts import Artifacts, checkpoint_of, remove_checkpoints
from search.workers.tracking import Tracker, Tracking

__all__ = ["Part", "run_trial", "work"]


@dataclass(frozen=True)
class Part:
    """A part of a sweep, as a worker is told of it."""

    sweep: Sweep
    tracking: Tracking | None  # where its trials are also shown; either all parts have one or none


def work(parts: Sequence[Part], owner: Owner, task: Task, slot: WorkerSlot) -> None:
    """Train trials until no part of the sweep has any left: those of the first part first.

    Raises OSError and StorageError for what is wrong with the machine or with Comet's Optimizer, not with a trial, and
    ValueError where Comet refuses what we ask.
    """
    try:
        _work([_seen_from(slot, part) for part in parts], owner, task, slot)
    except StorageError as error:
        raise StorageError(first_line(error)) from None  # an error's cause does not travel to another process


def _seen_from(slot: WorkerSlot, part: Part) -> Part:
    if not part.tracking or not slot.label:
        return part
    facts = {**part.tracking.facts, "host": platform.node(), "devices": slot.label}  # not the command's, perhaps
    return replace(part, tracking=replace(part.tracking, facts=facts))


def _work(parts: Sequence[Part], owner: Owner, task: Task, slot: WorkerSlot) -> None:
    tracker = Tracker(parts[0].tracking) if parts[0].tracking else None
    artifacts = Artifacts(parts[0].sweep.artifacts) if parts[0].sweep.artifacts else None
    try:
        for study, tracking, claim in _claims(parts, owner, slot):
            lost = False
            if tracker and tracking:
                tracker.tracking = tracking
            try:
                _work_on(study, claim, task, slot, tracker, artifacts)
            except (TrialLostError, UpdateFinishedTrialError):
                lost = True
            finally:
                claim.release()
            if lost:
                study.say(f"{study.sweep.label(claim.trial)} was given to another worker while this one was cut off")
            if tracker:
                tracker.close(study.read_trial(claim.trial), news=study.news_of(claim.trial))
            if lost:
                return  # the next process has a name of its own: when this one's ends, no trial is to blame
    finally:
        if tracker:
            tracker.finish()


def _claims(
    parts: Sequence[Part], owner: Owner, slot: WorkerSlot
) -> Iterator[tuple[SharedStudy, Tracking | None, AcquiredTrial]]:
    """Take trials while there are any: of a part only when those before it have none to be taken."""
    studies: dict[str, SharedStudy] = {}
    while True:
        for part in parts:
            name = part.sweep.part
            study = studies[name] = studies.get(name) or open_shared_study(part.sweep, owner)
            take = partial(acquire, study, slot.index, slot.label or slot.device)
            if claim := wait_for_comet(take, part.sweep.patience, study.say):
                yield study, part.tracking, claim
                break
        else:
            return


def _work_on(
    study: SharedStudy,
    claim: AcquiredTrial,
    task: Task,
    slot: WorkerSlot,
    tracker: Tracker | None,
    artifacts: Artifacts | None,
) -> None:
    trial, folder = claim.trial, study.sweep.trial_folder(claim.trial.number)
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
        checkpoint=checkpoint_of(study.sweep, claim, folder),
        check=study.check,
    )
    epochs = partial(_tracked, tracker, trial, task) if tracker else task
    run_trial(study, trial, epochs, context, artifacts)


def _tracked(tracker: Tracker, trial: FrozenTrial, task: Task, context: TrialContext) -> Iterator[EpochMetrics]:
    return tracker.tracked(trial, task(context))


def run_trial(
    study: SharedStudy, trial: FrozenTrial, task: Task, context: TrialContext, artifacts: Artifacts | None = None
) -> None:
    """Drive the task to its end, to the pruner's no, or to its failure; tell the study which."""
    rows: list[EpochMetrics] = []
    try:
        state = TrialState.COMPLETE
        for row in task(context):
            rows.append(_checked(row, len(rows) + 1, study.sweep.space.goal))
            stop = _report(study, trial, rows)
            _write_history(context.folder / "history.csv", rows)
            if stop:
                state = TrialState.PRUNED
                break
            if artifacts:
                artifacts.push(study, trial, context.folder)
        reason = f"stopped by {study.sweep.pruner} after epoch {len(rows)}" if state == TrialState.PRUNED else ""
        reason = trial.user_attrs.get(DISPLACED, reason)
    except (OSError, StorageError, TrialLostError, UpdateFinishedTrialError):
        raise  # disk full, data gone, study out of reach: every other trial would fail too
    except ProcessLostError as error:
        note_last_words(study, trial, str(error).splitlines()[0], starved=isinstance(error, OutOfMemoryError))
        os._exit(1)  # which is counted as any other death
    except FloatingPointError as error:
        state, reason = TrialState.FAIL, str(error)
    except Exception as error:  # noqa: BLE001 - whatever a configuration does wrong is a result of the search, not its end
        state, reason = TrialState.FAIL, f"{type(error).__name__}: {error}".splitlines()[0]
    goal = study.sweep.space.goal
    values = [row[goal.column] for row in rows]
    best = rows[goal.index(values)] if rows else {}
    study.note(trial, metrics=dict(best), seconds=sum(row.get("seconds", 0) for row in rows), reason=reason)
    if artifacts:
        artifacts.push(study, trial, context.folder)
    study.tell(trial, state, values[goal.index(values)] if state == TrialState.COMPLETE else None)
    if artifacts:
        artifacts.remove(study.read_trial(trial), "checkpoint")
    remove_checkpoints(context.folder)


def _checked(row: EpochMetrics, epoch: int, goal: Goal) -> EpochMetrics:
    """Return an epoch whose goal is a number. Raises FloatingPointError, naming the epoch, where it is none."""
    if not math.isfinite(row[goal.column]):
        raise FloatingPointError(f"diverged in epoch {epoch}: {goal.column} is {row[goal.column]}")
    return row


def _report(study: SharedStudy, trial: FrozenTrial, rows: list[EpochMetrics]) -> bool:
    """Record the latest epoch as the best value so far; say whether the trial is to stop."""
    goal = study.sweep.space.goal
    values = [row[goal.column] for row in rows]
    return study.report(trial, len(rows), values[goal.index(values)])


def _write_history(path: Path, rows: list[EpochMetrics]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
