"""The trials that a study is to have: the search's budget, and the runs that confirm its best configurations.

A worker that finds no trial left starts the runs that would be chosen if the search ended now. When the search has
ended, the choice is stored and missing runs are enqueued. A run of a configuration that others displaced is stopped
after its epoch and does not count. The result of a run depends on its trial and its repeat alone, not on its time.
"""

import json
from collections.abc import Sequence
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.study.sweep import CHOSEN, Sweep
from search.study.trials import CONFIRMS, DISPLACED, REPEAT, counted, ordered, pair_of, parameters_of
from search.study.warm_start import PriorSweep

SEARCH_ENDED = "search_ended"  # user attribute of the search: its number of trials when Comet had no more


class Quota(Protocol):
    """The trials that a part of a sweep is to have."""

    def budget(self) -> int:
        """Return how many trials count in the end."""

    def counted(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        """Return the trials that belong to the budget."""

    def num_unfinished(self, trials: Sequence[FrozenTrial]) -> int:
        """Count the trials that are still to be started or ended."""

    def num_to_start(self, trials: Sequence[FrozenTrial]) -> int:
        """Count the trials that are still to be started."""

    def enqueue_next(self, trials: Sequence[FrozenTrial]) -> bool:
        """Enqueue the next trial, unless the sampler proposes it. Return False if none is to be started."""

    def surplus(self, trial: FrozenTrial) -> str:
        """Return why a trial does not count any more; empty if it counts."""


class SearchQuota:
    """The budget of the search."""

    def __init__(self, sweep: Sweep, study: optuna.Study, prior: PriorSweep | None) -> None:
        self.sweep, self.study, self.prior = sweep, study, prior

    def budget(self) -> int:
        """Return the number of trials, fewer than the user wants if Comet's search ended earlier."""
        num_trials = self.sweep.num_trials
        if not self.sweep.search_id:
            return num_trials
        num_at_end: int = self.study.user_attrs.get(SEARCH_ENDED, num_trials)
        return min(num_trials, num_at_end)

    def counted(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        return trials[: self.budget()]  # an earlier command may have had a larger budget

    def num_unfinished(self, trials: Sequence[FrozenTrial]) -> int:
        budget = self.budget()
        return budget - sum(trial.state.is_finished() for trial in trials[:budget])

    def num_to_start(self, trials: Sequence[FrozenTrial]) -> int:
        budget = self.budget()
        return max(0, budget - num_started(trials[:budget]))

    def enqueue_next(self, trials: Sequence[FrozenTrial]) -> bool:
        """Begin with the baseline, also where the space does not contain it, then repeat the prior sweep's winner."""
        number = num_started(trials)
        if number >= self.budget():
            return False
        if number < len(trials):  # a process died after it had enqueued one
            return True
        space = self.sweep.space
        if number == 0 and space.baseline is not None:
            if space.baseline_is_outside:
                self.study.enqueue_trial({}, user_attrs={"parameters": space.baseline})
            else:
                self.study.enqueue_trial(space.baseline)
        elif number == space.first_proposed and self.prior and self.prior.winner:
            self.study.enqueue_trial(self.prior.winner)
        return True

    def surplus(self, trial: FrozenTrial) -> str:
        del trial
        return ""


class ConfirmationQuota:
    """The runs of a confirmation.

    A run is wanted while its trial is among the best so far. It is chosen, for good, when the search has ended. It is
    displaced, for good, when it was stopped because it was not wanted. Chosen runs that were not displaced count.
    """

    def __init__(self, sweep: Sweep, study: optuna.Study, search: optuna.Study) -> None:
        self.sweep, self.study, self.search = sweep, study, search

    def budget(self) -> int:
        return len(self.chosen())

    def counted(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        return counted(trials, self.chosen())

    def num_unfinished(self, trials: Sequence[FrozenTrial]) -> int:
        """Count the runs that are still to be started or ended, those about to be stopped included."""
        return sum(not run.state.is_finished() for run in trials)

    def num_to_start(self, trials: Sequence[FrozenTrial]) -> int:
        return sum(run.state == TrialState.WAITING for run in trials) + len(self.missing(trials))

    def enqueue_next(self, trials: Sequence[FrozenTrial]) -> bool:
        if any(run.state == TrialState.WAITING for run in trials):
            return True
        if missing := self.missing(trials):
            self.enqueue(*missing[0])
        return bool(missing)

    def surplus(self, trial: FrozenTrial) -> str:
        if DISPLACED in trial.user_attrs:
            return str(trial.user_attrs[DISPLACED])
        pair = pair_of(trial)
        if pair in self.chosen() or pair in [[wanted.number, repeat] for wanted, repeat in self.wanted()]:
            return ""
        num, repeats = self.sweep.num_confirmed, self.sweep.num_repeats
        return f"displaced: trial {pair[0]} is not among the best {num} to be confirmed by {repeats} runs"

    def missing(self, runs: Sequence[FrozenTrial]) -> list[tuple[FrozenTrial, int]]:
        """Return trial and repeat of each wanted run that does not exist, the likeliest first."""
        made = [pair_of(run) for run in runs if DISPLACED not in run.user_attrs]
        return [(trial, repeat) for trial, repeat in self.wanted() if [trial.number, repeat] not in made]

    def wanted(self) -> list[tuple[FrozenTrial, int]]:
        """Return trial and repeat (from 1) of each run that would be chosen if the search ended now.

        The best come first. Each trial that has not ended can displace one configuration, the last: while n have not
        ended, the first `num_confirmed` - n are safe.
        """
        trials = self.search.get_trials(deepcopy=False)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        best: dict[str, FrozenTrial] = {}  # by parameters: a configuration that was tried twice is one
        for trial in ordered(complete, self.sweep.space.goal):
            best.setdefault(json.dumps(_without_seed(trial), sort_keys=True), trial)
        repeats = range(1, self.sweep.num_repeats + 1)
        return [(trial, repeat) for trial in list(best.values())[: self.sweep.num_confirmed] for repeat in repeats]

    def chosen(self) -> list[list[int]]:
        """Return trial and repeat of each chosen run."""
        chosen: list[list[int]] = self.study.user_attrs[CHOSEN]
        return chosen

    def choose(self, runs: Sequence[FrozenTrial]) -> None:
        """Store which runs count, and enqueue those of them that are missing. Earlier choices count too."""
        wanted, chosen = self.wanted(), self.chosen()
        for trial, repeat in sorted(self.missing(runs), key=lambda pair: pair[1]):
            self.enqueue(trial, repeat)
        pairs = [[trial.number, repeat] for trial, repeat in wanted]
        # Stored after they were enqueued: a chosen run exists.
        self.study.set_user_attr(CHOSEN, [*chosen, *(pair for pair in pairs if pair not in chosen)])

    def enqueue(self, trial: FrozenTrial, repeat: int) -> None:
        attributes = {"parameters": _without_seed(trial), CONFIRMS: trial.number, REPEAT: repeat}
        self.study.enqueue_trial({}, user_attrs=attributes)


def num_started(trials: Sequence[FrozenTrial]) -> int:
    return sum(trial.state != TrialState.WAITING for trial in trials)


def _without_seed(trial: FrozenTrial) -> dict[str, object]:
    return {name: value for name, value in parameters_of(trial).items() if name != "seed"}
