import sqlite3
from dataclasses import replace

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from search.space.space import Space
from search.study.create import create_study
from search.study.deaths import count_death, give_up, note_last_words
from search.study.queue import acquire
from search.study.shared_study import SharedStudy
from search.study.storage import StorageError
from search.study.sweep import load_study
from search.study.trials import parameters_of
from search.workers.artifacts import remove_weights
from tests.servers.counting_sweep import GRID, make_sweep

GOAL = {"goal": "loss", "epochs": 4}


@pytest.fixture
def study(tmp_path):
    return create_study(make_sweep(tmp_path / "runs/one", 3), GOAL)


def finish(study, claim, value=1.0):
    study.tell(claim.trial, TrialState.COMPLETE, value)
    claim.release()


def test_first_trial_is_the_baseline_though_the_space_lacks_it(study):
    claim = acquire(study, 0, "cpu")
    assert claim.trial.number == 0
    assert claim.trial.params == {}
    assert parameters_of(claim.trial) == {"x": 2.0}


def test_trials_are_read_again_after_any_process_has_written_to_the_study(study):
    claim, other = acquire(study, 0, "cpu"), SharedStudy(study.sweep)
    before = study.trials()
    assert study.trials() is before
    other.report(claim.trial, 1, 0.5)
    assert [trial.intermediate_values for trial in study.trials()] == [{1: 0.5}]
    study.tell(claim.trial, TrialState.COMPLETE, 0.5)  # over a connection of its own
    assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE]


def test_baseline_in_the_space_is_known_to_the_sampler(tmp_path):
    space = {"parameters": {"x": {"type": "float", "min": 0, "max": 3}}}
    claim = acquire(create_study(make_sweep(tmp_path / "runs/one", 3, **space), GOAL), 0, "cpu")
    assert claim.trial.params == {"x": 2.0}


def search_without_a_baseline(folder, num_trials=0, **changes):
    sweep = make_sweep(folder, num_trials, **changes)
    space = replace(sweep.space, baseline=None)
    study = create_study(replace(sweep, space=space, num_trials=num_trials or space.num_trials), GOAL)
    while claim := acquire(study, 0, "cpu"):
        finish(study, claim, (claim.trial.params["x"] - 0.3) ** 2)
    return [trial.params["x"] for trial in study.trials()]


@pytest.mark.parametrize("algorithm", ["bayes", "random"])
def test_without_a_baseline_every_trial_is_proposed(tmp_path, algorithm):
    tried = search_without_a_baseline(tmp_path / "runs/one", 14, algorithm=algorithm)
    assert len(tried) == len(set(tried)) == 14
    assert all(0 <= x <= 1 for x in tried)


def test_without_a_baseline_a_grid_takes_as_many_trials_as_it_has_points(tmp_path):
    tried = search_without_a_baseline(tmp_path / "runs/one", **GRID, spec={"metric": "best_loss"})
    assert sorted(tried) == pytest.approx([n / 7 for n in range(8)])


def test_sweep_that_does_not_say_how_it_began_began_with_the_baseline(study):
    acquire(study, 0, "cpu").release()
    create_study(study.sweep, {**GOAL, "baseline": True})
    with pytest.raises(ValueError, match="baseline was True, is False"):
        create_study(study.sweep, {**GOAL, "baseline": False})


def test_budget_is_spent_exactly_whoever_asks(study):
    other = SharedStudy(study.sweep)
    claims = [acquire((study, other)[turn % 2], turn, "cpu") for turn in range(5)]
    assert [claim.trial.number for claim in claims[:3]] == [0, 1, 2]
    assert claims[3:] == [None, None]
    assert study.num_unfinished() == 3
    for claim in claims[:3]:
        finish(study, claim)
    assert study.num_unfinished() == 0
    assert acquire(study, 0, "cpu") is None


def test_smaller_budget_than_was_spent_leaves_nothing_to_do(study):
    claims = [acquire(study, slot, "cpu") for slot in range(3)]
    finish(study, claims[0])
    claims[1].release()
    claims[2].release()
    smaller = SharedStudy(replace(study.sweep, num_trials=2))
    assert smaller.num_unfinished() == 1
    finish(smaller, acquire(smaller, 0, "cpu"))
    assert smaller.num_unfinished() == 0
    assert acquire(smaller, 0, "cpu") is None  # trial 2 waits for a larger budget
    assert SharedStudy(replace(study.sweep, num_trials=1)).num_unfinished() == 0


