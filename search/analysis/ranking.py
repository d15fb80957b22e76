"""SharedStudy -> ranked table, on the terminal and as ranking.csv."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from search.files import write_text
from search.space.space import Goal
from search.study.trials import ordered, parameters_of, state_of, value_of

__all__ = ["WIDE", "Ranked", "parameter_names", "print_ranking", "rank", "winner_of", "write_ranking"]

WIDE = 260  # columns of a file or a pipe, which have no edge


@dataclass(frozen=True)
class Ranked:
    """One line of a ranking."""

    rank: int  # from 1
    trial: int  # its number
    state: str  # complete, pruned, failed or unfinished
    value: float | None  # of the goal; of an unfinished or pruned trial, what it had reached
    val_accuracy: float | None  # 0 to 1, at the epoch that counts
    epochs: int  # finished
    seconds: float | None  # of training, all processes that took the trial up together
    parameters: dict[str, Any]
    reason: str  # why it was pruned or failed


def rank(trials: Sequence[FrozenTrial], goal: Goal) -> list[Ranked]:
    """Return a line for each trial, the best first."""
    return [_ranked(place, trial, goal) for place, trial in enumerate(ordered(trials, goal), 1)]


def winner_of(ranking: Sequence[Ranked]) -> Ranked | None:
    """Return the best complete trial, or None where no trial completed."""
    return ranking[0] if ranking and ranking[0].state == "complete" else None


def print_ranking(console: Console, ranking: Sequence[Ranked], goal: Goal, path: Path, baseline: bool) -> None:
    """Show a ranking as wide as the terminal allows, why trials failed, and where the rest stands (`path`, the CSV)."""
    if not ranking:
        console.print("no trial was begun yet")
        return
    title = "ranking, best first" + ("; trial 0 is the README baseline" if baseline else "")
    table = _table(title, ranking, goal, parameter_names(ranking))
    options = console.options.update(max_width=10_000)
    shows_all = Measurement.get(console, options, table).maximum <= console.width
    console.print(table if shows_all else _table(title, ranking, goal, []))
    lines = [f"trial {line.trial} failed: {line.reason}" for line in ranking if line.state == "failed"]
    if not shows_all and ranking:
        values = " ".join(f"{name}={_text(value, '.3g')}" for name, value in ranking[0].parameters.items())
        lines += [f"trial {ranking[0].trial} has {values}", f"the parameters of all: {path}"]
    for text in lines:
        console.print(text, highlight=False, soft_wrap=True, markup=False)


def _table(title: str, ranking: Sequence[Ranked], goal: Goal, names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in ("rank", "trial", "state", goal.metric, "val acc", "epochs", "seconds", *names):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for line in ranking:
        figures = [_text(line.value), _text(line.val_accuracy), str(line.epochs), _text(line.seconds, ".0f")]
        parameters = [_text(line.parameters.get(name), ".3g") for name in names]
        table.add_row(str(line.rank), str(line.trial), line.state, *figures, *parameters)
    return table


def write_ranking(path: Path, ranking: Sequence[Ranked], goal: Goal) -> None:
    """Write the ranking as CSV, one row per trial, replacing what was there."""
    names = parameter_names(ranking)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["rank", "trial", "state", goal.metric, "val_accuracy", "epochs", "seconds", *names, "reason"])
    for line in ranking:
        parameters = [line.parameters.get(name, "") for name in names]
        figures = [line.value, line.val_accuracy, line.epochs, line.seconds]
        writer.writerow([line.rank, line.trial, line.state, *figures, *parameters, line.reason])
    write_text(path, text.getvalue())


def _ranked(place: int, trial: FrozenTrial, goal: Goal) -> Ranked:
    metrics = trial.user_attrs.get("metrics", {})
    return Ranked(
        rank=place,
        trial=trial.number,
        state=state_of(trial),
        value=value_of(trial, goal),
        val_accuracy=metrics.get("val_accuracy"),
        epochs=len(trial.intermediate_values),
        seconds=trial.user_attrs.get("seconds"),
        parameters=parameters_of(trial),
        reason=trial.user_attrs.get("reason", ""),
    )


def parameter_names(ranking: Sequence[Ranked]) -> list[str]:
    """Return the names of all parameters that occur, in the order of the space."""
    return list(dict.fromkeys(name for line in ranking for name in line.parameters))


def _text(value: Any, form: str = ".4g") -> str:
    return "" if value is None else f"{value:{form}}" if isinstance(value, float) else str(value)
