"""How long a sweep takes: its pruner and its workers played through, with results that are made up or recorded."""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from search.study.sweep import Sweep

__all__ = ["Cost", "Duration", "Epoch", "confirm_until", "play", "simulate"]

NOISE = 0.5  # of a trial's value between epochs, in standard deviations between trials
# Costly networks tend to be better. Rank correlation of seconds and best loss, baseline left out: 0.59 in a sweep of 12
# trials on drawn pictures, 0.46 in one of 8 on photographs; of seconds and the first epoch's loss, baseline
# included: 0.47 and 0.60.
GAIN = 0.5
MAX_ROUNDS, REPORTS = 30, 30_000  # how often a sweep is played through; epochs in all of them together


@dataclass(frozen=True)
class Cost:
    """What one trial costs a worker."""

    fixed: float  # seconds, once: data, kernels, study
    epoch: float  # seconds, for each epoch: training, validation, checkpoint
    epochs: int  # where nothing stops it


@dataclass(frozen=True)
class Epoch:
    """The end of an epoch in a sweep that is played through."""

    seconds: float  # since the first trial began
    trial: int
    number: int  # from 1
    state: TrialState  # of the trial from here on


@dataclass(frozen=True)
class Duration:
    """What a sweep took when it was played through, in seconds from the first trial on."""

    search: float
    confirmation: float  # what it takes longer than the search

    @property
    def total(self) -> float:
        return self.search + self.confirmation


def simulate(sweep: Sweep, costs: Sequence[Cost], num_workers: int, confirm: int, repeats: int) -> list[Duration]:
    """Play a sweep through again and again; return the durations, the shortest first.

    `costs` are those of its first trials; where it has more, the others cost what chance picks among these, a
    baseline left out. `confirm` of the best are trained `repeats` times again, unpruned, by workers that have no trial
    left.
    """
    random, first = np.random.default_rng(sweep.space.seed), sweep.space.first_proposed
    rounds = max(1, min(MAX_ROUNDS, REPORTS // (sweep.num_trials * sweep.epochs)))
    durations = []
    for _ in range(rounds):
        picked = random.integers(min(first, len(costs) - 1), len(costs), sweep.num_trials - len(costs))
        drawn = [*costs, *(costs[index] for index in picked)]
        luck, gain = math.sqrt(1 - GAIN**2) * random.normal(size=len(drawn)), GAIN * _sizes(drawn)
        values = partial(_made_up, (luck - gain).tolist(), random)
        search = list(play(sweep.title, sweep.make_pruner(), drawn, values, num_workers))
        gain[:first] = 0  # the baseline begins as well as others of its size, but nobody has tuned how it ends
        ends = [epoch for epoch in search if epoch.state != TrialState.RUNNING]
        searched = max((epoch.seconds for epoch in ends), default=0.0)
        confirmed = confirm_until(ends, drawn, (luck - gain).tolist(), num_workers, confirm, repeats)
        durations.append(Duration(searched, max(0.0, confirmed - searched)))
    return sorted(durations, key=lambda duration: duration.total)


def confirm_until(
    ends: Sequence[Epoch], costs: Sequence[Cost], values: Sequence[float], num_workers: int, confirm: int, repeats: int
) -> float:
    """Have workers confirm the best `confirm` trials as soon as they find no other trial; return when they are done.

    `ends` are those of the search's trials, of which the workers' last ones set them free. A worker takes the likeliest
    run, as search/study/confirmation_study.py does, and leaves a run after the epoch in which others displaced it.
    """
    complete = [end for end in ends if end.state == TrialState.COMPLETE]

    def best(seconds: float) -> list[int]:
        known = [end.trial for end in complete if end.seconds <= seconds]
        return sorted(known, key=lambda number: values[number])[:confirm]

    free = [0.0] * max(0, num_workers - len(ends)) + [end.seconds for end in ends][-num_workers:]
    heapq.heapify(free)
    begun: set[tuple[int, int]] = set()
    done = 0.0
    while free:
        now = heapq.heappop(free)
        run = next((pair for pair in product(best(now), range(repeats)) if pair not in begun), None)
        if run is None:
            if later := [end.seconds for end in ends if end.seconds > now]:
                heapq.heappush(free, later[0])
            else:
                done = max(done, now)
            continue
        begun.add(run)
        cost = costs[run[0]]
        steps = [now + cost.fixed + cost.epoch * epoch for epoch in range(1, cost.epochs + 1)]
        heapq.heappush(free, next((end for end in steps if run[0] not in best(end)), steps[-1]))
    return done


def play(
    name: str,
    pruner: BasePruner,
    costs: Sequence[Cost],
    value: Callable[[int, int], float],
    num_workers: int,
) -> Iterator[Epoch]:
    """Have workers train trials of these costs in the study `name`; yield each epoch as it ends.

    `value` says what a trial is worth after an epoch (from 1), less being better.
    """
    study = optuna.create_study(study_name=name, pruner=pruner, sampler=RandomSampler())
    trials: list[optuna.Trial] = []
    ends: list[tuple[float, int, int]] = []  # of the epochs that are trained: when, of which trial, which epoch
    most = max((cost.epochs for cost in costs), default=0)
    now = 0.0
    while ends or len(trials) < len(costs):
        if len(ends) < num_workers and len(trials) < len(costs):
            cost = costs[len(trials)]
            heapq.heappush(ends, (now + cost.fixed + cost.epoch, len(trials), 1))
            trials.append(study.ask())
            continue
        now, number, epoch = heapq.heappop(ends)
        worth = value(number, epoch)
        trials[number].report(worth, epoch)
        if epoch < most and trials[number].should_prune():
            state = TrialState.PRUNED
            study.tell(trials[number], state=state)
        elif epoch < costs[number].epochs:
            state = TrialState.RUNNING
            heapq.heappush(ends, (now + costs[number].epoch, number, epoch + 1))
        else:
            state = TrialState.COMPLETE
            study.tell(trials[number], worth)
        yield Epoch(now, number, epoch, state)


def _made_up(values: Sequence[float], random: np.random.Generator, number: int, _: int) -> float:
    return values[number] + NOISE * float(random.normal())


def _sizes(costs: Sequence[Cost]) -> np.ndarray:
    """Return how much each trial costs: logarithm of the seconds of an epoch, of zero mean and unit variance."""
    size = np.log([cost.epoch for cost in costs])
    return np.asarray((size - size.mean()) / max(float(size.std()), 1e-9))
