"""Warm start: give the sampler the results of a prior sweep of the same space. Make a sweep's first proposals."""

import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.space.schema import comparable
from search.space.space import Parameters, Space
from search.study.sweep import CANDIDATES, Sweep, comparable_settings, find_study, holds_study, load_study, settings_of
from search.study.trials import ordered

WARM_START = "warm_start"  # the setting of that name, and the user attribute of the study
# Settings that leave results comparable.
IRRELEVANT = {"seed", "pruner", "engine", "algorithm", "baseline", "versions", WARM_START}


@dataclass(frozen=True)
class PriorSweep:
    """A prior sweep as it was when this one was created; JSON-able."""

    name: str
    settings: Mapping[str, Any]  # of its creation
    winner: Parameters  # to try again; empty if it is the baseline, which is tried anyway
    trials: Sequence[Mapping[str, Any]]  # ended ones in the space: state, params, value, step
    num_proposed: int  # our samplers are numbered from here: else, with an equal seed, they repeat its random proposals
    uid: str = ""  # of its study; unknown to older sweeps

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """Return the settings that make results incomparable, such as images and epochs."""
        ours, theirs = comparable_settings(settings), comparable_settings(self.settings)
        return sorted(key for key in ours.keys() - IRRELEVANT if ours[key] != theirs.get(key))

    def is_that_of(self, folder: Path) -> bool:
        """Say whether this is the sweep in `folder`, which may have been renamed since."""
        if folder.name == self.name:
            return True
        return bool(self.uid and holds_study(folder) and load_study(folder).user_attrs.get("uid") == self.uid)


def read_prior_sweep(folder: Path, space: Space) -> PriorSweep:
    """Read the sweep in `folder`. Raises ValueError if a search of `space` cannot learn from it."""
    if space.algorithm != "bayes":
        raise ValueError(f"--warm-start is for algorithm bayes; {space.algorithm} uses no results")
    try:
        study = load_study(folder)
    except ValueError as error:
        raise ValueError(f"--warm-start: {error}") from error
    settings = settings_of(study)
    for key, ours in {"parameters": comparable(space.content["parameters"]), "goal": asdict(space.goal)}.items():
        if settings.get(key) != ours:
            raise ValueError(f"--warm-start: {folder} differs in {key}; name a sweep of the same space and goal")
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    ended = [trial for trial in study.get_trials(deepcopy=False, states=states) if trial.params]
    complete = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    if not complete:
        raise ValueError(f"--warm-start: no trial of {folder} is complete and in the space; name another sweep")
    confirmed = [candidate["trial"] for candidate in study.user_attrs.get(CANDIDATES, [])]  # the winner first
    best = sorted(ordered(complete, space.goal), key=lambda trial: trial.number not in confirmed[:1])
    winner = next((trial.params for trial in best if trial.params != space.baseline), {})
    records, num_proposed = [_record(trial) for trial in ended], len(study.get_trials())
    return PriorSweep(folder.name, settings, winner, records, num_proposed, study.user_attrs.get("uid", ""))


def prior_sweep_of(study: optuna.Study) -> PriorSweep | None:
    """Return the prior sweep of a study."""
    attributes = study.user_attrs
    return PriorSweep(**attributes[WARM_START]) if WARM_START in attributes.get("settings", {}) else None


def noted_prior_sweep(sweep: Sweep) -> PriorSweep | None:
    """Return the prior sweep that a sweep was created with, if any."""
    return prior_sweep_of(study) if (study := find_study(sweep)) else None


class WarmStartStudy(optuna.Study):
    """A study whose sampler sees the trials of a prior sweep before its own.

    It is used for proposals only: budget, ranking and pruner see the study's own trials.
    """

    def __init__(self, study: optuna.Study, space: Space, prior: PriorSweep | None) -> None:
        super().__init__(study.study_name, study._storage)
        self.space, self.records = space, prior.trials if prior else ()

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        own = super()._get_trials(deepcopy, states, use_cache)
        if not self.records:
            return own
        shift = self._shift(own)
        numbered = enumerate(self.records, -len(self.records))
        before = [_trial(record, shift, self.space, number) for number, record in numbered]
        return [trial for trial in before if states is None or trial.state in states] + own

    def _shift(self, own: Sequence[FrozenTrial]) -> float:
        """Return the median difference of results on configurations that both sweeps tried.

        TPE splits results into good and bad ones. Without the shift, the longer sweep would have all good ones.
        """
        done = [(trial.params, trial.value) for trial in own if trial.state == TrialState.COMPLETE]
        complete = [record for record in self.records if record["state"] == TrialState.COMPLETE.name]
        gaps = [value - record["value"] for params, value in done for record in complete if params == record["params"]]
        return float(statistics.median(gaps)) if gaps else 0.0


def first_proposals(space: Space, count: int, prior: PriorSweep | None = None) -> list[Parameters]:
    """Return the parameters of a sweep's first trials, before results of its own can influence them."""
    study = WarmStartStudy(optuna.create_study(direction=space.goal.direction), space, prior)
    proposals = []
    if space.baseline is not None:
        params, distributions = ({}, {}) if space.baseline_is_outside else (space.baseline, space.distributions)
        study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        proposals.append(space.baseline)
    if prior and prior.winner:
        study.enqueue_trial(prior.winner)
    for number in range(space.first_proposed, count):
        study.sampler = space.sampler(number + (prior.num_proposed if prior else 0))
        trial = study.ask()
        space.suggest(trial)
        proposals.append(trial.params)
    return proposals


def _record(trial: FrozenTrial) -> dict[str, Any]:
    return {"state": trial.state.name, "params": trial.params, "value": trial.value, "step": trial.last_step}


def _trial(record: Mapping[str, Any], shift: float, space: Space, number: int) -> FrozenTrial:
    """Build a trial of the prior sweep. Its number is negative, as TPE gives old trials less weight."""
    value = record["value"] + shift
    trial = create_trial(
        state=TrialState[record["state"]],
        params=dict(record["params"]),
        distributions=space.distributions,
        value=value,
        intermediate_values={record["step"]: value} if record["step"] else {},
    )
    trial.number = number
    return trial
