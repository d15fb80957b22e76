"""A sweep that begins with what an earlier one found: real studies, Optuna's own TPE."""

import shutil
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from search.analysis.ranking import rank
from search.report.page import write_page
from search.space.space import Goal
from search.study.create import create_study
from search.study.queue import acquire
from search.study.shared_study import SharedStudy
from search.study.storage import validated_storage
from search.study.sweep import CANDIDATES
from search.study.trials import parameters_of
from search.study.warm_start import first_proposals, noted_prior_sweep, read_prior_sweep
from tests.servers.counting_sweep import EPOCHS, begin_confirmation, make_sweep

NAMES = ("x", "y", "z", "u")
SPACE = {"parameters": {name: {"type": "float", "min": 0, "max": 1} for name in NAMES}}
BASELINE = dict.fromkeys(NAMES, 2.0)  # outside the space
OPTIMUM = 0.3
GOAL = {"metric": "best_loss", "direction": "minimize"}


def plain(folder, num_trials, seed=5, **changes):
    sweep = make_sweep(folder, num_trials, "none", **{**SPACE, **changes})
    return replace(sweep, space=replace(sweep.space, seed=seed))


@pytest.fixture
def make(tmp_path):
    return lambda name, num_trials, **changes: plain(tmp_path / "runs" / name, num_trials, **{"seed": 6, **changes})


def settings(sweep, **changes):
    content = sweep.space.content
    return {"data": "these", "seed": sweep.space.seed, "goal": GOAL, "parameters": content["parameters"], **changes}


def distance(trial):
    return sum((trial.params[name] - OPTIMUM) ** 2 for name in NAMES) if trial.params else 5.0


def search(study, num_trials, studies=()):
    """Have trials proposed and ended, by several processes in turn where there are `studies`."""
    for turn in range(num_trials):
        whose = (study, *studies)[turn % (1 + len(studies))]
        claim = acquire(whose, 0, "cpu")
        value = distance(claim.trial)
        whose.report(claim.trial, EPOCHS, value)
        whose.tell(claim.trial, TrialState.COMPLETE, value)
        claim.release()
    return study


def begun(sweep, earlier=None, **changes):
    return create_study(sweep, settings(sweep, **changes), prior=earlier)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of 30 trials."""
    return search(begun(plain(tmp_path_factory.mktemp("finished") / "cold", 30)), 30).sweep


@pytest.fixture
def cold(finished, tmp_path):
    """A finished sweep of this test's own."""
    folder = shutil.copytree(finished.folder, tmp_path / "runs/cold")
    return SharedStudy(replace(finished, folder=folder))


def proposals(study):
    return [trial.params for trial in study.trials()]


def warm(make, cold, num_trials=6, name="warm"):
    sweep = make(name, num_trials)
    return begun(sweep, read_prior_sweep(cold.sweep.folder, sweep.space))


def mean_distance(study):
    return sum(distance(trial) for trial in study.trials()[2:]) / (len(study.trials()) - 2)


def test_first_proposals_are_near_what_was_good_before(make, cold):
    uninformed = search(begun(make("plain", 8)), 8)
    informed = search(warm(make, cold, 8), 8)
    assert mean_distance(informed) < mean_distance(uninformed) / 2
    assert informed.trials()[0].params == {}  # the baseline comes first all the same
    assert informed.trials()[1].params == min(cold.trials(), key=distance).params


@pytest.mark.parametrize("worse", [-0.5, 0.5])
def test_results_of_longer_or_shorter_training_inform_as_well(make, cold, worse):
    sweep = make("warm", 8)
    earlier = read_prior_sweep(cold.sweep.folder, sweep.space)
    moved = [{**record, "value": record["value"] + worse} for record in earlier.trials]
    expected = proposals(search(warm(make, cold, 8, name="comparable"), 8))
    assert proposals(search(begun(sweep, replace(earlier, trials=moved)), 8)) == expected


def test_budget_ranking_and_report_know_the_sweeps_own_trials_alone(make, cold):
    study = warm(make, cold, 4)
    assert study.num_unfinished() == 4
    search(study, 4)
    assert acquire(study, 0, "cpu") is None
    assert study.num_unfinished() == 0
    assert [trial.number for trial in study.trials()] == [0, 1, 2, 3]
    assert sorted(line.trial for line in rank(study.trials(), Goal(**GOAL))) == [0, 1, 2, 3]
    assert study.optuna.best_trial.number < 4
    assert "4 trials (4 complete)" in write_page(study.sweep.folder, None).read_text()
    assert {run.user_attrs["confirms"] for run in begin_confirmation(study, 9, 1).trials()} == {0, 1, 2, 3}


