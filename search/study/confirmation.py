"""The confirmation of a sweep. It is created with the search; its runs are chosen when the search has ended."""

import sys
import uuid
from dataclasses import replace

import optuna
from optuna.trial import TrialState

from search.study.deaths import end_if_surplus, held_briefly
from search.study.quota import ConfirmationQuota
from search.study.shared_study import SharedStudy, retried
from search.study.sweep import CHOSEN
from search.study.trials import pair_of


@retried
def create_confirmation(study: SharedStudy, num_configurations: int, num_repeats: int) -> SharedStudy:
    """Open, or create, the study of `num_repeats` runs of each of the best `num_configurations`; earlier runs stay."""
    sweep = replace(
        study.sweep,
        part="confirmation",
        pruner="none",
        search_id="",
        num_trials=sys.maxsize,  # the choice says which count
        num_confirmed=num_configurations,
        num_repeats=num_repeats,
    )
    direction = sweep.space.goal.direction
    runs = optuna.create_study(
        study_name=sweep.stored_name, storage=study.storage, direction=direction, load_if_exists=True
    )
    with study.locks.exclusively("claim"):
        if "uid" not in runs.user_attrs:
            runs.set_user_attr("uid", uuid.uuid4().hex)
        if CHOSEN not in runs.user_attrs:  # new, or older than the start of runs ahead of the choice
            runs.set_user_attr(CHOSEN, [pair_of(run) for run in runs.get_trials(deepcopy=False)])
    return SharedStudy(sweep, study.on_wait)


@retried
def choose(confirmation: SharedStudy) -> None:
    """Store which runs count once the search has ended. Enqueue missing ones; displace those that do not count.

    Runs that an earlier, shorter search chose count too.
    """
    assert isinstance(confirmation.quota, ConfirmationQuota)
    with confirmation.locks.exclusively("claim"):
        runs = confirmation.read_trials()
        confirmation.quota.choose(runs)
        for run in runs:
            if run.state == TrialState.WAITING:
                end_if_surplus(confirmation, run)
            elif run.state == TrialState.RUNNING:  # if it is being trained, its worker ends it after the epoch
                with held_briefly(confirmation, run) as locked:
                    if locked:
                        end_if_surplus(confirmation, run)