def test_trial_that_ends_while_another_worker_looks_is_not_taken_over(study, monkeypatch):
    claim = acquire(study, 0, "cpu")
    stale = study.trials()
    finish(study, claim)
    monkeypatch.setattr("search.study.queue.left_behind", lambda *_: stale)
    assert acquire(study, 0, "cpu").trial.number == 1


def test_death_is_counted_once_for_the_worker_that_held_the_trial(study):
    acquire(study, 0, "cpu").release()
    assert count_death(study, study.owner.process)
    assert not count_death(study, "another")  # its successor died before it took anything


def test_trial_left_behind_is_taken_over_as_it_was(study):
    claim = acquire(study, 0, "cpu")
    finish(study, claim)
    left = acquire(study, 0, "cpu")
    study.report(left.trial, 1, 0.5)
    left.release()  # as the kernel does when a worker dies
    taken = acquire(SharedStudy(study.sweep), 1, "cpu")
    assert taken.trial.number == left.trial.number
    assert taken.trial.params == left.trial.params
    assert taken.trial.intermediate_values == {1: 0.5}


def test_worker_that_proposes_keeps_nobody_waiting(study, monkeypatch):
    other, suggest, taken = SharedStudy(study.sweep), Space.suggest, []
    finish(study, acquire(study, 0, "cpu"))

    def suggest_while_another_asks(space, trial):
        monkeypatch.undo()
        taken.append(acquire(other, 1, "cpu"))
        suggest(space, trial)

    monkeypatch.setattr(Space, "suggest", suggest_while_another_asks)
    assert acquire(study, 0, "cpu").trial.number == 1
    assert taken[0].trial.number == 2  # the one that is being proposed is nobody else's


def test_trial_whose_process_died_before_proposing_gets_its_parameters(study):
    finish(study, acquire(study, 0, "cpu"))
    number = study.optuna.ask().number  # asked, nothing proposed, nobody holds it
    assert study.trials()[number].params == {}
    claim = acquire(study, 0, "cpu")
    assert claim.trial.number == number
    assert 0 <= claim.trial.params["x"] <= 1


def test_proposal_does_not_depend_on_who_asks_when(tmp_path):
    one, other = (create_study(make_sweep(tmp_path / f"runs/{name}", 3), GOAL) for name in "ab")
    first = [acquire(one, 0, "cpu") for _ in range(3)]
    second = [acquire(SharedStudy(other.sweep), slot, "cpu") for slot in range(3)]
    assert [claim.trial.params for claim in first] == [claim.trial.params for claim in second]
    assert first[1].trial.params != first[2].trial.params


def test_three_deaths_in_one_epoch_fail_the_trial_with_the_reason(study):
    for _ in range(3):
        dead = SharedStudy(study.sweep)
        claim = acquire(dead, 0, "cpu")
        note_last_words(dead, claim.trial, "no more memory")
        claim.release()
        for _ in range(2):  # asked again, as where the study was away in between, it counts once
            assert count_death(study, dead.owner.process)
    trial = study.trials()[0]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == "its worker died 3 times in epoch 1 (no more memory)"


def test_deaths_are_counted_though_others_have_gone_on_with_the_trial_by_then(study):
    dead = [SharedStudy(study.sweep) for _ in range(4)]
    for process in dead:
        acquire(process, 0, "cpu").release()
    for process in dead[:3]:
        assert count_death(study, process.owner.process)
    assert study.trials()[0].state == TrialState.FAIL
    assert count_death(study, dead[3].owner.process)
    assert study.trials()[0].user_attrs["deaths"]["count"] == 3


def test_trial_that_is_found_deadly_while_somebody_holds_it_fails_when_it_is_left_behind(study):
    dead = [SharedStudy(study.sweep) for _ in range(4)]
    for process in dead[:3]:
        acquire(process, 0, "cpu").release()
    claim = acquire(dead[3], 0, "cpu")
    for process in dead[:3]:
        count_death(study, process.owner.process)
    assert study.trials()[0].state == TrialState.RUNNING
    claim.release()
    assert acquire(study, 0, "cpu").trial.number == 1
    assert study.trials()[0].user_attrs["reason"] == "its worker died 3 times in epoch 1"


def test_death_after_a_new_epoch_counts_from_one(study):
    for epoch in range(1, 4):
        dead = SharedStudy(study.sweep)
        claim = acquire(dead, 0, "cpu")
        study.report(claim.trial, epoch, 1.0)
        claim.release()
        count_death(study, dead.owner.process)
    assert study.trials()[0].state == TrialState.RUNNING
    assert study.trials()[0].user_attrs["deaths"]["count"] == 1


