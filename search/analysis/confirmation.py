"""The best few configurations, trained again with fresh seeds: which one is really best, and which are tied with it.

The best of many noisy trials looks better than it is. A run with a seed that no trial had owes nothing to that luck.
"""

import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from search.analysis.ranking import rank, winner_of
from search.analysis.statistics import (
    Interval,
    SeedNoise,
    configuration_gap,
    configuration_interval,
    mean_interval,
    model_gap,
    seed_noise,
)
from search.formatting import short
from search.space.space import Goal, Parameters
from search.study.shared_study import SharedStudy
from search.study.trials import CONFIRMS, REPEAT, parameters_of

__all__ = [
    "OUTCOMES",
    "Candidate",
    "candidates_of",
    "gain_over_baseline",
    "print_candidates",
    "read_outcomes",
]

Standing = Literal["best mean", "tied", "tied, weights worse", "worse", "not compared"]

OUTCOMES = "outcomes.npz"  # in a trial's folder: a column's value for each validation picture, at the epoch that counts


@dataclass(frozen=True)
class Candidate:
    """A configuration that may win."""

    trial: int  # the search's, which found it
    runs: tuple[int, ...]  # of the confirmation, complete; none where nothing is confirmed
    values: tuple[float, ...]  # of the goal, in each of them
    mean: float
    interval: Interval | None  # of the mean over all seeds and pictures
    cost: float  # of one prediction: multiply-adds
    standing: Standing  # beside the one of the best mean, at 95 %
    best_run: int | None  # the run whose weights are to be promoted; None: the trial's own

    def folder(self, sweep_folder: Path) -> Path:
        """Return where the weights lie that this configuration would be promoted with."""
        part, number = ("trials", self.trial) if self.best_run is None else ("confirmation", self.best_run)
        return sweep_folder / part / f"{number:04}"


def candidates_of(
    study: SharedStudy, runs: Sequence[FrozenTrial], cost: Callable[[Parameters], float]
) -> list[Candidate]:
    """Return the winner, then the others from the best mean to the worst; nothing where none was confirmed.

    The winner is the cheapest of those that are tied with the best mean and whose weights are no worse than its own:
    a handful of seeds tells few configurations apart, and weights that are seen to be worse are not worth promoting.
    A configuration one of whose `runs` failed is none of them. Without any runs the winner is the search's best
    trial, unconfirmed.
    """
    goal, trials = study.sweep.space.goal, study.trials()
    if not runs:
        best = winner_of(rank(trials, goal))
        return [_unconfirmed(study, trials[best.trial], cost)] if best else []
    confirmed = _confirmed(study.sweep.folder / "confirmation", runs, goal)
    noise = seed_noise([one.outcomes for one in confirmed])
    found = [
        Candidate(
            trial=one.trial,
            runs=tuple(run.number for run in one.runs),
            values=tuple(one.values),
            mean=float(np.mean(one.values)),
            interval=configuration_interval(one.outcomes, noise)
            if noise.freedom or one.outcomes.shape[1] > 1
            else None,
            cost=cost(parameters_of(trials[one.trial])),
            standing=_standing(one, confirmed[0], noise, goal),
            best_run=one.runs[one.best].number,
        )
        for one in confirmed
    ]
    tied = [candidate for candidate in found if candidate.standing in ("best mean", "tied")]
    winner = min(tied, key=lambda candidate: candidate.cost, default=None)
    return sorted(found, key=lambda candidate: candidate is not winner)


def read_outcomes(folder: Path, column: str) -> np.ndarray | None:
    """Return (N,) values of a column, one for each validation picture; None where a trial left none of it."""
    try:
        with np.load(folder / OUTCOMES) as columns:
            values: np.ndarray | None = columns.get(column)
            return values
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


@dataclass(frozen=True)
class _Confirmed:
    """A configuration all of whose runs completed."""

    trial: int
    runs: Sequence[FrozenTrial]
    values: Sequence[float]  # of the goal
    outcomes: np.ndarray  # (runs, N); each run's value alone, (runs, 1), where not all left outcomes per picture
    best: int  # index of the run with the best value


