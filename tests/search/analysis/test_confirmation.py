import os
import signal
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy
from optuna.trial import TrialState, create_trial
from rich.console import Console

from search.analysis.confirmation import (
    OUTCOMES,
    Candidate,
    candidates_of,
    explain_shortfall,
    explain_winner,
    gain_over_baseline,
    print_candidates,
)
from search.analysis.ranking import Ranked
from search.space.space import derive_seed
from search.study.confirmation import choose, create_confirmation
from search.study.create import create_study
from search.study.queue import acquire, num_free
from search.study.sweep import load_confirmation, load_study
from search.study.trials import counted, parameters_of
from tests.search.workers.test_supervisor import assert_exact, epochs_in, start
from tests.servers.counting_sweep import EPOCHS, begin_confirmation, make_sweep


@pytest.fixture
def study(tmp_path):
    """Four complete trials of losses 0.5, 0.2, 0.3, 0.4 and a pruned one of 0.1."""
    study = create_study(make_sweep(tmp_path / "runs/one", 5), {})
    for value in (0.5, 0.2, 0.3, 0.4):
        end(study, value)
    claim = acquire(study, 0, "cpu")
    study.report(claim.trial, 1, 0.1)
    study.tell(claim.trial, TrialState.PRUNED)
    claim.release()
    return study


def end(study, value, state=TrialState.COMPLETE, losses=None):
    """Take a trial and end it, with outcomes per image where there are some."""
    claim = acquire(study, 0, "cpu")
    if losses is not None:
        np.savez(study.sweep.trial_folder(claim.trial.number) / OUTCOMES, loss=losses)
    study.report(claim.trial, 1, value)
    study.tell(claim.trial, state, value if state == TrialState.COMPLETE else None)
    claim.release()
    return claim.trial


