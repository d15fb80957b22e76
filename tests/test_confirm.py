from collections import Counter

import numpy as np
import pytest
from optuna.trial import TrialState
from rich.console import Console

from search.confirm import OUTCOMES, begin_confirmation, candidates_of, gain_over_baseline, print_candidates
from search.opening import create_ledger
from search.space import derive_seed
from search.study import parameters_of
from tests.counting_sweep import make_sweep


@pytest.fixture
def ledger(tmp_path):
    """Four complete trials of losses 0.5, 0.2, 0.3, 0.4 and a pruned one of 0.1."""
    ledger = create_ledger(make_sweep(tmp_path / "runs/one", 5), {})
    for value in (0.5, 0.2, 0.3, 0.4):
        end(ledger, value)
    claim = ledger.take(0, "cpu")
    ledger.report(claim.trial, 1, 0.1)
    ledger.tell(claim.trial, TrialState.PRUNED)
    claim.release()
    return ledger


def end(ledger, value, state=TrialState.COMPLETE, losses=None):
    """Take a trial and end it, with outcomes per picture where there are some."""
    claim = ledger.take(0, "cpu")
    if losses is not None:
        np.savez(ledger.sweep.trial_folder(claim.trial.number) / OUTCOMES, loss=losses)
    ledger.report(claim.trial, 1, value)
    ledger.tell(claim.trial, state, value if state == TrialState.COMPLETE else None)
    claim.release()
    return claim.trial


