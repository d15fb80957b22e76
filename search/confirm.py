"""The best few configurations, trained again with fresh seeds: which one is really best, and which are tied with it.

The best of many noisy trials looks better than it is. A run with a seed that no trial had owes nothing to that luck.
"""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from search.evidence import (
    Interval,
    SeedNoise,
    configuration_gap,
    configuration_interval,
    mean_interval,
    seed_noise,
)
from search.ledger import Ledger, create_confirmation
from search.report import rank, winner_of
from search.space import Goal, Parameters
from search.study import CONFIRMS, parameters_of

__all__ = [
    "OUTCOMES",
    "Candidate",
    "begin_confirmation",
    "beside",
    "best_mean",
    "candidates_of",
    "gain_over_baseline",
    "print_candidates",
    "read_outcomes",
]

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
    tied: bool  # with the one of the best mean: no difference at 95 %
    best_run: int | None  # the run whose weights are to be promoted; None: the trial's own

    def folder(self, sweep_folder: Path) -> Path:
        """Return where the weights lie that this configuration would be promoted with."""
        part, number = ("trials", self.trial) if self.best_run is None else ("confirmation", self.best_run)
        return sweep_folder / part / f"{number:04}"


def begin_confirmation(ledger: Ledger, num_configurations: int, num_repeats: int) -> Ledger:
    """Have the best complete trials trained `num_repeats` times again; return the ledger's part for that."""
    trials = ledger.trials()
    best = [trials[line.trial] for line in rank(trials, ledger.sweep.space.goal) if line.state == "complete"]
    repeats = range(1, num_repeats + 1)
    return create_confirmation(ledger, [(trial, n) for n in repeats for trial in best[:num_configurations]])


def candidates_of(ledger: Ledger, runs: Sequence[FrozenTrial], cost: Callable[[Parameters], float]) -> list[Candidate]:
    """Return the winner, then the others from the best mean to the worst; nothing where none was confirmed.

    The winner is the cheapest of those that are tied with the best mean. A configuration one of whose `runs` failed
    is none of them. Without any runs the winner is the search's best trial, unconfirmed.
    """
    goal, trials = ledger.sweep.space.goal, ledger.trials()
    if not runs:
        best = winner_of(rank(trials, goal))
        return [_unconfirmed(ledger, trials[best.trial], cost)] if best else []
    of_trial: dict[int, list[FrozenTrial]] = {}
    for run in runs:
        of_trial.setdefault(run.user_attrs[CONFIRMS], []).append(run)
    whole = {
        number: again for number, again in of_trial.items() if all(run.state == TrialState.COMPLETE for run in again)
    }
    outcomes = _outcomes(ledger.sweep.folder / "confirmation", whole, goal)
    noise = seed_noise(list(outcomes.values())) if whole else SeedNoise(0.0, 0.0, 0)
    sign = 1 if goal.direction == "minimize" else -1
    order = sorted(whole, key=lambda number: (sign * _mean(whole[number]), number))
    found = []
    for number in order:
        low, high = configuration_gap(outcomes[order[0]], outcomes[number], noise)
        values = [_value(run) for run in whole[number]]
        found.append(
            Candidate(
                trial=number,
                runs=tuple(run.number for run in whole[number]),
                values=tuple(values),
                mean=_mean(whole[number]),
                interval=configuration_interval(outcomes[number], noise),
                cost=cost(parameters_of(trials[number])),
                tied=low <= 0 <= high,
                best_run=whole[number][int(np.argmin([sign * value for value in values]))].number,
            )
        )
    winner = min((c for c in found if c.tied), key=lambda c: (c.cost, sign * c.mean), default=None)
    return sorted(found, key=lambda candidate: candidate is not winner)


def read_outcomes(folder: Path, column: str) -> np.ndarray | None:
    """Return (N,) values of a column, one for each validation picture; None where a trial left none of it."""
    try:
        with np.load(folder / OUTCOMES) as columns:
            values: np.ndarray | None = columns.get(column)
            return values
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _unconfirmed(ledger: Ledger, trial: FrozenTrial, cost: Callable[[Parameters], float]) -> Candidate:
    outcomes = read_outcomes(ledger.sweep.trial_folder(trial.number), ledger.sweep.space.goal.column)
    interval = None if outcomes is None else mean_interval(outcomes)
    value = _value(trial)
    return Candidate(trial.number, (), (value,), value, interval, cost(parameters_of(trial)), tied=True, best_run=None)


def _outcomes(folder: Path, runs_of: Mapping[int, Sequence[FrozenTrial]], goal: Goal) -> dict[int, np.ndarray]:
    """Return (runs, N) outcomes by trial; a run's value stands for its only picture where not all have them."""
    found = {
        number: [read_outcomes(folder / f"{run.number:04}", goal.column) for run in runs]
        for number, runs in runs_of.items()
    }
    sizes = {0 if outcomes is None else len(outcomes) for again in found.values() for outcomes in again}
    if len(sizes) == 1 and sizes != {0}:
        return {number: np.stack([o for o in again if o is not None]) for number, again in found.items()}
    return {number: np.array([[_value(run)] for run in runs]) for number, runs in runs_of.items()}


def _mean(runs: Sequence[FrozenTrial]) -> float:
    return float(np.mean([_value(run) for run in runs]))


def _value(trial: FrozenTrial) -> float:
    value = trial.value
    assert value is not None, "a complete trial has a value"
    return value


def best_mean(candidates: Sequence[Candidate], goal: Goal) -> Candidate:
    return min(candidates, key=lambda c: c.mean if goal.direction == "minimize" else -c.mean)


def beside(candidate: Candidate, best: Candidate) -> str:
    """Say how a candidate stands beside the one of the best mean."""
    return "best mean" if candidate is best else "tied" if candidate.tied else "worse"


def print_candidates(console: Console, candidates: Sequence[Candidate], goal: Goal) -> None:
    """Show who may win, the winner first, what each is worth, and which of them cannot be told apart."""
    if not any(candidate.runs for candidate in candidates):
        return
    title = f"confirmed with fresh seeds, winner first; {goal.metric} over all seeds and pictures, 95 % intervals"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in ("trial", goal.metric, "interval", "runs", "mult-adds", "beside the best"):
        table.add_column(name, justify="right", no_wrap=True)
    best = best_mean(candidates, goal)
    for candidate in candidates:
        low, high = candidate.interval or (math.nan, math.nan)
        runs = " ".join(f"{value:.4f}" for value in candidate.values)
        figures = (f"{candidate.mean:.4f}", f"{low:.4f} to {high:.4f}", runs, f"{candidate.cost / 1e9:.2f} G")
        table.add_row(str(candidate.trial), *figures, beside(candidate, best))
    console.print(table)


@dataclass(frozen=True)
class Gain:
    """The winner beside the baseline in one column of an epoch: the winner's mean less the baseline's value."""

    mean: float
    interval: Interval


def gain_over_baseline(folder: Path, candidates: Sequence[Candidate], column: str) -> dict[str, Gain]:
    """Return the winner's gain over trial 0 in the goal's `column` and in accuracy, where both left outcomes."""
    gains = {}
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