def confirmed(study, *values, num=2):
    """Confirm the best two with runs of these values: the first two are the first repeats."""
    runs = begin_confirmation(study, num, len(values) // num)
    trials = [end(runs, value) for value in values]
    return runs, trials


def test_best_complete_trials_are_run_again_with_seeds_of_their_own(study):
    runs, trials = confirmed(study, 0.3, 0.2, 0.3, 0.2)
    assert runs.num_unfinished() == 0
    assert acquire(runs, 0, "cpu") is None
    assert [run.user_attrs["confirms"] for run in trials] == [1, 2, 1, 2]
    for run in trials:
        assert parameters_of(run) == parameters_of(study.trials()[run.user_attrs["confirms"]])
    seeds = [runs.sweep.seed_of(run) for run in trials] + [study.sweep.seed_of(trial) for trial in study.trials()]
    assert len(set(seeds)) == 9
    assert runs.sweep.seed_of(trials[2]) == derive_seed(study.sweep.space.seed, 1, 2)
    assert len(study.trials()) == 5  # none of them counts as the search's
    assert study.num_unfinished() == 0


def test_a_searched_seed_is_drawn_afresh(tmp_path):
    sweep = make_sweep(tmp_path / "runs/seeds", 1, parameters={"seed": [3, 4], "x": [2.0]})
    study = create_study(sweep, {})
    trial = end(study, 0.5)
    assert sweep.seed_of(trial) in (3, 4)
    runs = begin_confirmation(study, 1, 1)
    (run,) = runs.trials()
    assert parameters_of(run) == {"x": 2.0}
    assert runs.sweep.seed_of(run) == derive_seed(5, 0, 1)


def test_asking_twice_adds_nothing_and_asking_for_more_adds_the_rest(study):
    confirmed(study, 0.3, 0.2)
    assert len(begin_confirmation(study, 2, 1).trials()) == 2
    more = begin_confirmation(study, 3, 2)
    assert Counter(run.user_attrs["confirms"] for run in more.trials()) == {1: 2, 2: 2, 3: 2}
    assert more.num_unfinished() == 4


def test_winner_has_the_best_mean_whatever_the_search_said(study):
    runs, _ = confirmed(study, 0.40, 0.20, 0.41, 0.19)
    winner, other = candidates_of(study, runs.trials(), lambda _: 1.0)
    assert (winner.trial, winner.mean, winner.best_run) == (2, pytest.approx(0.195), 3)
    assert winner.folder(study.sweep.folder) == study.sweep.folder / "confirmation/0003"
    assert (other.trial, other.standing) == (1, "worse")


def test_among_tied_ones_the_cheapest_wins(study):
    runs, _ = confirmed(study, 0.30, 0.20, 0.20, 0.28)
    by_trial = {parameters_of(study.trials()[n])["x"]: cost for n, cost in ((1, 1.0), (2, 5.0))}
    candidates = candidates_of(study, runs.trials(), lambda parameters: by_trial[parameters["x"]])
    assert [(c.trial, c.standing, c.cost) for c in candidates] == [(1, "tied", 1.0), (2, "best mean", 5.0)]
    assert candidates[0].mean > candidates[1].mean
    for width, left_out in ((120, []), (80, ["runs"]), (70, ["runs", "mult-adds"])):
        console = Console(width=width)
        with console.capture() as captured:
            print_candidates(console, candidates, study.sweep.space.goal)
        lines = captured.get().splitlines()
        assert next(line for line in lines if line.strip().startswith("1 ")).endswith("tied  ")
        assert next(line for line in lines if line.strip().startswith("2 ")).rstrip().endswith("best mean")
        assert "\u2026" not in captured.get()
        assert [name for name in ("runs", "mult-adds") if name not in captured.get()] == left_out


def test_outcomes_per_image_sharpen_the_comparison(study):
    random = np.random.default_rng(0)
    difficulty = random.uniform(0, 1, 500)
    runs = begin_confirmation(study, 2, 2)
    for shift in (0.0, 0.05, 0.0, 0.05):
        losses = difficulty + shift + random.normal(0, 0.1, 500)
        end(runs, losses.mean(), losses=losses)
    winner, other = candidates_of(study, runs.trials(), lambda _: 1.0)
    assert (winner.trial, other.standing) == (1, "worse")
    low, high = winner.interval
    assert low < winner.mean < high


def test_a_tie_of_configurations_does_not_promote_weights_that_are_seen_to_be_worse(study):
    random = np.random.default_rng(0)
    difficulty = random.uniform(0, 1, 500)
    runs = begin_confirmation(study, 3, 2)
    # The seeds of the third one differ so much that all are tied.
    for shift in (0.0, 0.05, 0.1, 0.0, 0.05, 0.4):
        losses = difficulty + shift + random.normal(0, 0.1, 500)
        end(runs, losses.mean(), losses=losses)
    costs = {parameters_of(study.trials()[n])["x"]: cost for n, cost in ((1, 9.0), (2, 1.0), (3, 5.0))}
    found = candidates_of(study, runs.trials(), lambda parameters: costs[parameters["x"]])
    assert [(c.trial, c.standing) for c in found[:2]] == [(1, "best mean"), (2, "tied, weights worse")]


def test_configuration_that_failed_once_is_no_candidate(study):
    runs = begin_confirmation(study, 2, 2)
    for value, state in ((0.1, TrialState.COMPLETE), (0.3, TrialState.COMPLETE), (0.1, TrialState.FAIL)):
        end(runs, value, state)
    end(runs, 0.3)
    assert [candidate.trial for candidate in candidates_of(study, runs.trials(), lambda _: 1.0)] == [2]


def test_without_confirmation_the_searchs_best_wins_unconfirmed(study):
    (winner,) = candidates_of(study, [], lambda _: 1.0)
    assert (winner.trial, winner.runs, winner.best_run) == (1, (), None)
    assert winner.folder(study.sweep.folder) == study.sweep.trial_folder(1)


def test_gain_over_the_baseline_has_an_interval(study):
    random, folder = np.random.default_rng(0), study.sweep.folder
    difficulty = random.uniform(0, 1, 500)
    np.savez(study.sweep.trial_folder(0) / OUTCOMES, loss=difficulty, val_accuracy=difficulty < 0.8)
    runs = begin_confirmation(study, 1, 2)
    for _ in range(2):
        losses = difficulty - 0.1 + random.normal(0, 0.05, 500)
        end(runs, losses.mean(), losses=losses)
    gains = gain_over_baseline(folder, candidates_of(study, runs.trials(), lambda _: 1.0), "loss")
    assert list(gains) == ["loss"]
    mean, (low, high) = gains["loss"]
    assert low < mean < high
    assert mean == pytest.approx(-0.1, abs=0.01)


@pytest.fixture
def searching(tmp_path):
    """A search of four trials, of which one is being trained and three have losses 0.5, 0.2 and 0.3."""
    study = create_study(make_sweep(tmp_path / "runs/two", 4), {})
    claim = acquire(study, 0, "cpu")
    for value in (0.5, 0.2, 0.3):
        end(study, value)
    return study, claim


def complete(study, claim, value):
    study.report(claim.trial, 1, value)
    study.tell(claim.trial, TrialState.COMPLETE, value)
    claim.release()


def pairs(runs):
    return [(run.user_attrs["confirms"], run.user_attrs["repeat"]) for run in runs]


def test_while_the_search_goes_on_the_likeliest_runs_are_made_ahead_the_best_first(searching):
    study, _ = searching
    runs = create_confirmation(study, 2, 2)
    claims = [acquire(runs, 0, "cpu") for _ in range(4)]
    assert pairs(claim.trial for claim in claims) == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert num_free(runs) == 0
    assert acquire(runs, 0, "cpu") is None
    assert list(runs.counted(runs.trials())) == []  # nothing is chosen yet
    assert num_free(create_confirmation(study, 3, 2)) == 2
    assert num_free(create_confirmation(study, 0, 2)) == 0


def test_run_that_a_later_trial_displaces_stops_after_its_epoch_and_does_not_count(searching):
    study, last = searching
    runs = create_confirmation(study, 2, 1)
    sure, displaced = (acquire(runs, 0, "cpu") for _ in range(2))
    assert not any(runs.report(claim.trial, 1, 0.3) for claim in (sure, displaced))
    complete(study, last, 0.25)
    assert not runs.report(sure.trial, 2, 0.2)
    assert runs.report(displaced.trial, 2, 0.1)
    runs.tell(displaced.trial, TrialState.PRUNED)
    assert pairs(begin_confirmation(study, 2, 1).trials()) == [(2, 1), (3, 1), (0, 1)]
    complete(runs, sure, 0.2)
    end(runs, 0.3)
    assert runs.num_unfinished() == 0
    found = candidates_of(study, runs.counted(runs.trials()), lambda _: 1.0)
    assert [candidate.trial for candidate in found] == [2, 0]
    assert runs.trials()[1].user_attrs["displaced"].startswith("displaced: trial 3 is not among the best 2")


def test_complete_run_of_a_displaced_configuration_is_kept_and_ignored_until_it_is_chosen(searching):
    study, last = searching
    runs = create_confirmation(study, 2, 1)
    for value in (0.2, 0.1):
        end(runs, value)
    complete(study, last, 0.25)
    choose(runs)
    end(runs, 0.3)
    assert [run.state for run in runs.trials()] == [TrialState.COMPLETE] * 3
    assert pairs(runs.counted(runs.trials())) == [(2, 1), (0, 1)]
    assert (runs.budget(), runs.num_unfinished()) == (2, 0)
    more = begin_confirmation(study, 3, 1)
    assert more.num_unfinished() == 0  # the run that was made ahead is what would be made now
    assert pairs(more.counted(more.trials())) == [(2, 1), (3, 1), (0, 1)]


def test_displaced_run_that_was_left_behind_is_ended_by_the_next_worker_and_made_anew_if_it_is_chosen(searching):
    study, last = searching
    runs = create_confirmation(study, 2, 1)
    acquire(runs, 0, "cpu")
    acquire(runs, 0, "cpu").release()  # as its worker's death does
    complete(study, last, 0.25)
    assert pairs([acquire(runs, 0, "cpu").trial]) == [(0, 1)]
    assert [run.state for run in runs.trials()] == [TrialState.RUNNING, TrialState.PRUNED, TrialState.RUNNING]
    assert runs.trials()[1].user_attrs["reason"] == runs.trials()[1].user_attrs["displaced"]
    assert pairs(begin_confirmation(study, 3, 1).trials()) == [(2, 1), (3, 1), (0, 1), (3, 1)]


def test_choice_ends_what_was_enqueued_or_left_behind_and_is_surplus(searching):
    study, last = searching
    ahead = create_confirmation(study, 3, 3)
    claims = [acquire(ahead, 0, "cpu") for _ in range(4)]
    claims[3].release()
    trial = study.trials()[1]
    ahead.optuna.enqueue_trial({}, user_attrs={"parameters": parameters_of(trial), "confirms": 1, "repeat": 1})
    complete(study, last, 0.9)
    runs = begin_confirmation(study, 1, 2)
    states = [TrialState.RUNNING] * 3 + [TrialState.PRUNED] * 2
    assert [run.state for run in runs.trials()] == states
    assert ahead.num_unfinished() == 3
    assert pairs(runs.counted(runs.trials())) == [(2, 1), (2, 2)]
    assert runs.report(claims[2].trial, 1, 0.1)  # a third repeat, which an earlier command wanted


def test_study_that_was_confirmed_before_runs_were_made_ahead_counts_them_all(study):
    runs, _ = confirmed(study, 0.3, 0.2)
    with runs.storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("DELETE FROM study_user_attributes WHERE key = 'chosen'"))
    confirmation = load_confirmation(study.sweep.folder)
    assert len(counted(confirmation.trials, confirmation.user_attrs.get("chosen"))) == 2
    again = begin_confirmation(study, 1, 2)
    assert pairs(again.counted(again.trials())) == [(1, 1), (2, 1), (1, 2)]


