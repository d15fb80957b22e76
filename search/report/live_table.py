"""Show a running sweep: a table that redraws itself on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.formatting import cell, duration
from search.schedule.time_left import ObservedTrial, Snapshot, State, full_epochs, seconds_left
from search.study.shared_study import SharedStudy
from search.study.trials import CONFIRMS, ordered, parameters_of, state_of

CLOCK_SECONDS = 3.0  # between updates of the table's time left, if nothing else changes


@dataclass(frozen=True)
class WholeSweep:
    """Both parts of a sweep, for the time left."""

    trials: Callable[[], Sequence[FrozenTrial]]  # of the search
    runs: Callable[[], Sequence[FrozenTrial]]  # of the confirmation
    confirm: int  # trials to confirm
    repeats: int  # runs of each of them
    num_workers: int  # of this command
    shares: Sequence[float] = ()  # cost of each epoch of a trial, relative to one of full size; empty: all are 1
    cost: Callable[[Mapping[str, Any]], float] = lambda _: 0.0  # of parameters, in mult-adds; 0: unknown


@contextmanager
def live_view(study: SharedStudy, console: Console, whole: WholeSweep | None = None) -> Iterator[Callable[[], None]]:
    """Yield a function that shows the study, with the time left of the `whole` sweep (default: of the study alone)."""
    clock = _Clock(study, whole or WholeSweep(study.trials, list, 0, 0, 1))
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _Screen(clock, live).show
    else:
        yield _Lines(clock, console).show


class _Clock:
    """Observes when the epochs of running trials end, and estimates the time left."""

    def __init__(self, study: SharedStudy, whole: WholeSweep) -> None:
        self.study, self.sweep, self.whole = study, study.sweep, whole
        self.old_notice = study.notice()  # from before this view
        # By a running trial's label: times at which its number of epochs changed, and the number.
        self.epochs: dict[str, list[tuple[float, int]]] = {}
        self.costs: dict[str, float] = {}  # of trials, by label
        self.num_workers = whole.num_workers

    def time_left(self) -> str:
        seconds = seconds_left(self._snapshot())
        if seconds is None:
            return "time left unknown"
        if not seconds:
            return "done"
        confirms_later = self.whole.confirm and self.sweep.part == "search"
        rest = f"about {duration(seconds)}" if seconds >= 60 else "less than a minute"
        return f"{rest} left{', confirmation included' if confirms_later else ''}"

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

    def _snapshot(self) -> Snapshot:
        begun = [[trial for trial in part if trial.state != TrialState.WAITING] for part in self.observe()]
        trials, runs = ([self._observed(trial) for trial in part] for part in begun)
        return Snapshot(
            trials=trials,
            runs=[run for run in runs if run.state != "pruned"],
            num_waiting=max(0, self.study.budget() - len(trials)) if self.sweep.part == "search" else 0,
            num_workers=self.num_workers,
            epochs=self.sweep.epochs,
            confirm=self.whole.confirm,
            repeats=self.whole.repeats,
            baseline=self.sweep.space.baseline_is_outside,
            shares=self.whole.shares,
        )

    def _observed(self, trial: FrozenTrial) -> ObservedTrial:
        values = [self.sweep.space.goal.as_loss(value) for _, value in sorted(trial.intermediate_values.items())]
        confirms = trial.user_attrs.get(CONFIRMS)
        is_baseline = self.sweep.space.baseline_is_outside and not (trial.number if confirms is None else confirms)
        shares = () if is_baseline else self.whole.shares  # the baseline's images do not grow
        if trial.state != TrialState.RUNNING:
            seconds = trial.user_attrs.get("seconds")
            pace = seconds / full_epochs(shares, len(values)) if seconds and values else None
            state = cast("State", state_of(trial))
            return ObservedTrial(trial.number, state, pace, values, 0.0, confirms, shares, self._cost_of(trial))
        changes = self.epochs[self.sweep.label(trial)]
        (began, before), (ended, epoch) = changes[0], changes[-1]
        num_done = full_epochs(shares, epoch) - full_epochs(shares, before)
        pace = (ended - began) / num_done if epoch > before else None
        elapsed = time.monotonic() - ended
        return ObservedTrial(trial.number, "running", pace, values, elapsed, confirms, shares, self._cost_of(trial))

    def _cost_of(self, trial: FrozenTrial) -> float:
        """Return the mult-adds of a trial; 0 if its parameters are not known yet."""
        label = self.sweep.label(trial)
        if label not in self.costs and (trial.state.is_finished() or "worker" in trial.user_attrs):
            self.costs[label] = 0.0
            with suppress(ValueError):  # of parameters that do not suit each other; the trial will fail
                self.costs[label] = self.whole.cost(parameters_of(trial))
        return self.costs.get(label, 0.0)


class _Screen:
    """Redraws the table when something has changed."""

    def __init__(self, clock: _Clock, live: Live) -> None:
        self.clock, self.live = clock, live
        self.shown: tuple[object, float] = (None, 0.0)  # the trials, and when

    def show(self) -> None:
        trials, now = self.clock.study.trials(), time.monotonic()  # the same list while the study is unchanged
        if trials is not self.shown[0] or now - self.shown[1] > CLOCK_SECONDS:
            self.shown = trials, now
            self.live.update(_table(self.clock, trials), refresh=True)


class _Lines:
    """Prints one line for each trial that starts or ends."""

    def __init__(self, clock: _Clock, console: Console) -> None:
        self.clock, self.console = clock, console
        self.seen = {trial.number: _stage(trial) for trial in clock.study.trials()}
        self.notice = clock.old_notice
        self.shown: object = None  # the trials

    def show(self) -> None:
        trials = self.clock.study.trials()
        if trials is self.shown:  # the same list while the study is unchanged
            return
        self.shown = trials
        self.clock.observe()
        if (notice := self.clock.study.notice()) != self.notice:
            self.notice = notice
            self.console.print(f"note: {notice}", highlight=False, soft_wrap=True, markup=False)
        # The study names a trial's worker a moment after the trial has begun.
        begun = [trial for trial in trials if trial.state.is_finished() or "worker" in trial.user_attrs]
        changed = [trial for trial in begun if _stage(trial) != self.seen.get(trial.number)]
        summary = _summary(self.clock, trials) if changed else ""  # reads all trials
        for trial in changed:
            before, _ = self.seen.get(trial.number, (None, ""))
            self.seen[trial.number] = _stage(trial)
            line = f"{self.clock.sweep.label(trial)} {_event(trial, before)}; {summary}"
            self.console.print(line, highlight=False, soft_wrap=True)


def _table(clock: _Clock, trials: Sequence[FrozenTrial]) -> Group:
    sweep = clock.sweep
    table = Table("trial", "on", "epoch", f"best {sweep.space.goal.column}", box=SIMPLE)
    for column in table.columns:
        column.justify = "right"
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            device = trial.user_attrs.get("worker", {}).get("device", "")
            last = trial.last_step or 0
            value = f"{trial.intermediate_values[last]:.4f}" if last else "first epoch"
            table.add_row(sweep.label(trial).removeprefix("trial "), device, f"{last} of {sweep.epochs}", value)
    if not table.rows:
        has_begun = any(trial.state.is_finished() for trial in trials)
        next_ = "the next one is starting" if has_begun else "workers are starting"
        table.add_row("", "", "", next_ if clock.study.num_unfinished() else "all have ended")
    summary = Text(f"{sweep.title}: {_summary(clock, trials)}", style="bold")
    notice = clock.study.notice()
    return Group(summary, table, _best(clock), Text("" if notice == clock.old_notice else notice, style="italic"))


def _best(clock: _Clock) -> Text:
    """Name the parameters of the best trial of the search, which wrap where the terminal is narrow."""
    complete = [trial for trial in clock.whole.trials() if trial.state == TrialState.COMPLETE]
    if not complete:
        return Text()
    best, constants = ordered(complete, clock.sweep.space.goal)[0], clock.sweep.space.constants
    searched = {name: value for name, value in parameters_of(best).items() if name not in constants}
    values = " ".join(f"{name}={cell(value, '.3g')}" for name, value in searched.items())
    return Text(f"best so far, trial {best.number}: {values or 'the baseline'}")


def _summary(clock: _Clock, trials: Sequence[FrozenTrial]) -> str:
    sweep, trials = clock.sweep, clock.study.counted(trials)
    num_finished = sum(trial.state.is_finished() for trial in trials)
    num_running = sum(trial.state == TrialState.RUNNING for trial in trials)
    num_left = clock.study.budget() - num_finished - num_running
    counts = f"{num_finished} done, {num_running} running, {num_left} left"
    if sweep.part == "search" and num_running and not num_left:
        begun = sum(run.state == TrialState.RUNNING for run in clock.whole.runs())
        counts += f"; {begun} running ahead to confirm the best" if begun else ""
    best = "no result yet"
    if complete := [trial for trial in trials if trial.state == TrialState.COMPLETE]:
        winner = ordered(complete, sweep.space.goal)[0]
        best = f"{sweep.space.goal.metric} {winner.value:.4f} ({sweep.label(winner)})"
    return f"{counts}; {best}; {clock.time_left()}"


def _stage(trial: FrozenTrial) -> tuple[TrialState, str]:
    """Return a key that changes when a worker takes a trial, another worker resumes it, or it ends."""
    return trial.state, "" if trial.state.is_finished() else trial.user_attrs.get("worker", {}).get("claim", "")


def _event(trial: FrozenTrial, before: TrialState | None) -> str:
    if trial.state == TrialState.RUNNING:
        again = f"goes on after epoch {trial.last_step}" if trial.last_step else "starts again"
        return again if before == TrialState.RUNNING else "started"
    if trial.state == TrialState.COMPLETE:
        return f"completed with {trial.value:.4f}"
    return trial.user_attrs.get("reason") or state_of(trial)
