"""Simulate a sweep, its pruner and its workers included, with drawn or recorded results, to tell how long it takes."""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, product

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from search.study.sweep import Sweep

NOISE = 0.5  # of a trial's value between epochs, in standard deviations between trials
# Costly networks tend to be better. Rank correlation of seconds and best loss, baseline left out: 0.59 in a sweep of 12
# trials on synthetic images, 0.46 in one of 8 on photographs; of seconds and the first epoch's loss, baseline
# included: 0.47 and 0.60.
GAIN = 0.5
MAX_ROUNDS, MAX_EPOCHS = 30, 30_000  # simulations of a sweep, and epochs in all of them together


@dataclass(frozen=True)
class TrialCost:
    """The time that one trial takes on a worker."""

    fixed: float  # seconds, once: data, kernels, study
    epoch: float  # seconds per epoch of full size: training, validation, checkpoint
    epochs: int  # unless it is pruned
    shares: Sequence[float] = ()  # cost of each epoch, relative to one of full size; empty: all are 1

    def seconds_of(self, number: int) -> float:
        """Return the seconds of an epoch, counted from 1."""
        return self.epoch * self.shares[number - 1] if self.shares else self.epoch


@dataclass(frozen=True)
class SimulatedEpoch:
    """The end of an epoch."""

    seconds: float  # since the first trial began
    trial: int
    number: int  # from 1
    state: TrialState  # of the trial after this epoch


@dataclass(frozen=True)
class Duration:
    """The duration of a simulated sweep, in seconds."""

    search: float
    confirmation: float  # after the end of the search

    @property
    def total(self) -> float:
        return self.search + self.confirmation


def simulate(sweep: Sweep, costs: Sequence[TrialCost], num_workers: int, confirm: int, repeats: int) -> list[Duration]:
    """Simulate a sweep many times; return the durations, the shortest first.

    `costs` are those of the first trials. Each further trial gets one of them at random, the baseline's excluded. The
    `confirm` best trials are trained `repeats` times again, unpruned, by workers that have no trial left.
    """
    random, first = np.random.default_rng(sweep.space.seed), sweep.space.first_proposed
    durations = []
    for _ in range(max(1, min(MAX_ROUNDS, MAX_EPOCHS // (sweep.num_trials * sweep.epochs)))):
        picked = random.integers(min(first, len(costs) - 1), len(costs), sweep.num_trials - len(costs))
        drawn = [*costs, *(costs[index] for index in picked)]
        sizes = np.log([cost.epoch for cost in drawn])
        gain = GAIN * ((sizes - sizes.mean()) / max(sizes.std(), 1e-9))
        luck = math.sqrt(1 - GAIN**2) * random.normal(size=len(drawn))
        value = partial(_noisy, (luck - gain).tolist(), random)
        epochs = list(simulate_search(sweep.title, sweep.make_pruner(), drawn, value, num_workers))
        ends = [epoch for epoch in epochs if epoch.state != TrialState.RUNNING]
        searched = max((end.seconds for end in ends), default=0.0)
        gain[:first] = 0  # the baseline starts like others of its size, but its hyperparameters are not tuned
        confirmed = simulate_confirmation(ends, drawn, (luck - gain).tolist(), num_workers, confirm, repeats)
        durations.append(Duration(searched, max(0.0, confirmed - searched)))
    return sorted(durations, key=lambda duration: duration.total)


def simulate_search(
    name: str, pruner: BasePruner, costs: Sequence[TrialCost], value: Callable[[int, int], float], num_workers: int
) -> Iterator[SimulatedEpoch]:
    """Simulate trials in the study `name`; yield each epoch as it ends.

    `value(trial, epoch)` is the trial's value after an epoch (from 1); less is better.
    """
    study = optuna.create_study(study_name=name, pruner=pruner, sampler=RandomSampler())
    trials: list[optuna.Trial] = []
    running: list[tuple[float, int, int]] = []  # a heap of epochs: end in seconds, trial, epoch
    last = max((cost.epochs for cost in costs), default=0)
    now = 0.0
    while running or len(trials) < len(costs):
        if len(running) < num_workers and len(trials) < len(costs):
            cost = costs[len(trials)]
            heapq.heappush(running, (now + cost.fixed + cost.seconds_of(1), len(trials), 1))
            trials.append(study.ask())
            continue
        now, number, epoch = heapq.heappop(running)
        reached = value(number, epoch)
        trials[number].report(reached, epoch)
        if epoch < last and trials[number].should_prune():
            state = TrialState.PRUNED
            study.tell(trials[number], state=state)
        elif epoch < costs[number].epochs:
            state = TrialState.RUNNING
            heapq.heappush(running, (now + costs[number].seconds_of(epoch + 1), number, epoch + 1))
        else:
            state = TrialState.COMPLETE
            study.tell(trials[number], reached)
        yield SimulatedEpoch(now, number, epoch, state)


def simulate_confirmation(
    ends: Sequence[SimulatedEpoch],
    costs: Sequence[TrialCost],
    values: Sequence[float],
    num_workers: int,
    confirm: int,
    repeats: int,
) -> float:
    """Confirm the best `confirm` trials on workers that have no trial left; return the second at which all are done.

    `ends` are the last epochs of the search's trials; the last ones free the workers. As in
    search/study/quota.py, a worker takes the likeliest run, and leaves it after the epoch in which
    better trials displaced it.
    """
    complete = [end for end in ends if end.state == TrialState.COMPLETE]

    def best(seconds: float) -> list[int]:
        known = [end.trial for end in complete if end.seconds <= seconds]
        return sorted(known, key=lambda number: values[number])[:confirm]

    free = [0.0] * max(0, num_workers - len(ends)) + [end.seconds for end in ends][-num_workers:]
    heapq.heapify(free)
    begun: set[tuple[int, int]] = set()
    now = 0.0
    while free:
        now = heapq.heappop(free)
        run = next((pair for pair in product(best(now), range(repeats)) if pair not in begun), None)
        if run is None:
            if later := [end.seconds for end in ends if end.seconds > now]:
                heapq.heappush(free, later[0])
            continue
        begun.add(run)
        cost = costs[run[0]]
        _, *steps = accumulate(map(cost.seconds_of, range(1, cost.epochs + 1)), initial=now + cost.fixed)
        heapq.heappush(free, next((end for end in steps if run[0] not in best(end)), steps[-1]))
    return now


def _noisy(values: Sequence[float], random: np.random.Generator, trial: int, _: int) -> float:
    return values[trial] + NOISE * float(random.normal())