def values_of(folder):
    """What each trial was worth again, by trial and repeat, of the runs that count."""
    study = load_confirmation(folder)
    runs = counted(study.trials, study.user_attrs["chosen"])
    assert all(run.state == TrialState.COMPLETE and run.last_step == EPOCHS for run in runs)
    worth = {
        pair: (run.value, run.params, run.user_attrs["parameters"]) for pair, run in zip(pairs(runs), runs, strict=True)
    }
    assert len(worth) == len(runs)
    return worth


@pytest.mark.slow
def test_sweep_that_confirms_ahead_finds_what_one_that_does_not_finds(tmp_path):
    folders = [tmp_path / "runs" / name for name in ("ahead", "after")]
    for folder, options in zip(folders, ((), ("--no-ahead",)), strict=True):
        arguments = ("5", "2", "--confirm", "2", "--pruner", "none", "--lengths", "1,1,1,1,6", *options)
        assert start(folder, *arguments).wait() == 0
        assert_exact(folder, 5)
    ahead, after = map(values_of, folders)
    assert ahead == after
    assert len(after) == 4
    last = max(trial.datetime_complete for trial in load_study(folders[0]).trials)
    assert any(run.datetime_start < last for run in load_confirmation(folders[0]).trials)
    studies = [create_study(make_sweep(folder, 5), {"goal": "loss"}) for folder in folders]
    found = []
    for study in studies:
        runs = begin_confirmation(study, 2, 2)
        found.append(candidates_of(study, runs.counted(runs.trials()), lambda _: 1.0))
    strip = [[replace(one, runs=(), best_run=None) for one in candidates] for candidates in found]
    assert strip[0] == strip[1]


