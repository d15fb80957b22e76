"""Show a running sweep: a table that redraws itself on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.formatting import duration
from search.schedule.time_left import ObservedTrial, Snapshot, State, seconds_left
from search.study.shared_study import SharedStudy
from search.study.trials import CONFIRMS, ordered, state_of

CLOCK_SECONDS = 3.0  # between updates of the table's time left, if nothing else changes


@dataclass(frozen=True)
class WholeSweep:
    """Both parts of a sweep, for the time left."""

    trials: Callable[[], Sequence[FrozenTrial]]  # of the search
    runs: Callable[[], Sequence[FrozenTrial]]  # of the confirmation
    confirm: int  # trials to confirm
    repeats: int  # runs of each of them
    num_workers: int  # of this command


@contextmanager
def live_view(study: SharedStudy, console: Console, whole: WholeSweep | None = None) -> Iterator[Callable[[], None]]:
    """Yield a function that shows the current state of the study.

    The time left is that of the `whole` sweep; without it, that of the trials in the study.
    """
    clock = _Clock(study, whole or WholeSweep(study.trials, list, 0, 0, 1))
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _Screen(study, clock, live).show
    else:
        lines = _Lines(study, clock, console)
        yield lines.show


class _Clock:
    """Observes when the epochs of running trials end, and estimates the time left."""

    def __init__(self, study: SharedStudy, whole: WholeSweep) -> None:
        self.whole, self.sweep = whole, study.sweep
        self.old_notice = study.notice()
        # By a running trial's label: times at which its number of epochs changed, and the number.
        self.epochs: dict[str, list[tuple[float, int]]] = {}
        self.num_workers = whole.num_workers

    def time_left(self, study: SharedStudy) -> str:
        """Say how long the sweep still takes."""
        seconds = seconds_left(self._snapshot(study))
        if seconds is None:
            return "time left unknown"
        if not seconds:
            return "done"
        confirms_later = self.whole.confirm and study.sweep.part == "search"
        return f"about {duration(seconds)} left{', confirmation included' if confirms_later else ''}"

    def observe(self) -> list[Sequence[FrozenTrial]]:
        """Note which epochs have ended; return the trials of both parts."""
        parts = [self.whole.trials(), self.whole.runs()]
        running = [trial for part in parts for trial in part if trial.state == TrialState.RUNNING]
        if self.sweep.storage:  # workers of other machines too
            self.num_workers = max(self.num_workers, len(running))
        for trial in running:
            changes = self.epochs.setdefault(self.sweep.label(trial), [])
            if not changes or changes[-1][1] != len(trial.intermediate_values):
                changes.append((time.monotonic(), len(trial.intermediate_values)))
        return parts

    def _snapshot(self, study: SharedStudy) -> Snapshot:
        begun = [[trial for trial in part if trial.state != TrialState.WAITING] for part in self.observe()]
        trials, runs = ([self._observed(trial) for trial in part] for part in begun)
        return Snapshot(
            trials=trials,
            runs=[run for run in runs if run.state != "pruned"],
            num_waiting=max(0, study.budget() - len(trials)) if study.sweep.part == "search" else 0,
            num_workers=self.num_workers,
            epochs=study.sweep.epochs,
            confirm=self.whole.confirm,
            repeats=self.whole.repeats,
            baseline=study.sweep.space.baseline_is_outside,
        )

    def _observed(self, trial: FrozenTrial) -> ObservedTrial:
        values = [self.sweep.space.goal.as_loss(value) for _, value in sorted(trial.intermediate_values.items())]
        confirms = trial.user_attrs.get(CONFIRMS)
        if trial.state != TrialState.RUNNING:
            seconds = trial.user_attrs.get("seconds")
            pace = seconds / len(values) if seconds and values else None
            return ObservedTrial(trial.number, cast("State", state_of(trial)), pace, values, confirms=confirms)
        changes = self.epochs[self.sweep.label(trial)]
        (began, before), (ended, epoch) = changes[0], changes[-1]
        pace = (ended - began) / (epoch - before) if epoch > before else None
        return ObservedTrial(trial.number, "running", pace, values, time.monotonic() - ended, confirms)

    def notice(self, study: SharedStudy) -> str | None:
        """Return the latest notice; None if it is older than this view."""
        return None if (notice := study.notice()) == self.old_notice else notice


class _Screen:
    """Redraws the table when something has changed."""

    def __init__(self, study: SharedStudy, clock: _Clock, live: Live) -> None:
        self.study, self.clock, self.live = study, clock, live
        self.shown: tuple[object, float] = (None, 0.0)  # the trials, and when

    def show(self) -> None:
        trials, now = self.study.trials(), time.monotonic()  # the same list while the study is unchanged
        if trials is not self.shown[0] or now - self.shown[1] > CLOCK_SECONDS:
            self.shown = trials, now
            self.live.update(_table(self.study, trials, self.clock), refresh=True)


class _Lines:
    """Prints one line for each trial that starts or ends."""

    def __init__(self, study: SharedStudy, clock: _Clock, console: Console) -> None:
        self.study, self.clock, self.console = study, clock, console
        self.seen = {trial.number: _stage(trial) for trial in study.trials()}
        self.notice: str | None = None
        self.shown: object = None  # the trials

    def show(self) -> None:
        trials = self.study.trials()
        if trials is self.shown:  # the same list while the study is unchanged
            return
        self.shown = trials
        self.clock.observe()
        if (notice := self.clock.notice(self.study)) != self.notice:
            self.notice = notice
            self.console.print(f"note: {notice}", highlight=False, soft_wrap=True, markup=False)
        # The study names a trial's worker a moment after the trial has begun.
        begun = [trial for trial in trials if trial.state.is_finished() or "worker" in trial.user_attrs]
        changed = [trial for trial in begun if _stage(trial) != self.seen.get(trial.number)]
        summary = _summary(self.study, trials, self.clock) if changed else ""  # reads all trials
        for trial in changed:
            before, _ = self.seen.get(trial.number, (None, ""))
            self.seen[trial.number] = _stage(trial)
            line = f"{self.study.sweep.label(trial)} {_event(trial, before)}; {summary}"
            self.console.print(line, highlight=False, soft_wrap=True)


def _table(study: SharedStudy, trials: Sequence[FrozenTrial], clock: _Clock) -> Group:
    goal = study.sweep.space.goal
    table = Table("trial", "on", "epoch", f"best {goal.column}", box=SIMPLE)
    for column in table.columns:
        column.justify = "right"
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            device = trial.user_attrs.get("worker", {}).get("device", "")
            last = trial.last_step or 0
            value = f"{trial.intermediate_values[last]:.4f}" if last else "first epoch"
            name = study.sweep.label(trial).removeprefix("trial ")
            table.add_row(name, device, f"{last} of {study.sweep.epochs}", value)
    if not table.rows:
        table.add_row("", "", "", "workers are starting")
    summary = Text(f"{study.sweep.title}: {_summary(study, trials, clock)}", style="bold")
    notice = Text(clock.notice(study) or "", style="italic")
    return Group(summary, table, notice)


def _summary(study: SharedStudy, trials: Sequence[FrozenTrial], clock: _Clock) -> str:
    sweep, budget = study.sweep, study.budget()
    trials = study.counted(trials)
    num_finished = sum(trial.state.is_finished() for trial in trials)
    num_running = sum(trial.state == TrialState.RUNNING for trial in trials)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = "no result yet"
    if complete:
        winner = ordered(complete, sweep.space.goal)[0]
        best = f"{sweep.space.goal.metric} {winner.value:.4f} ({sweep.label(winner)})"
    num_left = budget - num_finished - num_running
    counts = f"{num_finished} done, {num_running} running, {num_left} left"
    if sweep.part == "search" and num_running and not num_left:
        begun = sum(run.state == TrialState.RUNNING for run in clock.whole.runs())
        counts += f"; {begun} running ahead to confirm the best" if begun else ""
    return f"{counts}; {best}; {clock.time_left(study)}"


def _stage(trial: FrozenTrial) -> tuple[TrialState, str]:
    """Return a key that changes when a worker takes a trial, another worker resumes it, or it ends."""
    return trial.state, "" if trial.state.is_finished() else trial.user_attrs.get("worker", {}).get("claim", "")


def _event(trial: FrozenTrial, before: TrialState | None) -> str:
    if trial.state == TrialState.RUNNING:
        return f"goes on after epoch {trial.last_step or 0}" if before == TrialState.RUNNING else "started"
    if trial.state == TrialState.COMPLETE:
        return f"completed with {trial.value:.4f}"
    return trial.user_attrs.get("reason") or state_of(trial)