def _confirmed(folder: Path, runs: Sequence[FrozenTrial], goal: Goal) -> list[_Confirmed]:
    """Return the configurations of `runs`, the best mean first."""
    of_trial: dict[int, list[FrozenTrial]] = {}
    for run in sorted(runs, key=lambda run: (run.user_attrs[REPEAT], run.number)):
        of_trial.setdefault(run.user_attrs[CONFIRMS], []).append(run)
    whole = {
        number: again for number, again in of_trial.items() if all(run.state == TrialState.COMPLETE for run in again)
    }
    read = {run.number: read_outcomes(folder / f"{run.number:04}", goal.column) for run in runs}
    sizes = {
        len(found) if found is not None else 0 for again in whole.values() for found in [read[r.number] for r in again]
    }
    confirmed = []
    for number, again in whole.items():
        values = [_value(run) for run in again]
        per_picture = [read[run.number] for run in again] if len(sizes) == 1 and sizes != {0} else values
        outcomes = np.array(per_picture, dtype=np.float64).reshape(len(again), -1)
        confirmed.append(_Confirmed(number, again, values, outcomes, values.index(goal.best(values))))
    sign = 1 if goal.direction == "minimize" else -1
    return sorted(confirmed, key=lambda one: (sign * np.mean(one.values), one.trial))


def _standing(one: _Confirmed, best: _Confirmed, noise: SeedNoise, goal: Goal) -> Standing:
    if one is best:
        return "best mean"
    if not noise.freedom and one.outcomes.shape[1] == 1:
        return "not compared"
    low, high = configuration_gap(one.outcomes, best.outcomes, noise)
    if not low <= 0 <= high:
        return "worse"
    if one.outcomes.shape[1] == 1:  # nothing is known per picture
        return "tied"
    low, high = model_gap(one.outcomes[one.best], best.outcomes[best.best])
    worse = low > 0 if goal.direction == "minimize" else high < 0
    return "tied, weights worse" if worse else "tied"


def _unconfirmed(study: SharedStudy, trial: FrozenTrial, cost: Callable[[Parameters], float]) -> Candidate:
    outcomes = read_outcomes(study.sweep.trial_folder(trial.number), study.sweep.space.goal.column)
    interval = None if outcomes is None else mean_interval(outcomes)
    value = _value(trial)
    return Candidate(
        trial.number, (), (value,), value, interval, cost(parameters_of(trial)), standing="best mean", best_run=None
    )


def _value(trial: FrozenTrial) -> float:
    value = trial.value
    assert value is not None, "a complete trial has a value"
    return value


def print_candidates(console: Console, candidates: Sequence[Candidate], goal: Goal) -> None:
    """Show who may win, the winner first, what each is worth, and which of them cannot be told apart."""
    if not any(candidate.runs for candidate in candidates):
        return
    over = "seeds and pictures" if len(candidates[0].runs) > 1 else "pictures (one run each says nothing of seeds)"
    title = f"confirmed with fresh seeds, winner first; {goal.metric} over all {over}, 95 % intervals"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in ("trial", goal.metric, "interval", "runs", "mult-adds", "beside the best"):
        table.add_column(name, justify="right", no_wrap=True)
    for candidate in candidates:
        low, high = candidate.interval or (math.nan, math.nan)
        runs = " ".join(f"{value:.4f}" for value in candidate.values)
        figures = (f"{candidate.mean:.4f}", f"{low:.4f} to {high:.4f}", runs, short(candidate.cost))
        table.add_row(str(candidate.trial), *figures, candidate.standing)
    console.print(table)


@dataclass(frozen=True)
class Gain:
    """The winner beside the baseline in one column of an epoch: the winner's mean less the baseline's value."""

    mean: float
    interval: Interval


def gain_over_baseline(folder: Path, candidates: Sequence[Candidate], column: str) -> dict[str, Gain]:
    """Return the winner's gain over trial 0 in the goal's `column` and in accuracy, where both left outcomes."""
    gains: dict[str, Gain] = {}
    if candidates and candidates[0].trial == 0:
        return gains
    for name in dict.fromkeys((column, "val_accuracy")):
        baseline = read_outcomes(folder / "trials/0000", name)
        found = [_of_candidate(folder, candidate, name) for candidate in candidates]
        if baseline is None or not found or found[0] is None or found[0].shape[1] != len(baseline):
            continue
        noise = seed_noise([outcomes for outcomes in found if outcomes is not None and len(outcomes) > 1])
        interval = configuration_gap(found[0], baseline[None], noise)
        gains[name] = Gain(float(found[0].mean() - baseline.mean()), interval)
    return gains


def _of_candidate(folder: Path, candidate: Candidate, column: str) -> np.ndarray | None:
    """Return (runs, N) outcomes; of a configuration that was not confirmed, those of its one trial."""
    where = [folder / "confirmation" / f"{run:04}" for run in candidate.runs] or [candidate.folder(folder)]
    found = [read_outcomes(path, column) for path in where]
    return np.stack([o for o in found if o is not None]) if all(o is not None for o in found) else None
