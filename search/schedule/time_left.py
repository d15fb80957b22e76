"""Estimate the seconds until a sweep ends, confirmation included, from a snapshot of it.

The estimate reads no clock and no study, so that tests/search/schedule/test_time_left.py can replay recorded sweeps.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, linear_regression
from typing import Literal

KEPT = 1 / 3  # share of the trials that are not pruned, as a prior; Hyperband's rule in search/study/sweep.py
PRIOR_TRIALS = 2.0  # weight of this prior, in trials
LATE = 1.3  # a late first epoch is expected to take this many times the seconds so far
SOON = 0.1  # minimum remainder of a running epoch, in epochs
OVERHEAD = 0.5  # pace of a network without mult-adds, as a share of the fastest one that was measured; a prior
LEAST = 0.1  # minimum of an estimated pace, as a share of the fastest that was measured

State = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class ObservedTrial:
    """A trial of the search, or a run of the confirmation, that has begun."""

    number: int
    state: State
    pace: float | None  # seconds per epoch of full size; None before the first epoch has ended
    values: Sequence[float]  # of the goal after each epoch so far; less is better
    elapsed: float = 0.0  # seconds since the last epoch ended, or since the start; only of a running one
    confirms: int | None = None  # the trial that a run repeats
    shares: Sequence[float] = ()  # see `full_epochs`
    cost: float = 0.0  # mult-adds of one image of full size; 0: unknown

    @property
    def epochs(self) -> int:
        return len(self.values)

    def full_epochs_until(self, epoch: float) -> float:
        """Return the cost of the epochs from now until the end of `epoch`, in epochs of full size."""
        return full_epochs(self.shares, epoch) - full_epochs(self.shares, self.epochs)


@dataclass(frozen=True)
class Snapshot:
    """The state of a sweep at one moment."""

    trials: Sequence[ObservedTrial]
    runs: Sequence[ObservedTrial]  # except displaced ones
    num_waiting: int  # trials that have not begun
    num_workers: int
    epochs: int  # of a trial that is not pruned
    confirm: int  # trials to confirm
    repeats: int  # runs of each of them
    baseline: bool  # whether trial 0 lies outside the space, so that it says nothing about the others
    shares: Sequence[float] = ()  # of the trials that have not begun; see `full_epochs`


@dataclass(frozen=True)
class _Typical:
    """The expectation for a trial that has not begun."""

    pace: float  # seconds per epoch of full size
    expect: Callable[[ObservedTrial], float]  # the pace of a trial that has begun
    kept: float  # probability that it is not pruned
    stop: float  # epochs of a pruned trial
    cost: float  # on average, in epochs of full size


def full_epochs(shares: Sequence[float], epochs: float) -> float:
    """Return the cost of a trial's first epochs, in epochs of full size; an epoch without a share costs 1."""
    known = sum(share * min(1.0, max(0.0, epochs - before)) for before, share in enumerate(shares))
    return known + max(0.0, epochs - len(shares))


def seconds_left(snapshot: Snapshot) -> float | None:
    """Estimate the seconds until the last worker is done; None before the first measurement.

    The worker that is free first takes the next trial or, after the last trial, the next run.
    """
    typical = _typical(snapshot)
    if typical is None:
        return None
    complete = [trial for trial in snapshot.trials if trial.state == "complete"]
    complete.sort(key=lambda trial: trial.values[-1])
    running = _running(snapshot.trials)
    ends = [
        _seconds_for(trial, _full_epochs_to_come(trial, snapshot, typical), typical.expect(trial)) for trial in running
    ]
    for run in _running(snapshot.runs):
        trial = next(trial for trial in snapshot.trials if trial.number == run.confirms)
        is_wanted = trial in complete[: snapshot.confirm] or not snapshot.confirm
        last = snapshot.epochs if is_wanted else run.epochs + 1  # then it is displaced by better trials
        ends.append(_seconds_for(run, run.full_epochs_until(last), trial.pace or typical.pace))
    ends += [0.0] * (snapshot.num_workers - len(ends))
    heapq.heapify(ends)
    waiting = [typical.pace * typical.cost] * snapshot.num_waiting
    for seconds in waiting + _runs_to_come(snapshot, complete, typical):
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def _typical(snapshot: Snapshot) -> _Typical | None:
    """Return the expectation from the known trials; a baseline outside the space counts only if it is alone."""
    inside = [trial for trial in snapshot.trials if trial.number or not snapshot.baseline]
    measured = _measured(inside) or _measured(snapshot.trials)
    if not measured:
        return None
    usual = fmean(trial.pace or 0 for trial in measured)
    expect = partial(_expected_pace, measured=_measured(snapshot.trials), usual=usual)
    paces = [expect(trial) for trial in inside if trial.pace is not None or trial.cost]
    ended = [trial for trial in inside if trial.state != "running"]
    stopped = [trial.epochs for trial in ended if trial.state != "complete"]
    kept = (len(ended) - len(stopped) + PRIOR_TRIALS * KEPT) / (len(ended) + PRIOR_TRIALS) if stopped else 1.0
    stop = fmean(stopped or [snapshot.epochs])
    whole, part = (full_epochs(snapshot.shares, epochs) for epochs in (snapshot.epochs, stop))
    return _Typical(fmean(paces or [usual]), expect, kept, stop, kept * whole + (1 - kept) * part)