def test_worker_that_dies_as_it_confirms_ahead_costs_its_own_run_an_epoch_and_other_runs_nothing(tmp_path):
    folder = tmp_path / "runs/died"
    arguments = ("3", "2", "--confirm", "1", "--pruner", "none", "--lengths", "1,1,8")
    process = start(folder, *arguments)
    while not (folder / "confirmation.log").exists():
        assert process.poll() is None
        time.sleep(0.02)
    (run,) = [run for run in load_confirmation(folder).trials if run.state == TrialState.RUNNING]
    os.kill(run.user_attrs["worker"]["pid"], signal.SIGKILL)
    assert process.wait() == 0
    assert_exact(folder, 3)
    assert len(values_of(folder)) == 2
    assert max(Counter(epochs_in(folder)).values()) == 1


def candidate(trial, standing, mean, cost):
    return Candidate(trial, (0, 1), (mean, mean), mean, None, cost, standing, 0)


FIRST = "trial 4 won, though trial 7 was the best in the search: "
WON = {  # the winner, then the others, as candidates_of returns them
    "tie": (
        [candidate(4, "tied", 0.2, 1e6), candidate(7, "best mean", 0.1, 4e6)],
        f"{FIRST}it is tied with trial 7 and cheaper (1 M against 4 M mult-adds)",
    ),
    "better": (
        [candidate(4, "best mean", 0.1, 4e6), candidate(7, "worse", 0.3, 1e6)],
        f"{FIRST}its mean over fresh seeds is better than that of trial 7 (0.1000 against 0.3000)",
    ),
    "better mean of a tie": (
        [candidate(4, "best mean", 0.1, 4e6), candidate(7, "tied", 0.3, 4e6)],
        f"{FIRST}its mean over fresh seeds is better than that of trial 7 (0.1000 against 0.3000)",
    ),
    "worse weights": (
        [candidate(4, "best mean", 0.1, 4e6), candidate(7, "tied, weights worse", 0.3, 1e6)],
        f"{FIRST}the weights of trial 7 are worse on the validation images",
    ),
    "failed run": ([candidate(4, "best mean", 0.1, 4e6)], f"{FIRST}not all confirmation runs of trial 7 completed"),
    "none": ([candidate(7, "best mean", 0.1, 4e6), candidate(4, "tied", 0.1, 5e6)], ""),
    "unconfirmed": ([replace(candidate(4, "best mean", 0.1, 4e6), runs=())], ""),
}