def test_proposals_depend_on_the_study_alone_even_after_the_prior_sweep_has_changed(make, cold):
    first = search(warm(make, cold), 6)
    expected = proposals(first)
    shutil.rmtree(first.sweep.folder)
    again = warm(make, cold)
    shutil.rmtree(cold.sweep.folder)
    search(again, 2)
    search(SharedStudy(again.sweep), 4, studies=[SharedStudy(again.sweep)])
    assert proposals(again) == expected


def test_what_the_earlier_sweep_finds_later_changes_nothing(make, cold):
    study = search(warm(make, cold), 3)
    search(SharedStudy(replace(cold.sweep, num_trials=33)), 3)
    noted = noted_prior_sweep(study.sweep)
    assert len(noted.trials) == 29  # the baseline is outside the space
    assert begun(study.sweep, noted).prior == noted
    with pytest.raises(ValueError, match="warm_start was cold, is other"):
        begun(study.sweep, replace(noted, name="other"))


def test_a_process_that_dies_before_the_winner_is_tried_again_leaves_it_to_the_next(make, cold):
    study = warm(make, cold, 2)
    search(study, 1)
    study.quota.enqueue_next(study.trials())
    search(SharedStudy(study.sweep), 1)
    assert len(study.trials()) == 2
    assert study.trials()[1].params == study.prior.winner


def test_the_confirmed_winner_is_tried_again_and_the_baseline_only_once(make, cold):
    cold.optuna.set_user_attr(CANDIDATES, [{"trial": 7}, {"trial": 3}])
    space = cold.sweep.space
    assert read_prior_sweep(cold.sweep.folder, space).winner == cold.trials()[7].params
    inside = replace(space, baseline=cold.trials()[7].params)
    assert read_prior_sweep(cold.sweep.folder, inside).winner == min(cold.trials(), key=distance).params


@pytest.mark.parametrize("baseline", [BASELINE, dict.fromkeys(NAMES, 0.5), None], ids=["outside", "inside", "none"])
def test_a_dry_run_shows_what_the_sweep_then_proposes(make, cold, baseline):
    earlier, sweep = read_prior_sweep(cold.sweep.folder, cold.sweep.space), make("warm", 6)
    study = begun(replace(sweep, space=replace(sweep.space, baseline=baseline)), earlier)
    claims = [acquire(study, slot, "cpu") for slot in range(6)]
    shown = first_proposals(study.sweep.space, 6, earlier)
    assert shown == [parameters_of(claim.trial) for claim in claims]
    assert earlier.winner == shown[0 if baseline is None else 1]


def test_sweep_of_the_same_seed_does_not_repeat_what_a_short_one_tried_at_random(make, tmp_path):
    short = search(begun(make("cold", 5)), 5)
    assert proposals(search(begun(make("again", 5)), 5)) == proposals(short)
    study = warm(make, short, 5)
    tried = proposals(short)
    assert [params in tried for params in proposals(search(study, 5))] == [True, True, False, False, False]
    assert study.trials()[1].params == study.prior.winner


def test_trial_that_was_stopped_early_says_nothing_about_longer_training(make, cold):
    study = search(warm(make, cold), 1)
    claim = acquire(study, 0, "cpu")
    study.report(claim.trial, 1, 9.0)
    study.tell(claim.trial, TrialState.PRUNED)
    assert study.proposals._shift(study.trials()) == 0


def test_other_images_are_allowed_and_named(make, cold):
    study = warm(make, cold)
    ours = settings(study.sweep, data="others", seed=9, epochs=4)
    assert study.prior.differences(ours) == ["data", "epochs"]
    assert study.prior.differences(settings(study.sweep, seed=9)) == []


def test_server_keeps_what_an_earlier_sweep_found(make, cold, postgres):
    expected = proposals(search(warm(make, cold, 4), 4))
    sweep = replace(make("served", 4), storage=validated_storage(postgres.url))
    informed = search(begun(sweep, read_prior_sweep(cold.sweep.folder, sweep.space)), 4)
    assert noted_prior_sweep(sweep) == informed.prior
    assert proposals(informed) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"x": {"type": "float", "min": 0, "max": 2}}}, "cold differs in parameters"),
        ({"spec": {"metric": "loss"}}, "cold differs in goal"),
        ({"algorithm": "random"}, "random uses no results"),
    ],
)
def test_sweep_of_another_space_is_refused_in_one_sentence(make, cold, changes, message):
    with pytest.raises(ValueError, match=message):
        read_prior_sweep(cold.sweep.folder, make("warm", 4, **changes).space)


def test_sweep_without_a_complete_trial_has_nothing_to_teach(make):
    none = begun(make("none", 3))
    search(none, 1)  # the baseline, outside the space
    with pytest.raises(ValueError, match=r"no trial of .*none is complete and in the space"):
        read_prior_sweep(none.sweep.folder, none.sweep.space)
