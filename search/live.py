"""What a person sees while a sweep runs: a table that redraws itself, or plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table

from search.ledger import Ledger
from search.report import rank, winner_of

__all__ = ["live_view"]


@contextmanager
def live_view(ledger: Ledger, console: Console) -> Iterator[Callable[[], None]]:
    """Yield a function that shows the ledger as it stands; call it as often as the view shall move."""
    clock = _Clock(ledger)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield lambda: live.update(_table(ledger, clock), refresh=True)
    else:
        lines = _Lines(ledger, clock, console)
        yield lines.show


class _Clock:
    """Guesses the time left from how long the trials of this call took."""

    def __init__(self, ledger: Ledger) -> None:
        self.began = time.monotonic()
        self.num_finished_before = ledger.sweep.num_trials - ledger.num_unfinished()

    def left(self, num_finished: int, num_trials: int) -> str:
        done = num_finished - self.num_finished_before
        if not done:
            return "time left unknown"
        seconds = (time.monotonic() - self.began) / done * (num_trials - num_finished)
        return f"about {_duration(seconds)} left"


class _Lines:
    """Prints one line for each trial that starts or ends."""

    def __init__(self, ledger: Ledger, clock: _Clock, console: Console) -> None:
        self.ledger, self.clock, self.console = ledger, clock, console
        self.seen = {trial.number: trial.state for trial in ledger.trials()}

    def show(self) -> None:
        trials = self.ledger.trials()
        for trial in trials:
            if trial.state == self.seen.get(trial.number) or trial.state == TrialState.WAITING:
                continue
            self.seen[trial.number] = trial.state
            what = "started" if trial.state == TrialState.RUNNING else _outcome(trial)
            self.console.print(
                f"trial {trial.number} {what}; {_summary(self.ledger, trials, self.clock)}",
                highlight=False,
                soft_wrap=True,
            )


def _table(ledger: Ledger, clock: _Clock) -> Table:
    trials = ledger.trials()
    table = Table(title=f"{ledger.sweep.name}: {_summary(ledger, trials, clock)}", title_justify="left")
    for name in ("trial", "on", "epoch", ledger.sweep.space.goal.column):
        table.add_column(name, justify="right")
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            device = trial.user_attrs.get("worker", {}).get("device", "")
            last = trial.last_step or 0
            value = f"{trial.intermediate_values[last]:.4f}" if last else ""
            table.add_row(str(trial.number), device, f"{last} / {ledger.sweep.epochs}", value)
    return table


def _summary(ledger: Ledger, trials: Sequence[FrozenTrial], clock: _Clock) -> str:
    sweep = ledger.sweep
    num_finished = sum(trial.state.is_finished() for trial in trials)
    num_running = sum(trial.state == TrialState.RUNNING for trial in trials)
    winner = winner_of(rank(trials, sweep.space.goal))
    best = f"best {sweep.space.goal.metric} {winner.value:.4f} (trial {winner.trial})" if winner else "no result yet"
    num_left = sweep.num_trials - num_finished - num_running
    counts = f"{num_finished} done, {num_running} running, {num_left} left"
    return f"{counts}; {best}; {clock.left(num_finished, sweep.num_trials)}"


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return f"completed with {trial.value:.4f}"
    return trial.user_attrs.get("reason") or trial.state.name.lower()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
