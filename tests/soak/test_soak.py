"""A few faults of tests/soak, each time others; `make soak` has hundreds."""

import random
import time

import pytest
from optuna.trial import TrialState

from search.study.sweep import CHOSEN, load_confirmation
from search.study.trials import counted
from tests.search.workers.test_supervisor import assert_exact
from tests.soak.__main__ import inject, soak
from tests.soak.faults import FAULTS
from tests.soak.programs import CountingSweep

KILLS = {name: FAULTS[name] for name in ("a worker killed (-9)", "the parent killed (-9)")}


class Confirmed(CountingSweep):
    """It confirms the best three, and begins to matter when it does."""

    def command(self):
        return [*super().command(), "--confirm", "3"]

    def began(self):
        return (self.folder / "confirmation.log").exists()


@pytest.mark.slow
def test_random_faults_cost_no_trial(tmp_path):
    faults = soak(tmp_path, faults=3, trials=5, workers=2, each=3, seed=time.time_ns() % 2**32)
    assert 0 < faults.total() <= 3


def test_killed_at_random_moments_it_ends_with_exactly_the_budget(tmp_path):
    program = CountingSweep(tmp_path, 8, 2)
    kills, allowed = inject(program, 5, KILLS, random.Random(), (0.3, 2.5))
    assert kills
    assert_exact(program.folder, 8)
    assert program.outcome()["again"] <= allowed


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_exactly_the_runs_to_confirm(tmp_path):
    program = Confirmed(tmp_path, 4, 2)
    kills, _ = inject(program, 6, KILLS, random.Random(), (0.1, 0.5))
    assert kills
    trials = assert_exact(program.folder, 4)
    study = load_confirmation(program.folder)
    runs = counted(study.get_trials(), study.user_attrs[CHOSEN])
    wanted = min(3, sum(trial.state == TrialState.COMPLETE for trial in trials))
    assert [run.state for run in runs] == [TrialState.COMPLETE] * 2 * wanted
    asked = [(run.user_attrs["confirms"], run.user_attrs["repeat"]) for run in runs]
    assert len(set(asked)) == len(asked) == 2 * wanted
    assert all(run.last_step == 4 for run in runs)  # none is pruned
