"""What a person sees while a sweep runs: a table that redraws itself, or plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.ledger import Ledger
from search.ranking import rank, winner_of
from search.study import state_of

__all__ = ["live_view"]


@contextmanager
def live_view(ledger: Ledger, console: Console) -> Iterator[Callable[[], None]]:
    """Yield a function that shows the ledger as it stands; call it as often as the view shall move."""
    clock = _Clock(ledger)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield lambda: live.update(_view(ledger, clock), refresh=True)
    else:
        lines = _Lines(ledger, clock, console)
        yield lines.show


class _Clock:
    """What this call has seen: guesses the time left from how long its trials took."""

    def __init__(self, ledger: Ledger) -> None:
        self.began = time.monotonic()
        self.old_notice = ledger.notice()
        self.num_finished_before = ledger.budget() - ledger.num_unfinished()

    def left(self, num_finished: int, num_trials: int) -> str:
        done = num_finished - self.num_finished_before
        if num_finished >= num_trials:
            return "done"
        if not done:
            return "time left unknown"
        seconds = (time.monotonic() - self.began) / done * (num_trials - num_finished)
        return f"about {_duration(seconds)} left"

    def news(self, ledger: Ledger) -> str | None:
        """Return the latest notice, where it was left during this call."""
        return None if (notice := ledger.notice()) == self.old_notice else notice


class _Lines:
    """Prints one line for each trial that starts or ends."""

    def __init__(self, ledger: Ledger, clock: _Clock, console: Console) -> None:
        self.ledger, self.clock, self.console = ledger, clock, console
        self.seen = {trial.number: trial.state for trial in ledger.trials()}
        self.notice: str | None = None

    def show(self) -> None:
        trials = self.ledger.trials()
        if (notice := self.clock.news(self.ledger)) != self.notice:
            self.notice = notice
            self.console.print(f"note: {notice}", highlight=False, soft_wrap=True, markup=False)
        news = [trial for trial in trials if trial.state not in (self.seen.get(trial.number), TrialState.WAITING)]
        summary = _summary(self.ledger, trials, self.clock) if news else ""  # ranks all trials
        for trial in news:
            self.seen[trial.number] = trial.state
            what = "started" if trial.state == TrialState.RUNNING else _outcome(trial)
            line = f"{self.ledger.sweep.label(trial)} {what}; {summary}"
            self.console.print(line, highlight=False, soft_wrap=True)


def _view(ledger: Ledger, clock: _Clock) -> Group:
    trials = ledger.trials()
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
    sweep = ledger.sweep
    num_finished = sum(trial.state.is_finished() for trial in trials)
    num_running = sum(trial.state == TrialState.RUNNING for trial in trials)
    winner = winner_of(rank(trials, sweep.space.goal))
    best = (
        f"{sweep.space.goal.metric} {winner.value:.4f} ({sweep.label(trials[winner.trial])})"
        if winner
        else "no result yet"
    )
    num_left = ledger.budget() - num_finished - num_running
    counts = f"{num_finished} done, {num_running} running, {num_left} left"
    return f"{counts}; {best}; {clock.left(num_finished, ledger.budget())}"


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return f"completed with {trial.value:.4f}"
    return trial.user_attrs.get("reason") or state_of(trial)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
