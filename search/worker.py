"""One device's loop: take a trial, drive its training, report every epoch, tell the result."""

import csv
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.comet import patiently
from search.ledger import Ledger
from search.study import CONFIRMS, LedgerError, Sweep, parameters_of
from search.tracking import Row, Tracker, Tracking

__all__ = ["CHECKPOINT", "Objective", "Place", "Task", "die_with", "work"]

CHECKPOINT = "checkpoint.pt"  # what an objective may leave in its trial's folder while the trial is not ended
WATCH_SECONDS = 0.5  # how often a worker looks whether its parent lives


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    slot: int  # its number among the workers of this machine, from 0
    device: str  # cpu, cuda:0, ...
    threads: int  # CPU threads that are its own (OMP_NUM_THREADS)


@dataclass(frozen=True)
class Task:
    """One trial, as the objective sees it."""

    number: int
    confirms: int | None  # the trial that a run of the confirmation trains again
    parameters: Mapping[str, Any]  # in the terms of optimizer.json
    seed: int  # the trial's own, the same each time it is taken up
    folder: Path  # runs/NAME/trials/NNNN, its own
    device: str


Objective = Callable[[Task], Iterator[Row]]
"""Train one trial: yield a row of metrics per epoch, the epochs of an earlier process first."""


def work(sweep: Sweep, objective: Objective, place: Place, tracking: Tracking | None) -> None:
    """Train trials until the budget is spent.

    Raises OSError and LedgerError for what is wrong with the machine or with Comet's Optimizer, not with a trial, and
    ValueError where Comet refuses what we ask.
    """
    ledger = Ledger(sweep)
    tracker = Tracker(tracking) if tracking else None
    try:
        _work(ledger, objective, place, tracker)
    finally:
        if tracker:
            tracker.finish()


def _work(ledger: Ledger, objective: Objective, place: Place, tracker: Tracker | None) -> None:
    sweep = ledger.sweep
    while claim := patiently(lambda: ledger.take(place.slot, place.device), sweep.patience, ledger.say):
        task = Task(
            number=claim.trial.number,
            confirms=claim.trial.user_attrs.get(CONFIRMS),
            parameters=parameters_of(claim.trial),
            seed=sweep.seed_of(claim.trial),
            folder=sweep.trial_folder(claim.trial.number),
            device=place.device,
        )
        epochs = partial(_tracked, tracker, claim.trial, objective) if tracker else objective
        run_trial(ledger, claim.trial, epochs, task)
        claim.release()
        if tracker:
            tracker.close(ledger.reread(claim.trial), news=ledger.news_of(claim.trial))


def _tracked(tracker: Tracker, trial: FrozenTrial, objective: Objective, task: Task) -> Iterator[Row]:
    return tracker.tracked(trial, objective(task))


def run_trial(ledger: Ledger, trial: FrozenTrial, objective: Objective, task: Task) -> None:
    """Drive the objective to its end, to the pruner's no, or to its failure; tell the ledger which."""
    rows: list[Row] = []
    try:
        state = _drive(ledger, trial, objective(task), task.folder, rows)
        reason = f"stopped by {ledger.sweep.pruner} after epoch {len(rows)}" if state == TrialState.PRUNED else ""
    except (OSError, LedgerError):
        raise  # disk full, data gone, ledger out of reach: every other trial would fail too
    except FloatingPointError as error:
        state, reason = TrialState.FAIL, str(error)
    except Exception as error:  # noqa: BLE001 - whatever a configuration does wrong is a result of the search, not its end
        state, reason = TrialState.FAIL, f"{type(error).__name__}: {error}".splitlines()[0]
    goal = ledger.sweep.space.goal
    values = [row[goal.column] for row in rows]
    best = rows[goal.index(values)] if rows else {}
    ledger.note(trial, metrics=dict(best), seconds=sum(row.get("seconds", 0) for row in rows), reason=reason)
    ledger.tell(trial, state, values[goal.index(values)] if state == TrialState.COMPLETE else None)
    (task.folder / CHECKPOINT).unlink(missing_ok=True)


def _drive(ledger: Ledger, trial: FrozenTrial, epochs: Iterator[Row], folder: Path, rows: list[Row]) -> TrialState:
    """Ask for epochs, appending each to `rows`, while nothing speaks against another one."""
    goal = ledger.sweep.space.goal
    column = goal.column
    for row in epochs:
        if not math.isfinite(row[column]):
            raise FloatingPointError(f"diverged in epoch {len(rows) + 1}: {column} is {row[column]}")
        rows.append(row)
        _write_history(folder / "history.csv", rows)
        values = [row[column] for row in rows]
        if ledger.report(trial, len(rows), values[goal.index(values)]):
            return TrialState.PRUNED
    return TrialState.COMPLETE


def _write_history(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def die_with(parent: int) -> None:
    """End this process when its parent has gone: whoever resumes the sweep must find the device idle."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
