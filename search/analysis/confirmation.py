"""Choose the winner among the best configurations, which were trained again with fresh seeds.

The best of many noisy trials is optimistically biased. A run with a seed that no trial used is not.
"""

import math
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from search.analysis import statistics
from search.analysis.ranking import Ranked, fits, rank, winner_of
from search.formatting import bounds, count, short
from search.space.space import Goal, Parameters
from search.study.shared_study import SharedStudy
from search.study.trials import CONFIRMS, REPEAT, parameters_of, state_of

Standing = Literal["best mean", "tied", "tied, weights worse", "worse", "not compared"]
Cost = Callable[[Parameters], float]  # of one prediction, in mult-adds
Gain = tuple[float, statistics.Interval]  # the winner's mean minus the baseline's value, and the interval of it
OUTCOMES = "outcomes.npz"  # in a trial's folder: a column's value per validation image, at the epoch that counts


@dataclass(frozen=True)
class Candidate:
    """A configuration that may win."""

    trial: int  # of the search
    runs: tuple[int, ...]  # of its confirmation, all complete; empty without confirmation
    values: tuple[float, ...]  # of the goal, one per run
    mean: float
    interval: statistics.Interval | None  # of the mean over all seeds and images
    cost: float  # of one prediction, in mult-adds
    standing: Standing  # compared with the best mean, at 95 %
    best_run: int | None  # the run whose weights would be promoted; None: the trial's own

    def folder(self, sweep_folder: Path) -> Path:
        """Return the folder of the weights that would be promoted."""
        part, number = ("trials", self.trial) if self.best_run is None else ("confirmation", self.best_run)
        return sweep_folder / part / f"{number:04}"


def candidates_of(study: SharedStudy, runs: Sequence[FrozenTrial], cost: Cost) -> list[Candidate]:
    """Return the winner, then the others from the best mean to the worst; empty if no configuration was confirmed.

    The winner is the cheapest configuration among those that are tied with the best mean and whose weights are not
    significantly worse: a handful of seeds can distinguish few configurations. A configuration with a failed run is
    left out. Without any `runs` the winner is the search's best trial, unconfirmed.
    """
    goal, trials = study.sweep.space.goal, study.trials()
    if not runs:
        best = winner_of(rank(trials, goal))
        return [_unconfirmed(study, trials[best.trial], cost)] if best else []
    confirmed = _read_confirmed(study.sweep.folder, runs, goal)
    noise = statistics.seed_noise([one.outcomes for one in confirmed])
    candidates = [
        Candidate(
            trial=one.trial,
            runs=tuple(run.number for run in one.runs),
            values=tuple(one.values),
            mean=one.mean,
            interval=statistics.configuration_interval(one.outcomes, noise) if noise.dof or one.is_per_image else None,
            cost=cost(parameters_of(trials[one.trial])),
            standing=_standing(one, confirmed[0], noise, goal),
            best_run=one.runs[one.best].number,
        )
        for one in confirmed
    ]
    tied = [candidate for candidate in candidates if candidate.standing in ("best mean", "tied")]
    winner = min(tied, key=lambda candidate: candidate.cost, default=None)
    return sorted(candidates, key=lambda candidate: candidate is not winner)


def explain_winner(candidates: Sequence[Candidate], ranking: Sequence[Ranked]) -> str:
    """Say why the winner is not the search's best trial; empty if it is, or if nothing was confirmed."""
    best = ranking[0].trial if ranking else None
    if not candidates or not candidates[0].runs or candidates[0].trial == best:
        return ""
    winner, first = candidates[0], next((one for one in candidates if one.trial == best), None)
    if first is None:
        why = f"not all confirmation runs of trial {best} completed"
    elif first.standing == "tied, weights worse":
        why = f"the weights of trial {best} are worse on the validation images"
    elif winner.cost < first.cost and first.standing in ("best mean", "tied"):
        why = f"it is tied with trial {best} and cheaper ({short(winner.cost)} against {short(first.cost)} mult-adds)"
    else:
        means = f"{winner.mean:.4f} against {first.mean:.4f}"
        why = f"its mean over fresh seeds is better than that of trial {best} ({means})"
    return f"trial {winner.trial} won, though trial {best} was the best in the search: {why}"


def explain_shortfall(trials: Sequence[FrozenTrial], runs: Sequence[FrozenTrial], num_wanted: int) -> str:
    """Say why the `runs` confirm fewer configurations than the user wants; empty if there are enough."""
    num_confirmed = len({run.user_attrs[CONFIRMS] for run in runs})
    if num_confirmed >= num_wanted:
        return ""
    states = Counter(state_of(trial) for trial in trials)
    others = [f"{states[state]} {state}" for state in ("pruned", "failed") if states[state]]
    same = "" if states["complete"] == num_confirmed else ", and equal configurations count once"
    ended = f"here {states['complete']} of {len(trials)}" + (f" ({', '.join(others)})" if others else "")
    what = f"{count(num_confirmed, 'configuration')} confirmed instead of {num_wanted}"
    return f"{what}: only complete trials can be, {ended}{same}"


def read_outcomes(folders: Sequence[Path], column: str) -> np.ndarray | None:
    """Return (folders, N) values of a column, one per validation image; None if a trial saved none, or others."""
    values = []
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        for folder in folders:
            with np.load(folder / OUTCOMES) as columns:
                values.append(columns[column])
        return np.stack(values)
    return None


