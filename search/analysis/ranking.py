"""Rank the trials of a study, for the terminal and for ranking.csv."""

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

from search.durable import write_text
from search.formatting import cell, describe_constants
from search.space.space import Goal
from search.study.trials import ordered, parameters_of, state_of, value_of

WIDE = 260  # columns assumed for a file or a pipe


@dataclass(frozen=True)
class Ranked:
    """A trial and its place in the ranking."""

    rank: int  # from 1
    trial: int  # its number
    state: str  # complete, pruned, failed or unfinished
    value: float | None  # of the goal; the latest so far of an unfinished or pruned trial
    val_accuracy: float | None  # 0 to 1, at the epoch that counts
    epochs: int  # finished
    seconds: float | None  # of training, in all processes that worked on the trial
    parameters: dict[str, Any]
    constants: dict[str, Any]  # of the parameters those with a single value in the space; none of a baseline outside it
    reason: str  # of pruning or failure


def rank(trials: Sequence[FrozenTrial], goal: Goal) -> list[Ranked]:
    """Rank trials, the best first."""
    return [
        Ranked(
            rank=place,
            trial=trial.number,
            state=state_of(trial),
            value=value_of(trial, goal),
            val_accuracy=trial.user_attrs.get("metrics", {}).get("val_accuracy"),
            epochs=len(trial.intermediate_values),
            seconds=trial.user_attrs.get("seconds"),
            parameters=parameters_of(trial),
            constants={name: trial.params[name] for name, kind in trial.distributions.items() if kind.single()},
            reason=trial.user_attrs.get("reason", ""),
        )
        for place, trial in enumerate(ordered(trials, goal), 1)
    ]


def winner_of(ranking: Sequence[Ranked]) -> Ranked | None:
    """Return the best complete trial, or None if no trial is complete."""
    return ranking[0] if ranking and ranking[0].state == "complete" else None


def parameter_names(ranking: Sequence[Ranked]) -> list[str]:
    """Return the names of all parameters, in the order of the space."""
    return list(dict.fromkeys(name for trial in ranking for name in trial.parameters))


def constants_of(ranking: Sequence[Ranked]) -> dict[str, Any]:
    """Return the parameters that are not searched: they have one value in every trial of the space."""
    return {name: value for trial in ranking for name, value in trial.constants.items()}


def searched_names(ranking: Sequence[Ranked]) -> list[str]:
    """Return the names of the parameters that are searched, in the order of the space."""
    constants = constants_of(ranking)
    return [name for name in parameter_names(ranking) if name not in constants]


def print_ranking(console: Console, ranking: Sequence[Ranked], goal: Goal, path: Path, baseline: bool) -> None:
    """Print the ranking, with the searched parameters if they fit, else the `path` of the CSV, and what failed."""
    if not ranking:
        console.print("no trial has begun yet")
        return
    title = "ranking, best first" + ("; trial 0 is the baseline" if baseline else "")
    table = _table(title, ranking, goal, searched_names(ranking))
    if not (shows_all := fits(console, table)):
        table = _table(title, ranking, goal, [])
        if not fits(console, table):
            table.padding = 0
    console.print(table)
    constants = constants_of(ranking)
    lines = [describe_constants(constants)] if constants else []
    lines += [f"trial {trial.trial} failed: {trial.reason}" for trial in ranking if trial.state == "failed"]
    if not shows_all:
        best = ranking[0]
        shown = {name: value for name, value in best.parameters.items() if name not in best.constants}
        values = " ".join(f"{name}={cell(value, '.3g')}" for name, value in shown.items())
        lines += [f"trial {best.trial} has {values}", f"the parameters of all: {path}"]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def fits(console: Console, table: Table) -> bool:
    """Say whether a table has room in the width of the console."""
    options = console.options.update(max_width=10_000)
    return Measurement.get(console, options, table).maximum <= console.width


def _table(title: str, ranking: Sequence[Ranked], goal: Goal, names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in ("rank", "trial", "state", goal.metric, "val acc", "epochs", "seconds", *names):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for trial in ranking:
        values = (trial.rank, trial.trial, trial.state, trial.value, trial.val_accuracy, trial.epochs)
        parameters = [cell(trial.parameters.get(name), ".3g") for name in names]
        table.add_row(*(cell(value, ".4g") for value in values), cell(trial.seconds, ".0f"), *parameters)
    return table


def write_ranking(path: Path, ranking: Sequence[Ranked], goal: Goal) -> None:
    """Write the ranking as CSV, one row per trial, atomically."""
    names = parameter_names(ranking)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["rank", "trial", "state", goal.metric, "val_accuracy", "epochs", "seconds", *names, "reason"])
    for trial in ranking:
        values = (trial.rank, trial.trial, trial.state, trial.value, trial.val_accuracy, trial.epochs, trial.seconds)
        writer.writerow([*values, *(trial.parameters.get(name) for name in names), trial.reason])
    write_text(path, text.getvalue())