def confirmed(ledger, *values, num=2):
    """Confirm the best two with runs of these values: the first two are the first repeats."""
    runs = begin_confirmation(ledger, num, len(values) // num)
    trials = [end(runs, value) for value in values]
    return runs, trials


def test_best_complete_trials_are_run_again_with_seeds_of_their_own(ledger):
    runs, trials = confirmed(ledger, 0.3, 0.2, 0.3, 0.2)
    assert runs.num_unfinished() == 0
    assert runs.take(0, "cpu") is None
    assert [run.user_attrs["confirms"] for run in trials] == [1, 2, 1, 2]
    for run in trials:
        assert parameters_of(run) == parameters_of(ledger.trials()[run.user_attrs["confirms"]])
    seeds = [runs.sweep.seed_of(run) for run in trials] + [ledger.sweep.seed_of(trial) for trial in ledger.trials()]
    assert len(set(seeds)) == 9
    assert runs.sweep.seed_of(trials[2]) == derive_seed(ledger.sweep.space.seed, 1, 2)
    assert len(ledger.trials()) == 5  # none of them counts as the search's
    assert ledger.num_unfinished() == 0


def test_a_searched_seed_is_drawn_afresh(tmp_path):
    sweep = make_sweep(tmp_path / "runs/seeds", 1, parameters={"seed": [3, 4], "x": [2.0]})
    ledger = create_ledger(sweep, {})
    trial = end(ledger, 0.5)
    assert sweep.seed_of(trial) in (3, 4)
    runs = begin_confirmation(ledger, 1, 1)
    (run,) = runs.trials()
    assert parameters_of(run) == {"x": 2.0}
    assert runs.sweep.seed_of(run) == derive_seed(5, 0, 1)


def test_asking_twice_adds_nothing_and_asking_for_more_adds_the_rest(ledger):
    confirmed(ledger, 0.3, 0.2)
    assert len(begin_confirmation(ledger, 2, 1).trials()) == 2
    more = begin_confirmation(ledger, 3, 2)
    assert Counter(run.user_attrs["confirms"] for run in more.trials()) == {1: 2, 2: 2, 3: 2}
    assert more.num_unfinished() == 4


def test_winner_has_the_best_mean_whatever_the_search_said(ledger):
    runs, _ = confirmed(ledger, 0.40, 0.20, 0.41, 0.19)
    winner, other = candidates_of(ledger, runs.trials(), lambda _: 1.0)
    assert (winner.trial, winner.mean, winner.best_run) == (2, pytest.approx(0.195), 3)
    assert winner.folder(ledger.sweep.folder) == ledger.sweep.folder / "confirmation/0003"
    assert (other.trial, other.standing) == (1, "worse")


def test_among_tied_ones_the_cheapest_wins(ledger):
    runs, _ = confirmed(ledger, 0.30, 0.20, 0.20, 0.28)
    by_trial = {parameters_of(ledger.trials()[n])["x"]: cost for n, cost in ((1, 1.0), (2, 5.0))}
    candidates = candidates_of(ledger, runs.trials(), lambda parameters: by_trial[parameters["x"]])
    assert [(c.trial, c.standing, c.cost) for c in candidates] == [(1, "tied", 1.0), (2, "best mean", 5.0)]
    assert candidates[0].mean > candidates[1].mean
    console = Console(width=120)
    with console.capture() as captured:
        print_candidates(console, candidates, ledger.sweep.space.goal)
    lines = captured.get().splitlines()
    assert next(line for line in lines if line.strip().startswith("1 ")).endswith("tied  ")
    assert next(line for line in lines if line.strip().startswith("2 ")).rstrip().endswith("best mean")


def test_outcomes_per_picture_sharpen_the_comparison(ledger):
    random = np.random.default_rng(0)
    difficulty = random.uniform(0, 1, 500)
    runs = begin_confirmation(ledger, 2, 2)
    for shift in (0.0, 0.05, 0.0, 0.05):
        losses = difficulty + shift + random.normal(0, 0.1, 500)
        end(runs, losses.mean(), losses=losses)
    winner, other = candidates_of(ledger, runs.trials(), lambda _: 1.0)
    assert (winner.trial, other.standing) == (1, "worse")
    low, high = winner.interval
    assert low < winner.mean < high


def test_a_tie_of_configurations_does_not_promote_weights_that_are_seen_to_be_worse(ledger):
    random = np.random.default_rng(0)
    difficulty = random.uniform(0, 1, 500)
    runs = begin_confirmation(ledger, 3, 2)
    for shift in (
        0.0,
        0.05,
        0.1,
        0.0,
        0.05,
        0.4,
    ):  # the third one's seeds lie so far apart that nobody can be told apart
        losses = difficulty + shift + random.normal(0, 0.1, 500)
        end(runs, losses.mean(), losses=losses)
    costs = {parameters_of(ledger.trials()[n])["x"]: cost for n, cost in ((1, 9.0), (2, 1.0), (3, 5.0))}
    found = candidates_of(ledger, runs.trials(), lambda parameters: costs[parameters["x"]])
    assert [(c.trial, c.standing) for c in found[:2]] == [(1, "best mean"), (2, "tied, weights worse")]


def test_configuration_that_failed_once_is_no_candidate(ledger):
    runs = begin_confirmation(ledger, 2, 2)
    for value, state in ((0.1, TrialState.COMPLETE), (0.3, TrialState.COMPLETE), (0.1, TrialState.FAIL)):
        end(runs, value, state)
    end(runs, 0.3)
    assert [candidate.trial for candidate in candidates_of(ledger, runs.trials(), lambda _: 1.0)] == [2]


def test_without_confirmation_the_searchs_best_wins_unconfirmed(ledger):
    (winner,) = candidates_of(ledger, [], lambda _: 1.0)
    assert (winner.trial, winner.runs, winner.best_run) == (1, (), None)
    assert winner.folder(ledger.sweep.folder) == ledger.sweep.trial_folder(1)


def test_gain_over_the_baseline_has_an_interval(ledger):
    random, folder = np.random.default_rng(0), ledger.sweep.folder
    difficulty = random.uniform(0, 1, 500)
    np.savez(ledger.sweep.trial_folder(0) / OUTCOMES, loss=difficulty, val_accuracy=difficulty < 0.8)
    runs = begin_confirmation(ledger, 1, 2)
    for _ in range(2):
        losses = difficulty - 0.1 + random.normal(0, 0.05, 500)
        end(runs, losses.mean(), losses=losses)
    gains = gain_over_baseline(folder, candidates_of(ledger, runs.trials(), lambda _: 1.0), "loss")
    assert list(gains) == ["loss"]
    low, high = gains["loss"].interval
    assert low < gains["loss"].mean < high
    assert gains["loss"].mean == pytest.approx(-0.1, abs=0.01)
