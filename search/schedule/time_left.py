"""What is known of a sweep at one moment -> the seconds that are still to come, confirmation included.

Nothing here looks at a clock or a study: tests/search/schedule/test_time_left.py replays recorded sweeps.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

__all__ = ["Moment", "Seen", "State", "seconds_left"]

KEPT = 1 / 3  # of the trials come to their last epoch, before any has told; as Hyperband has it (study.py)
DOUBT = 2.0  # trials that this guess weighs as much as
LATE = 1.3  # an epoch that takes longer than thought takes so many times what it has taken already
SOON = 0.1  # of an epoch: what is left at least of one that runs


State = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Seen:
    """A trial of the search, or a run that confirms one, that has begun."""

    number: int
    state: State
    pace: float | None  # seconds of an epoch; None before its first has ended
    values: Sequence[float]  # of the goal after each epoch so far, less being better
    since: float = 0.0  # seconds since the latest of them ended, or since it began; while it runs
    confirms: int | None = None  # the trial that a run repeats

    @property
    def epochs(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Moment:
    """All that the time left is guessed from."""

    trials: Sequence[Seen]
    runs: Sequence[Seen]  # but those that do not count any more
    num_waiting: int  # trials that have not begun
    num_workers: int
    epochs: int  # of a trial that nothing stops
    confirm: int  # of the best trials that are trained again
    repeats: int  # runs of each of them
    baseline: bool  # trial 0 lies outside of the space: it says nothing of the others


@dataclass(frozen=True)
class _Typical:
    """A trial of the space, of which nothing else is known."""

    pace: float  # seconds of an epoch
    kept: float  # chance that it comes to its last epoch
    stop: float  # epochs of one that does not
    epochs: float  # on average


def seconds_left(moment: Moment) -> float | None:
    """Guess when the last worker has nothing left to do; None while nothing has been measured.

    Whoever is free first takes the next trial, or, when none is left, the next run.
    """
    typical = _typical(moment)
    if typical is None:
        return None
    best = _best(moment)
    ends = [_rest(trial, _epochs_to_come(trial, moment, typical), typical.pace) for trial in _running(moment.trials)]
    for run in _running(moment.runs):
        trial = next(trial for trial in moment.trials if trial.number == run.confirms)
        is_wanted = trial in best or not moment.confirm
        epochs = moment.epochs - run.epochs if is_wanted else 1  # after which it is seen that others are better
        ends.append(_rest(run, epochs, trial.pace or typical.pace))
    ends += [0.0] * (moment.num_workers - len(ends))
    heapq.heapify(ends)
    waiting = [typical.pace * typical.epochs] * moment.num_waiting
    for seconds in waiting + _runs_to_come(moment, best, typical):
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def _typical(moment: Moment) -> _Typical | None:
    """Describe the trials to come by those that are known; a baseline outside of the space only where it is alone."""
    measured = [trial for trial in moment.trials if trial.pace is not None]
    inside = [trial for trial in measured if trial.number or not moment.baseline]
    paces = [trial.pace for trial in inside or measured if trial.pace is not None]
    if not paces:
        return None
    ended = [trial for trial in inside if trial.state != "running"]
    stopped = [trial.epochs for trial in ended if trial.state != "complete"]
    kept = (len(ended) - len(stopped) + DOUBT * KEPT) / (len(ended) + DOUBT) if stopped else 1.0
    stop = fmean(stopped or [moment.epochs])
    return _Typical(fmean(paces), kept, stop, kept * moment.epochs + (1 - kept) * stop)


def _epochs_to_come(trial: Seen, moment: Moment, typical: _Typical) -> float:
    """Guess whether a running trial will be stopped: it will, where too many were better after as many epochs."""
    others = [other.values[trial.epochs - 1] for other in moment.trials if other.epochs >= trial.epochs > 0]
    kept = typical.kept
    if trial.epochs >= typical.stop or typical.kept == 1.0:
        kept = 1.0
    elif len(others) > 1:
        kept = float(sum(value < trial.values[-1] for value in others) < KEPT * len(others))
    return kept * moment.epochs + (1 - kept) * max(typical.stop, trial.epochs) - trial.epochs


def _rest(job: Seen, epochs: float, usual: float) -> float:
    """Return the seconds that a running one still takes for so many epochs."""
    pace = usual if job.pace is None else job.pace
    if job.pace is None and job.since > pace:
        pace = LATE * job.since
    return max(epochs * pace - job.since, SOON * pace)


def _best(moment: Moment) -> list[Seen]:
    complete = [trial for trial in moment.trials if trial.state == "complete"]
    return sorted(complete, key=lambda trial: trial.values[-1])[: moment.confirm]


def _runs_to_come(moment: Moment, best: Sequence[Seen], typical: _Typical) -> list[float]:
    """Return the seconds of each run that has not begun: of the best trials so far, and of some to come."""
    begun = Counter(run.confirms for run in moment.runs)
    paces = [trial.pace or typical.pace for trial in best for _ in range(begun[trial.number], moment.repeats)]
    to_end = moment.num_waiting + len(_running(moment.trials))
    num_to_come = min(moment.confirm - len(best), round(to_end * typical.kept))
    whole = [t.pace for t in moment.trials if t.state == "complete" and t.pace and (t.number or not moment.baseline)]
    paces += [fmean(whole or [typical.pace])] * (num_to_come * moment.repeats)
    return [moment.epochs * pace for pace in paces]


def _running(jobs: Sequence[Seen]) -> list[Seen]:
    return [job for job in jobs if job.state == "running"]