def _expected_pace(trial: ObservedTrial, measured: Sequence[ObservedTrial], usual: float) -> float:
    """Return the pace of a trial; before its first epoch has ended, the one to expect with its cost if that is known.

    Seconds per epoch are a line over the mult-adds, fitted to the measured trials and, as to one more, to OVERHEAD.
    """
    if trial.pace is not None:
        return trial.pace
    points = [(other.cost, other.pace) for other in measured if other.cost and other.pace]
    if not (trial.cost and points):
        return usual
    costs, paces = zip(*points, strict=True)
    line = linear_regression([0.0, *costs], [OVERHEAD * min(paces), *paces])
    return max(line.intercept + line.slope * trial.cost, LEAST * min(paces)) if line.slope > 0 else usual


def _measured(trials: Sequence[ObservedTrial]) -> list[ObservedTrial]:
    return [trial for trial in trials if trial.pace is not None]


def _full_epochs_to_come(trial: ObservedTrial, snapshot: Snapshot, typical: _Typical) -> float:
    """Estimate the cost of a running trial's epochs to come, in epochs of full size.

    It will be pruned if too many were better at the same epoch.
    """
    others = [other.values[trial.epochs - 1] for other in snapshot.trials if other.epochs >= trial.epochs > 0]
    kept = typical.kept
    if trial.epochs >= typical.stop or typical.kept == 1.0:
        kept = 1.0
    elif len(others) > 1:
        kept = float(sum(value < trial.values[-1] for value in others) < KEPT * len(others))
    stop = max(typical.stop, trial.epochs)
    return kept * trial.full_epochs_until(snapshot.epochs) + (1 - kept) * trial.full_epochs_until(stop)


def _seconds_for(job: ObservedTrial, epochs: float, typical_pace: float) -> float:
    """Return the seconds until a running trial has finished work of `epochs` more epochs of full size."""
    current = job.full_epochs_until(job.epochs + 1)
    expected = LATE * job.elapsed / current if job.elapsed > typical_pace * current else typical_pace
    pace = expected if job.pace is None else job.pace
    return max(epochs * pace - job.elapsed, SOON * current * pace)


def _runs_to_come(snapshot: Snapshot, complete: Sequence[ObservedTrial], typical: _Typical) -> list[float]:
    """Return the seconds of each run that has not begun: of `complete` trials, best first, and of those to come."""
    best, begun = complete[: snapshot.confirm], Counter(run.confirms for run in snapshot.runs)
    seconds = [
        (trial.pace or typical.pace) * full_epochs(trial.shares, snapshot.epochs)
        for trial in best
        for _ in range(begun[trial.number], snapshot.repeats)
    ]
    to_end = snapshot.num_waiting + len(_running(snapshot.trials))
    num_to_come = min(snapshot.confirm - len(best), round(to_end * typical.kept))
    whole = [trial.pace for trial in complete if trial.pace and (trial.number or not snapshot.baseline)]
    other = fmean(whole or [typical.pace]) * full_epochs(snapshot.shares, snapshot.epochs)
    return seconds + [other] * (num_to_come * snapshot.repeats)


def _running(jobs: Sequence[ObservedTrial]) -> list[ObservedTrial]:
    return [job for job in jobs if job.state == "running"]
