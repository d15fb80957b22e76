"""Build the tables of a report: candidates, ranking, failures."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.analysis.confirmation import read_outcomes
from search.analysis.ranking import parameter_names
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
        cells = [_number(candidate.trial, "d"), *_numbers(candidate.mean, low, high)]
        cells.append(_text(" ".join(f"{value:.4f}" for value in candidate.values)))
        cells += [Cell(short(candidate.cost), candidate.cost), _text(candidate.standing)]
        rows.append(Row(cells, wins=place == 0))
    return Table(columns, rows)


def ranking_table(record: Record) -> Table:
    """Build the table of all trials, the best first."""
    names = parameter_names(record.ranking)
    bounds = ["95 % from", "to"]
    columns = ["rank", "trial", "tie", "state", record.goal.metric, *bounds, "val accuracy", "epochs", "seconds"]
    rows = []
    for trial, (interval, tie) in zip(record.ranking, _intervals_and_ties(record), strict=True):
        low, high = interval or (None, None)
        cells = [_number(trial.rank, "d"), _number(trial.trial, "d"), _text(tie), _text(trial.state)]
        cells += _numbers(trial.value, low, high, trial.val_accuracy)
        cells += [_number(trial.epochs, "d"), _number(trial.seconds, ".0f")]
        cells += [_parameter(trial.parameters.get(name)) for name in names]
        rows.append(Row([*cells, _text(trial.reason)], wins=trial.trial == record.winner))
    return Table([*columns, *names, "reason"], rows)


def failures_table(record: Record) -> Table | None:
    """Build the table of failures by reason; None without failures."""
    reasons = Counter(trial.reason for trial in record.ranking if trial.state == "failed")
    reasons.update(f"to confirm: {run.user_attrs.get('reason')}" for run in record.runs if state_of(run) == "failed")
    rows = [Row([_number(number, "d"), _text(reason)]) for reason, number in reasons.most_common()]
    return Table(["trials", "reason"], rows) if rows else None


def _intervals_and_ties(record: Record) -> Iterator[tuple[Interval | None, str]]:
    """Yield each trial's interval, and the letter it shares with the trials that are tied with the group's first."""
    first, num_groups = None, 0
    for trial in record.ranking:
        outcomes = read_outcomes(record.folder / f"trials/{trial.trial:04}", record.goal.column)
        interval = None if outcomes is None else mean_interval(outcomes)
        if outcomes is None or trial.state != "complete":
            yield interval, ""
            continue
        if first is None or not _is_tied(outcomes, first):
            first, num_groups = outcomes, num_groups + 1
        yield interval, _letters(num_groups)


def _is_tied(outcomes: np.ndarray, others: np.ndarray) -> bool:
    if len(outcomes) != len(others):
        return False
    low, high = model_difference(outcomes, others)
    return low <= 0 <= high


def _letters(number: int) -> str:
    """Return a, b, ..., z, aa, ab, ... for 1, 2, ..."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def _number(value: float | None, form: str) -> Cell:
    return Cell("", None) if value is None or not math.isfinite(value) else Cell(f"{value:{form}}", value)


def _numbers(*values: float | None) -> list[Cell]:
    return [_number(value, ".4f") for value in values]


def _text(text: str) -> Cell:
    return Cell(text, text)


def _parameter(value: Any) -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, ".4g")
    return _text("" if value is None else str(value))
