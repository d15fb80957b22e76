"""What a person sees while a sweep runs: a table that redraws itself, or plain lines where there is no terminal."""

import heapq
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.ledger import Ledger
from search.ranking import ordered
from search.study import state_of
from search.wording import duration

__all__ = ["live_view", "seconds_left"]

CLOCK_SECONDS = 3.0  # how often the table's time left is counted again where nothing else has changed


@contextmanager
def live_view(ledger: Ledger, console: Console, num_runs: int = 0) -> Iterator[Callable[[], None]]:
    """Yield a function that shows the ledger as it stands; call it as often as the view shall move.

    `num_runs` are to confirm its best trials afterwards; the time left is theirs too.
    """
    clock = _Clock(ledger, num_runs)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _Screen(ledger, clock, live).show
    else:
        lines = _Lines(ledger, clock, console)
        yield lines.show


class _Clock:
    """What this call has seen of the trials that run, epoch by epoch: that and the ledger give the time left."""

    def __init__(self, ledger: Ledger, num_runs: int) -> None:
        self.num_runs = num_runs
        self.old_notice = ledger.notice()
        self.epochs: dict[int, list[tuple[float, int]]] = {}  # of a running trial: when its number was seen to change
        self.num_workers = 1

    def left(self, ledger: Ledger, trials: Sequence[FrozenTrial]) -> str:
        now = time.monotonic()
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        self.num_workers = max(self.num_workers, len(running))
        for trial in running:
            seen = self.epochs.setdefault(trial.number, [])
            if not seen or seen[-1][1] != (trial.last_step or 0):
                seen.append((now, trial.last_step or 0))
        finished = [trial for trial in trials if trial.state.is_finished()]
        num_waiting = max(0, ledger.budget() - len(finished) - len(running))
        complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
        if not running and not num_waiting and not (self.num_runs and complete):
            return "done"
        wholes = [self._whole(trial.number, ledger) for trial in running]
        since = [now - self.epochs[trial.number][0][0] for trial in running]
        seconds = seconds_left(_seconds(finished), list(zip(since, wholes, strict=True)), num_waiting, self.num_workers)
        if seconds is None:
            return "time left unknown"
        if self.num_runs:
            unpruned = _seconds(complete) or [whole for whole in wholes if whole is not None] or _seconds(finished)
            seconds += math.ceil(self.num_runs / self.num_workers) * fmean(unpruned)
        return f"about {duration(seconds)} left{', confirmation included' if self.num_runs else ''}"

    def _whole(self, number: int, ledger: Ledger) -> float | None:
        """Return the seconds that a trial takes from when it was first seen, unpruned; None before its first epoch."""
        (began, before), (ended, epoch) = self.epochs[number][0], self.epochs[number][-1]
        if epoch == before:
            return None
        return (ended - began) / (epoch - before) * (ledger.sweep.epochs - before)

    def news(self, ledger: Ledger) -> str | None:
        """Return the latest notice, where it was left during this call."""
        return None if (notice := ledger.notice()) == self.old_notice else notice


def _seconds(trials: Sequence[FrozenTrial]) -> list[float]:
    return [trial.user_attrs["seconds"] for trial in trials if "seconds" in trial.user_attrs]


def seconds_left(
    finished: Sequence[float], running: Sequence[tuple[float, float | None]], num_waiting: int, num_workers: int
) -> float | None:
    """Guess when the last trial ends; None while nothing has been measured.

    `finished` holds the seconds that trials took, pruned ones too; `running`, for each trial that runs, the seconds
    that it has run, and those that it takes in all if nothing stops it: None before its first epoch has told. Such
    trials, and those that wait, take as long as the others did.
    """
    known = list(finished) or [whole for _, whole in running if whole is not None]
    if not known:
        return None
    mean = fmean(known)
    ends = [max(0.0, (mean if whole is None else whole) - since) for since, whole in running]
    ends += [0.0] * (num_workers - len(ends))
    heapq.heapify(ends)
    for _ in range(num_waiting):  # whoever is free first takes the next one
        heapq.heapreplace(ends, ends[0] + mean)
    return max(ends)


