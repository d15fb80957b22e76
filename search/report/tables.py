"""Build the tables of a report: candidates, ranking, failures."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
from string import ascii_lowercase
from typing import Any

import numpy as np

from search.analysis.confirmation import read_outcomes
from search.analysis.ranking import searched_names
from search.analysis.statistics import Interval, mean_interval, model_difference
from search.formatting import short
from search.report.record import Record
from search.study.trials import state_of


@dataclass(frozen=True)
class Cell:
    text: str
    sort_by: float | str | None  # None: sorted last


@dataclass(frozen=True)
class Row:
    cells: Sequence[Cell]
    wins: bool = False  # highlighted


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Row]


def candidates_table(record: Record) -> Table | None:
    """Build the table of confirmed configurations, the winner first; None without confirmation."""
    if not any(candidate.runs for candidate in record.candidates):
        return None
    columns = ["trial", record.goal.metric, "95 % from", "to", "runs", "mult-adds", "compared with the best mean"]
    rows = []
    for place, candidate in enumerate(record.candidates):
        low, high = candidate.interval or (None, None)
        cells = [_cell(candidate.trial), *(_cell(value, ".4f") for value in (candidate.mean, low, high))]
        cells.append(_cell(" ".join(f"{value:.4f}" for value in candidate.values)))
        cells += [Cell(short(candidate.cost), candidate.cost), _cell(candidate.standing)]
        rows.append(Row(cells, wins=place == 0))
    return Table(columns, rows)


def ranking_table(record: Record) -> Table:
    """Build the table of all trials, the best first, with the parameters that are searched."""
    names = searched_names(record.ranking)
    columns = ["rank", "trial", "tie", "state", record.goal.metric, "95 % from", "to", "val accuracy", "epochs"]
    rows = []
    for trial, (interval, tie) in zip(record.ranking, _intervals_and_ties(record), strict=True):
        low, high = interval or (None, None)
        cells = [_cell(value) for value in (trial.rank, trial.trial, tie, trial.state)]
        cells += [_cell(value, ".4f") for value in (trial.value, low, high, trial.val_accuracy)]
        cells += [_cell(trial.epochs), _cell(trial.seconds, ".0f")]
        cells += [_cell(trial.parameters.get(name), ".4g") for name in names]
        rows.append(Row([*cells, _cell(trial.reason)], wins=trial.trial == record.winner))
    return Table([*columns, "seconds", *names, "reason"], rows)


def failures_table(record: Record) -> Table | None:
    """Build the table of failures by reason; None without failures."""
    reasons = Counter(trial.reason for trial in record.ranking if trial.state == "failed")
    reasons.update(f"to confirm: {run.user_attrs.get('reason')}" for run in record.runs if state_of(run) == "failed")
    rows = [Row([_cell(number), _cell(reason)]) for reason, number in reasons.most_common()]
    return Table(["trials", "reason"], rows) if rows else None


def _intervals_and_ties(record: Record) -> Iterator[tuple[Interval | None, str]]:
    """Yield each trial's interval, and the letter it shares with the trials that are tied with the group's first."""
    letters = ("".join(word) for size in count(1) for word in product(ascii_lowercase, repeat=size))
    first, letter = None, ""
    for trial in record.ranking:
        found = read_outcomes([record.folder / f"trials/{trial.trial:04}"], record.goal.column)
        interval = None if found is None else mean_interval(found[0])
        if found is None or trial.state != "complete":
            yield interval, ""
            continue
        if first is None or not _is_tied(found[0], first):
            first, letter = found[0], next(letters)  # a, b, ..., z, aa, ab, ...
        yield interval, letter


def _is_tied(outcomes: np.ndarray, others: np.ndarray) -> bool:
    if len(outcomes) != len(others):
        return False
    low, high = model_difference(outcomes, others)
    return low <= 0 <= high


def _cell(value: Any, form: str = "") -> Cell:
    """Write a number in the given form and sort by it, unless it is not finite; write other values as text."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return Cell("", None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(f"{value:{form}}", value)
    return Cell(str(value), str(value))