@dataclass(frozen=True)
class _Confirmed:
    """A configuration with all of its runs complete."""

    trial: int
    runs: Sequence[FrozenTrial]
    values: Sequence[float]  # of the goal
    outcomes: np.ndarray  # (runs, N); (runs, 1), each run's value, if some run has no outcomes per image
    best: int  # index of the run with the best value

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def is_per_image(self) -> bool:
        return bool(self.outcomes.shape[1] > 1)


def _read_confirmed(folder: Path, runs: Sequence[FrozenTrial], goal: Goal) -> list[_Confirmed]:
    """Return the configurations whose runs are all complete, the best mean first."""
    ordered = sorted(runs, key=lambda run: (run.user_attrs[CONFIRMS], run.user_attrs[REPEAT], run.number))
    groups = [list(group) for _, group in groupby(ordered, key=lambda run: run.user_attrs[CONFIRMS])]
    complete = [group for group in groups if all(run.state == TrialState.COMPLETE for run in group)]
    values = [[_value(run) for run in group] for group in complete]
    folders = [[folder / f"confirmation/{run.number:04}" for run in group] for group in complete]
    outcomes = [read_outcomes(paths, goal.column) for paths in folders]
    sizes = {0 if found is None else found.shape[1] for found in outcomes}
    known: Sequence[Any] = outcomes if len(sizes) == 1 and 0 not in sizes else values
    confirmed = [
        _Confirmed(
            trial=group[0].user_attrs[CONFIRMS],
            runs=group,
            values=numbers,
            outcomes=np.array(found, dtype=np.float64).reshape(len(group), -1),
            best=numbers.index(goal.best(numbers)),
        )
        for group, numbers, found in zip(complete, values, known, strict=True)
    ]
    return sorted(confirmed, key=lambda one: (goal.as_loss(one.mean), one.trial))


def _standing(one: _Confirmed, best: _Confirmed, noise: statistics.SeedNoise, goal: Goal) -> Standing:
    if one is best:
        return "best mean"
    if not noise.dof and not one.is_per_image:
        return "not compared"
    low, high = statistics.configuration_difference(one.outcomes, best.outcomes, noise)
    if not low <= 0 <= high:
        return "worse"
    if not one.is_per_image:
        return "tied"
    low, high = statistics.model_difference(one.outcomes[one.best], best.outcomes[best.best])
    is_worse = low > 0 if goal.direction == "minimize" else high < 0
    return "tied, weights worse" if is_worse else "tied"


def _unconfirmed(study: SharedStudy, trial: FrozenTrial, cost: Cost) -> Candidate:
    outcomes = read_outcomes([study.sweep.trial_folder(trial.number)], study.sweep.space.goal.column)
    interval = None if outcomes is None else statistics.mean_interval(outcomes[0])
    value = _value(trial)
    return Candidate(trial.number, (), (value,), value, interval, cost(parameters_of(trial)), "best mean", None)


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None, "a complete trial has a value"
    return trial.value


def print_candidates(console: Console, candidates: Sequence[Candidate], goal: Goal) -> None:
    """Print the confirmed configurations, the winner first; nothing without confirmation."""
    if not any(candidate.runs for candidate in candidates):
        return
    over = "seeds and images" if len(candidates[0].runs) > 1 else "images (one run each says nothing about seeds)"
    title = f"confirmed with fresh seeds, winner first; {goal.metric} over all {over}, 95 % intervals"
    rows = [_cells(candidate, goal) for candidate in candidates]
    for left_out in ((), ("runs",), ("runs", "mult-adds")):  # until the table has room
        table = Table(title=title, title_justify="left", box=SIMPLE)
        for name in (name for name in rows[0] if name not in left_out):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(text for name, text in row.items() if name not in left_out))
        if fits(console, table):
            break
    console.print(table)


def _cells(candidate: Candidate, goal: Goal) -> dict[str, str]:
    """Return the texts of a candidate's row by column."""
    return {
        "trial": str(candidate.trial),
        goal.metric: f"{candidate.mean:.4f}",
        "interval": bounds(candidate.interval or (math.nan, math.nan)),
        "runs": " ".join(f"{value:.4f}" for value in candidate.values),
        "mult-adds": short(candidate.cost),
        "compared with the best": candidate.standing,
    }


def gain_over_baseline(folder: Path, candidates: Sequence[Candidate], column: str) -> dict[str, Gain]:
    """Return the winner's gain over trial 0 in the goal's `column` and in accuracy, where both saved outcomes."""
    if not candidates or candidates[0].trial == 0:
        return {}
    gains = {name: _gain(folder, candidates, name) for name in (column, "val_accuracy")}
    return {name: gain for name, gain in gains.items() if gain}


def _gain(folder: Path, candidates: Sequence[Candidate], column: str) -> Gain | None:
    baseline = read_outcomes([folder / "trials/0000"], column)
    found = [_outcomes_of(folder, candidate, column) for candidate in candidates]
    if baseline is None or found[0] is None or found[0].shape[1] != baseline.shape[1]:
        return None
    noise = statistics.seed_noise([outcomes for outcomes in found if outcomes is not None and len(outcomes) > 1])
    mean = float(found[0].mean() - baseline.mean())
    return mean, statistics.configuration_difference(found[0], baseline, noise)


def _outcomes_of(folder: Path, candidate: Candidate, column: str) -> np.ndarray | None:
    """Return (runs, N) outcomes of a candidate, (1, N) of an unconfirmed one; None if some are missing."""
    folders = [folder / f"confirmation/{run:04}" for run in candidate.runs] or [candidate.folder(folder)]
    return read_outcomes(folders, column)