class _Screen:
    """Redraws the table where there is something to see."""

    def __init__(self, ledger: Ledger, clock: _Clock, live: Live) -> None:
        self.ledger, self.clock, self.live = ledger, clock, live
        self.shown: tuple[object, float] = (None, 0.0)  # the trials, and when

    def show(self) -> None:
        trials, now = self.ledger.trials(), time.monotonic()  # the same list while nobody writes to the ledger
        if trials is not self.shown[0] or now - self.shown[1] > CLOCK_SECONDS:
            self.shown = trials, now
            self.live.update(_view(self.ledger, trials, self.clock), refresh=True)


class _Lines:
    """Prints one line for each trial that starts or ends."""

    def __init__(self, ledger: Ledger, clock: _Clock, console: Console) -> None:
        self.ledger, self.clock, self.console = ledger, clock, console
        self.seen = {trial.number: _stage(trial) for trial in ledger.trials()}
        self.notice: str | None = None
        self.shown: object = None  # the trials

    def show(self) -> None:
        trials = self.ledger.trials()
        if trials is self.shown:  # the same list while nobody writes to the ledger
            return
        self.shown = trials
        if (notice := self.clock.news(self.ledger)) != self.notice:
            self.notice = notice
            self.console.print(f"note: {notice}", highlight=False, soft_wrap=True, markup=False)
        # Whose it is stands in the ledger a moment after it runs.
        begun = [trial for trial in trials if trial.state.is_finished() or "worker" in trial.user_attrs]
        news = [trial for trial in begun if _stage(trial) != self.seen.get(trial.number)]
        summary = _summary(self.ledger, trials, self.clock) if news else ""  # looks at all trials
        for trial in news:
            before, _ = self.seen.get(trial.number, (None, ""))
            self.seen[trial.number] = _stage(trial)
            what = _outcome(trial)
            if trial.state == TrialState.RUNNING:
                what = f"goes on after epoch {trial.last_step or 0}" if before == TrialState.RUNNING else "started"
            line = f"{self.ledger.sweep.label(trial)} {what}; {summary}"
            self.console.print(line, highlight=False, soft_wrap=True)


def _view(ledger: Ledger, trials: Sequence[FrozenTrial], clock: _Clock) -> Group:
    goal = ledger.sweep.space.goal
    table = Table("trial", "on", "epoch", f"best {goal.column}", box=SIMPLE)
    for column in table.columns:
        column.justify = "right"
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            device = trial.user_attrs.get("worker", {}).get("device", "")
            last = trial.last_step or 0
            value = f"{trial.intermediate_values[last]:.4f}" if last else "first epoch"
            name = ledger.sweep.label(trial).removeprefix("trial ")
            table.add_row(name, device, f"{last} of {ledger.sweep.epochs}", value)
    if not table.rows:
        table.add_row("", "", "", "workers are starting")
    summary = Text(f"{ledger.sweep.title}: {_summary(ledger, trials, clock)}", style="bold")
    notice = Text(clock.news(ledger) or "", style="italic")
    return Group(summary, table, notice)


def _summary(ledger: Ledger, trials: Sequence[FrozenTrial], clock: _Clock) -> str:
    sweep, budget = ledger.sweep, ledger.budget()
    trials = trials[:budget]  # an earlier command may have wanted more
    num_finished = sum(trial.state.is_finished() for trial in trials)
    num_running = sum(trial.state == TrialState.RUNNING for trial in trials)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = "no result yet"
    if complete:
        winner = ordered(complete, sweep.space.goal)[0]
        best = f"{sweep.space.goal.metric} {winner.value:.4f} ({sweep.label(winner)})"
    num_left = budget - num_finished - num_running
    counts = f"{num_finished} done, {num_running} running, {num_left} left"
    return f"{counts}; {best}; {clock.left(ledger, trials)}"


def _stage(trial: FrozenTrial) -> tuple[TrialState, str]:
    """Return what changes when a trial is taken, taken over, or ends."""
    return trial.state, "" if trial.state.is_finished() else trial.user_attrs.get("worker", {}).get("claim", "")


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return f"completed with {trial.value:.4f}"
    return trial.user_attrs.get("reason") or state_of(trial)