@pytest.mark.parametrize("case", WON)
def test_reason_why_the_best_trial_of_the_search_did_not_win(case):
    candidates, said = WON[case]
    first = Ranked(1, 7, "complete", 0.05, 0.9, 3, 1.0, {}, {}, "")
    assert explain_winner(candidates, [first]) == said


@pytest.mark.parametrize(
    ("states", "confirmed", "said"),
    [
        ("ccc", [0, 1, 2], ""),
        (
            "cppff",
            [0],
            "1 configuration confirmed instead of 3: only complete trials can be, here 1 of 5 (2 pruned, 2 failed)",
        ),
        ("cc", [0, 1], "2 configurations confirmed instead of 3: only complete trials can be, here 2 of 2"),
        ("ccp", [1], "here 2 of 3 (1 pruned), and equal configurations count once"),
    ],
)
def test_reason_why_fewer_configurations_are_confirmed_than_wanted(states, confirmed, said):
    kinds = {"c": TrialState.COMPLETE, "p": TrialState.PRUNED, "f": TrialState.FAIL}
    trials = [create_trial(state=kinds[s], value=0.5 if s == "c" else None) for s in states]
    runs = [create_trial(value=0.5, user_attrs={"confirms": number}) for number in confirmed]
    assert explain_shortfall(trials, runs, 3).endswith(said)
    assert bool(explain_shortfall(trials, runs, 3)) is bool(said)
