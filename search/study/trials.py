"""Trials of a study: their states, parameters and order."""

import math
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.space.space import Goal, Parameters

CONFIRMS, REPEAT = "confirms", "repeat"  # user attributes of a run: the trial that it trains again, and which time
DISPLACED = "displaced"  # user attribute of a run that does not count: why
ORDER = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL]
ENDED = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def id_of(trial: FrozenTrial | optuna.Trial) -> int:
    """Return the number by which Optuna's storages address a trial."""
    return trial._trial_id  # noqa: SLF001 - it has no public name


def state_of(trial: FrozenTrial) -> str:
    """Name a trial's state as users read it. An unfinished one is being trained, or will be resumed."""
    return ENDED.get(trial.state, "unfinished")


def parameters_of(trial: FrozenTrial) -> Parameters:
    """Return a trial's parameters, in the terms of optimizer.json."""
    return {**trial.params, **trial.user_attrs.get("parameters", {})}


def ordered(trials: Sequence[FrozenTrial], goal: Goal) -> list[FrozenTrial]:
    """Order trials by state (complete, pruned, running, waiting, failed), then by the goal."""

    def key(trial: FrozenTrial) -> tuple[int, float, int]:
        value = value_of(trial, goal)
        return ORDER.index(trial.state), math.inf if value is None else goal.as_loss(value), trial.number

    return sorted(trials, key=key)


def value_of(trial: FrozenTrial, goal: Goal) -> float | None:
    """Return the value by which a trial is ranked: its result or, if it did not complete, the best or last epoch's."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    values = [value for _, value in sorted(trial.intermediate_values.items())]
    return values[goal.index(values)] if values else None


def counted(runs: Sequence[FrozenTrial], chosen: Sequence[Sequence[int]] | None) -> list[FrozenTrial]:
    """Return the runs that were `chosen` by trial and repeat; None: all, as none was made ahead of the choice."""
    kept = [run for run in runs if DISPLACED not in run.user_attrs]
    return [run for run in kept if chosen is None or pair_of(run) in chosen]


def pair_of(run: FrozenTrial) -> list[int]:
    """Return the trial that a run confirms and the repeat, from 1, as in the study's attribute CHOSEN."""
    return [run.user_attrs[CONFIRMS], run.user_attrs[REPEAT]]
