"""The confirmation's part of a study: the best configurations, trained again with fresh seeds.

Whoever finds no trial left begins with the runs that are most likely to be wanted: those of the configurations that
would be chosen if the search ended there. When it has ended, the choice is noted, and what is missing is made. A run
that was made ahead for a configuration that others displaced is stopped after its epoch, and does not count. What a run
is worth depends on its trial and its repeat alone, so it is the same whenever it is made.
"""

import json
from collections.abc import Callable, Iterable, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.study.shared_study import NOTICE, Owner, SharedStudy, insisting
from search.study.sweep import CHOSEN, Sweep
from search.study.trials import CONFIRMS, DISPLACED, REPEAT, counted, ordered, parameters_of

__all__ = ["ConfirmationStudy"]


class ConfirmationStudy(SharedStudy):
    """The study of a confirmation, opened by one process.

    A run is wanted while its trial is among the best so far; chosen, for good, once the search has ended; displaced,
    for good, when it was stopped as nobody wanted it. Only what was chosen, and not displaced, counts.
    """

    def __init__(
        self, sweep: Sweep, on_wait: Callable[[str], None] = lambda _: None, owner: Owner | None = None
    ) -> None:
        super().__init__(sweep, on_wait, owner)
        self.search = optuna.load_study(study_name=sweep.name, storage=self.storage)

    @insisting
    def choose(self) -> None:
        """Note which runs count, as the search has ended, and have made what is missing; the others are displaced.

        What an earlier, shorter search chose counts too.
        """
        with self.locks.exclusively("claim"):
            wanted, runs = self._wanted(), self._trials()
            there = _pairs(run for run in runs if DISPLACED not in run.user_attrs)
            for trial, repeat in sorted(wanted, key=lambda pair: pair[1]):
                if (trial.number, repeat) not in there:
                    self._enqueue_run(trial, repeat)
            # After they were made: a run that is chosen exists.
            numbers = [[trial.number, repeat] for trial, repeat in wanted]
            chosen = self._chosen()
            self.optuna.set_user_attr(CHOSEN, [*chosen, *(pair for pair in numbers if pair not in chosen)])
            for run in runs:
                if run.state == TrialState.WAITING:
                    self._end_if_surplus(run)
                elif run.state == TrialState.RUNNING:  # where somebody works on it, he will see
                    with self._locked(run) as locked:
                        _ = locked and self._end_if_surplus(run)

    @insisting
    def budget(self) -> int:
        return len(self._chosen())

    @insisting
    def counted(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        return counted(trials, self._chosen())

    def num_unfinished(self) -> int:
        """Count the runs that are still to be started or ended, those that are about to be stopped too."""
        return sum(not run.state.is_finished() for run in self.trials())

    @insisting
    def num_free(self) -> int:
        with self.locks.exclusively("claim"):
            runs = self._trials()
            waiting = [run for run in runs if run.state == TrialState.WAITING]
            return len(waiting) + len(self._missing(runs)) + len(self._left_behind(runs))

    @insisting
    def report(self, trial: FrozenTrial, step: int, value: float) -> bool:
        """Record what our run is worth after an epoch; say whether it is to stop because nobody wants it any more."""
        is_new = step >= (trial.last_step or 0)
        super().report(trial, step, value)
        if not is_new or step >= self.sweep.epochs or not self._is_surplus(trial):
            return False
        with self.locks.exclusively("claim"):  # whoever chooses may want it after all, and must know that it stops
            return self._displace(trial)

    @insisting
    def notice(self) -> str:
        return str(self.search.user_attrs.get(NOTICE, ""))

    def _say(self, text: str) -> None:
        self.search.set_user_attr(NOTICE, text)  # whoever watches the search hears of the runs beside it too

    def _start(self, trials: Sequence[FrozenTrial]) -> optuna.Trial | None:
        trials = self._trials()  # some may just have been ended
        if not any(run.state == TrialState.WAITING for run in trials):
            missing = self._missing(trials)
            if not missing:
                return None
            self._enqueue_run(*missing[0])
        return self._ask(len(trials))

    def _end_if_hopeless(self, trial: FrozenTrial) -> bool:
        return self._end_if_surplus(trial) or super()._end_if_hopeless(trial)

    def _end_if_surplus(self, run: FrozenTrial) -> bool:
        """End a run that nobody works on, where nobody wants it; say whether that was so."""
        if displaced := self._displace(run):
            self._note(run, reason=run.user_attrs[DISPLACED])
            self._tell(run, TrialState.PRUNED)
        return displaced

    def _displace(self, run: FrozenTrial) -> bool:
        """Note that a run does not count, if it is surplus; say whether it is."""
        if not self._is_surplus(run):
            return False
        num, repeats = self.sweep.num_confirmed, self.sweep.num_repeats
        why = (
            f"displaced: trial {run.user_attrs[CONFIRMS]} is not among the best {num} to be confirmed by {repeats} runs"
        )
        why = run.user_attrs.get(DISPLACED, why)
        self._note(run, **{DISPLACED: why})
        run.user_attrs[DISPLACED] = why  # after the study has it: this may be asked again
        return True

    def _is_surplus(self, run: FrozenTrial) -> bool:
        pair = (run.user_attrs[CONFIRMS], run.user_attrs[REPEAT])
        if DISPLACED in run.user_attrs:
            return True
        return list(pair) not in self._chosen() and pair not in [(t.number, repeat) for t, repeat in self._wanted()]

    def _missing(self, runs: Sequence[FrozenTrial]) -> list[tuple[FrozenTrial, int]]:
        """Return what is wanted and was not made, the likeliest first."""
        there = _pairs(run for run in runs if DISPLACED not in run.user_attrs)
        return [(trial, repeat) for trial, repeat in self._wanted() if (trial.number, repeat) not in there]

    def _wanted(self) -> list[tuple[FrozenTrial, int]]:
        """Return trial and repeat (from 1) of each run that would be chosen if the search ended now.

        The best first, whom the fewest can displace: the first K - n nobody, while n trials have not ended.
        """
        trials = self.search.get_trials(deepcopy=False)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        best: dict[str, FrozenTrial] = {}  # by parameters: a configuration that was tried twice is one
        for trial in ordered(complete, self.sweep.space.goal):
            best.setdefault(json.dumps(_without_seed(trial), sort_keys=True), trial)
        repeats = range(1, self.sweep.num_repeats + 1)
        return [(trial, repeat) for trial in list(best.values())[: self.sweep.num_confirmed] for repeat in repeats]

    def _chosen(self) -> list[list[int]]:
        chosen: list[list[int]] = self.optuna.user_attrs[CHOSEN]
        return chosen

    def _enqueue_run(self, trial: FrozenTrial, repeat: int) -> None:
        attributes = {"parameters": _without_seed(trial), CONFIRMS: trial.number, REPEAT: repeat}
        self.optuna.enqueue_trial({}, user_attrs=attributes)


def _without_seed(trial: FrozenTrial) -> dict[str, object]:
    return {name: value for name, value in parameters_of(trial).items() if name != "seed"}


def _pairs(runs: Iterable[FrozenTrial]) -> set[tuple[int, int]]:
    return {(run.user_attrs[CONFIRMS], run.user_attrs[REPEAT]) for run in runs}