def test_death_of_a_worker_without_a_trial_says_so(study):
    claim = acquire(study, 0, "cpu")
    assert not count_death(study, "another")
    claim.release()


def test_poor_trial_is_stopped_and_the_last_epoch_never_is(tmp_path):
    study = create_study(make_sweep(tmp_path / "runs/one", 12), GOAL)
    claims = [acquire(study, slot, "cpu") for slot in range(12)]
    good, poor = claims[:6], claims[6:]
    for claim in good:
        for epoch in range(1, 5):
            study.report(claim.trial, epoch, 0.1)
    assert any(study.report(claim.trial, epoch, 9.0) for claim in poor for epoch in range(1, 4))
    assert not any(study.report(claim.trial, 4, 9.0) for claim in poor)


def test_trial_whose_worker_died_with_the_pruners_no_in_hand_is_stopped_all_the_same(tmp_path):
    study = create_study(replace(make_sweep(tmp_path / "runs/one", 6), epochs=9), GOAL)
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    good = [acquire(study, slot, "cpu") for slot in range(4)]
    for claim in good:
        for epoch in range(1, 10):
            study.report(claim.trial, epoch, 0.1)
    poor = acquire(study, 4, "cpu")
    assert study.report(poor.trial, 1, 9.0)
    poor.release()
    again = SharedStudy(study.sweep)
    again.pruner = study.pruner
    claim = acquire(again, 4, "cpu")
    assert claim.trial.number == poor.trial.number
    assert again.report(claim.trial, 1, 9.0)
    assert not again.report(good[0].trial, 9, 0.1)


def test_rung_that_was_passed_is_not_asked_for_again(tmp_path):
    study = create_study(replace(make_sweep(tmp_path / "runs/one", 6), epochs=9), GOAL)
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    claim = acquire(study, 0, "cpu")
    assert not study.report(claim.trial, 1, 0.5)  # the first trial passes its first rung
    assert not study.report(claim.trial, 2, 0.5)
    for slot in range(1, 5):
        study.report(acquire(study, slot, "cpu").trial, 1, 0.1)
    claim.release()
    again = SharedStudy(study.sweep)
    again.pruner = study.pruner
    assert not again.report(acquire(again, 0, "cpu").trial, 2, 0.5)  # others are better by now; it had gone on


def test_study_that_is_unreachable_while_a_trial_is_checked_leaves_it_to_others(study, monkeypatch):
    acquire(study, 0, "cpu").release()
    taker = SharedStudy(replace(study.sweep, patience=0))

    def away(_):
        raise StorageError("away") from OperationalError("", {}, sqlite3.OperationalError("database is locked"))

    monkeypatch.setattr(taker.storage, "get_trial", away)
    with pytest.raises(StorageError, match="away"):
        acquire(taker, 0, "cpu")
    assert study.locks.free(study.trials())


def test_trial_is_given_up_once_nobody_holds_it(study):
    worker = SharedStudy(study.sweep)
    claim = acquire(worker, 0, "cpu")
    assert not give_up(study, claim.trial, worker.owner.process, "stuck")  # its process is not quite dead
    claim.release()
    assert give_up(study, claim.trial, worker.owner.process, "stuck")
    assert study.trials()[0].user_attrs["reason"] == "stuck"


def test_trial_that_somebody_else_took_is_not_given_up(study):
    worker = SharedStudy(study.sweep)
    claim = acquire(worker, 0, "cpu")
    claim.release()
    acquire(SharedStudy(study.sweep), 0, "cpu")
    assert give_up(study, claim.trial, worker.owner.process, "stuck")
    assert study.trials()[0].state == TrialState.RUNNING


def test_machines_that_go_are_held_against_a_trial_late(study):
    for num in range(10):
        assert study.trials()[:1] == [] or study.trials()[0].state == TrialState.RUNNING, num
        dead = SharedStudy(study.sweep)
        acquire(dead, 0, "cpu").release()
        assert count_death(study, dead.owner.process, "", "the Ray node on there")
    assert study.trials()[0].user_attrs["reason"] == "its worker died 10 times in epoch 1"


def test_epoch_reported_before_is_not_decided_again(study):
    claim = acquire(study, 0, "cpu")
    study.report(claim.trial, 2, 0.5)
    claim.release()
    again = acquire(study, 0, "cpu")
    assert not study.report(again.trial, 1, 99.0)
    assert study.trials()[0].intermediate_values == {2: 0.5}


@pytest.mark.parametrize(
    ("name", "kind"), [("median", optuna.pruners.MedianPruner), ("none", optuna.pruners.NopPruner)]
)
def test_other_pruners_can_be_chosen(tmp_path, name, kind):
    study = create_study(replace(make_sweep(tmp_path / "runs/one", 3), pruner=name), GOAL)
    assert isinstance(study.pruner, kind)


def test_facts_of_a_trial_are_written_together_or_not_at_all(study):
    claim = acquire(study, 0, "cpu")
    study.note(claim.trial, seconds=1.0, reason="one")
    with pytest.raises(TypeError):
        study.note(claim.trial, seconds=2.0, reason=object())
    assert study.read_trial(claim.trial).user_attrs.items() >= {"seconds": 1.0, "reason": "one"}.items()


def test_trial_that_has_ended_stays_as_it_is(study):
    claim = acquire(study, 0, "cpu")
    finish(study, claim)
    before = study.read_trial(claim.trial)
    with pytest.raises(UpdateFinishedTrialError):
        study.note(claim.trial, reason="too late")
    assert study.read_trial(claim.trial) == before


def test_weights_of_the_best_are_kept_as_results_come_in(study):
    sweep, removed = replace(study.sweep, keep=1), set()
    weights = [sweep.trial_folder(number) / "model.safetensors" for number in range(3)]
    for number, value in enumerate([2.0, 3.0, 1.0]):
        claim = acquire(study, 0, "cpu")
        weights[number].write_text("weights")
        remove_weights(sweep, study.trials(), removed)
        assert weights[number].exists()  # it is being trained
        finish(study, claim, value)
        remove_weights(sweep, study.trials(), removed)
    assert [path.exists() for path in weights] == [False, False, True]
    assert removed == {0, 1}


def test_other_settings_are_refused_by_name(study):
    assert create_study(study.sweep, {**GOAL, "epochs": 6}).uid()  # nothing was begun
    assert create_study(study.sweep, GOAL)
    acquire(study, 0, "cpu").release()
    complaint = r"holds a sweep with other settings \(epochs was 4, is 5\); give the former settings, or another --name"
    with pytest.raises(ValueError, match=complaint):
        create_study(study.sweep, {**GOAL, "epochs": 5})


def test_what_changed_in_a_setting_of_many_entries_is_named(tmp_path):
    sweep = make_sweep(tmp_path / "runs/one", 3)
    acquire(create_study(sweep, {"parameters": {"x": {"min": 0, "max": 1}, "y": {"min": 0}}}), 0, "cpu").release()
    with pytest.raises(ValueError, match=r"\(parameters.x.max was 1, is 2, parameters.z is new\)"):
        create_study(sweep, {"parameters": {"x": {"min": 0, "max": 2}, "y": {"min": 0}, "z": 3}})


def test_trials_whose_study_is_gone_are_not_adopted_by_a_new_sweep(study):
    (study.sweep.folder / "trials/0000").mkdir(parents=True)
    acquire(create_study(study.sweep, GOAL), 0, "cpu").release()
    (study.sweep.folder / "trials/0000/history.csv").write_text("epoch,loss")
    assert create_study(study.sweep, GOAL)
    for path in study.sweep.folder.glob("study.db*"):
        path.unlink()
    with pytest.raises(ValueError, match="has trials, but their study is gone; put it back, or give another --name"):
        create_study(study.sweep, GOAL)


def test_study_uses_a_write_ahead_log_so_that_readers_never_wait(study):
    with sqlite3.connect(study.sweep.folder / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_study_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/study.db").write_text("no database, though long enough to be looked at as one" * 40)
    with pytest.raises(ValueError, match=r"study.db is damaged .*; put back a copy, or give another --name"):
        create_study(make_sweep(tmp_path / "runs/one", 3), GOAL)


def test_unknown_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no sweep; name one of "):
        load_study(tmp_path / "none")


@pytest.mark.parametrize("algorithm", ["grid", "random"])
def test_whole_sweep_can_be_told_with_every_sampler(tmp_path, algorithm):
    space = {"parameters": {"x": {"type": "discrete", "values": [0.1, 0.2, 0.4]}}, "algorithm": algorithm}
    study = create_study(make_sweep(tmp_path / "runs/one", 4, **space), GOAL)
    while claim := acquire(study, 0, "cpu"):
        finish(study, claim)
    values = [parameters_of(trial)["x"] for trial in study.trials()]
    assert len(values) == 4
    assert algorithm == "random" or sorted(values) == [0.1, 0.2, 0.4, 2.0]
