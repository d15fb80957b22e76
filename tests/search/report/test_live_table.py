import io
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState
from rich.console import Console

from search.formatting import duration
from search.report import live_table as live
from search.report.live_table import WholeSweep, _Clock, live_view
from search.study.create import create_study
from search.study.queue import acquire
from search.study.trials import parameters_of
from tests.servers.counting_sweep import EPOCHS, make_sweep


def test_durations_read_as_people_say_them():
    said = [duration(seconds) for seconds in (3.6, 59.7, 190, 629, 3580, 7500)]
    assert said == ["4 s", "1 min 0 s", "3 min 10 s", "10 min", "1 h 0 min", "2 h 5 min"]


@pytest.fixture
def study(tmp_path):
    return create_study(make_sweep(tmp_path / "runs/one", 3, pruner="none"), {})


def whole(study, confirm):
    return WholeSweep(study.trials, list, confirm, 1, 1)


def shown(study, terminal, confirm=0):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    claim = acquire(study, 0, "cpu")
    with live_view(study, console, whole(study, confirm)) as show:
        show()
        for epoch in range(1, EPOCHS + 1):
            time.sleep(0.05)
            study.report(claim.trial, epoch, 1 / epoch)
            show()
        study.note(claim.trial, seconds=1800.0)
        study.tell(claim.trial, TrialState.COMPLETE, 1 / EPOCHS)
        claim.release()
        show()
        study.say("a worker died")
        show()
    return console.file.getvalue()


def test_lines_tell_starts_ends_and_notices_and_the_time_left(study):
    lines = shown(study, terminal=False).splitlines()
    assert len(lines) == 2  # the trial that was claimed before is no news
    assert lines[0].startswith("trial 0 completed with 0.2500; 1 done, 0 running, 2 left; best_loss 0.2500 (trial 0)")
    assert lines[0].endswith("about 1 h 0 min left")  # one worker was seen, two trials are left
    assert lines[1] == "note: a worker died"


def test_runs_to_confirm_are_in_the_time_left(study):
    lines = shown(study, terminal=False, confirm=3).splitlines()
    assert lines[0].endswith("about 2 h 30 min left, confirmation included")  # half an hour each


def test_before_a_result_runs_to_confirm_take_as_long_as_trials_that_run(study):
    clock, claim = _Clock(study, whole(study, 3)), acquire(study, 0, "cpu")
    assert clock.time_left() == "time left unknown"
    clock.epochs["trial 0"][0] = (clock.epochs["trial 0"][0][0] - 900.0, 0)  # its first epoch took a quarter of an hour
    study.report(claim.trial, 1, 1.0)
    # Three quarters of an hour for the rest of it, an hour for each of two trials and of three runs.
    assert clock.time_left() == "about 5 h 45 min left, confirmation included"


@pytest.mark.parametrize("has_baseline", [False, True])
def test_time_left_counts_on_costlier_epochs_where_images_grow(tmp_path, monkeypatch, has_baseline):
    sweep = make_sweep(tmp_path / "runs/one", 3, pruner="none")
    study = create_study(sweep if has_baseline else replace(sweep, space=replace(sweep.space, baseline=None)), {})
    now = [0.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock = _Clock(study, WholeSweep(study.trials, list, 1, 1, 1, shares=[0.25, 0.25, 0.5, 1.0]))
    claim = acquire(study, 0, "cpu")
    assert clock.time_left() == "time left unknown"
    now[0] = 900.0  # the first epoch took a quarter of an hour: of an epoch of full size, unless it is the baseline's
    study.report(claim.trial, 1, 1.0)
    # The rest of it, two trials and a run of two epochs of full size each.
    hours = (3 + 3 * 2) / 4 if has_baseline else 1.75 + 3 * 2
    assert clock.time_left() == f"about {duration(3600 * hours)} left, confirmation included"
    for epoch in range(2, EPOCHS + 1):
        study.report(claim.trial, epoch, 1.0)
    study.note(claim.trial, seconds=7200.0)
    study.tell(claim.trial, TrialState.COMPLETE, 1.0)
    claim.release()
    hours = (2 * 2 + 4) / 2 if has_baseline else 3 * 2
    assert clock.time_left() == f"about {duration(3600 * hours)} left, confirmation included"


def test_trial_that_is_taken_over_is_said_to_go_on(study):
    console = Console(file=io.StringIO(), width=160)
    left = acquire(study, 0, "cpu")
    study.report(left.trial, 1, 1.0)
    with live_view(study, console) as show:
        show()
        left.release()
        claims = [acquire(study, slot, "cpu") for slot in range(2)]
        study.report(claims[1].trial, 1, 1.0)  # seen after its first epoch, and begun all the same
        show()
    lines = console.file.getvalue().splitlines()
    assert [line.partition(";")[0] for line in lines] == ["trial 0 goes on after epoch 1", "trial 1 started"]


def test_trial_is_said_to_start_once(study):
    console = Console(file=io.StringIO(), width=160)
    with live_view(study, console) as show:
        study.optuna.ask()  # it runs, and its worker is not noted yet
        show()
        assert acquire(study, 0, "cpu").trial.number == 0
        show()
    assert [line.partition(";")[0] for line in console.file.getvalue().splitlines()] == ["trial 0 started"]


def test_table_guesses_from_the_first_epoch_on(study):
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown(study, terminal=True))
    before, after = text.split("1 of 4", 1)
    assert "first epoch" in before
    assert before.index("time left unknown") < before.index("less than a minute left")
    assert "about 1 h 0 min left" in after


def test_slow_network_is_expected_before_its_first_epoch_has_ended(study):
    clock = _Clock(study, WholeSweep(study.trials, list, 0, 0, 2, cost=lambda parameters: 1e6 + 1e9 * parameters["x"]))
    first = acquire(study, 0, "cpu")
    study.note(first.trial, seconds=EPOCHS * 600.0)
    for epoch in range(1, EPOCHS + 1):
        study.report(first.trial, epoch, 1.0)
    study.tell(first.trial, TrialState.COMPLETE, 1.0)
    first.release()
    claims = [acquire(study, slot, "cpu") for slot in range(2)]
    costs = {trial.number: clock._cost_of(trial) for trial in study.trials()}
    assert costs == {trial.number: 1e6 + 1e9 * parameters_of(trial)["x"] for trial in study.trials()}
    hours = max(0.5 + 0.5 * costs[claim.trial.number] / costs[0] for claim in claims) * EPOCHS / 6
    assert clock.time_left() == f"about {duration(3600 * hours)} left"


def table_of(study, width, **changes):
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    with live_view(study, console, replace(whole(study, 0), **changes)) as show:
        show()
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", console.file.getvalue())


@pytest.mark.parametrize("width", [120, 80, 60])
def test_table_names_the_parameters_of_the_best_trial(tmp_path, width):
    parameters = {"x": {"type": "float", "min": 0, "max": 1}, "y": [1, 2], "z": [0.5, 0.75], "u": [7]}
    study = create_study(make_sweep(tmp_path / "runs/one", 3, parameters=parameters), {})
    assert "best so far" not in table_of(study, width)
    for value in (0.5, 0.3, 0.4):
        claim = acquire(study, 0, "cpu")
        study.report(claim.trial, 1, value)
        study.tell(claim.trial, TrialState.COMPLETE, value)
        claim.release()
    best = study.optuna.best_trial.params
    said = " ".join(table_of(study, width).split())
    assert f"best so far, trial 1: x={best['x']:.3g} y={best['y']} z={best['z']}" in said
    assert "u=7" not in said
    assert "all have ended" in said
    assert "workers are starting" not in said


def test_table_says_what_is_awaited(study):
    assert "workers are starting" in table_of(study, 80)
    claim = acquire(study, 0, "cpu")
    study.tell(claim.trial, TrialState.COMPLETE, 1.0)
    claim.release()
    assert "the next one is starting" in table_of(study, 80)


def test_less_than_a_minute_is_never_none(study):
    for number in range(3):
        claim = acquire(study, 0, "cpu")
        study.note(claim.trial, seconds=EPOCHS * 0.01)
        for epoch in range(1, EPOCHS + 1 if number < 2 else EPOCHS):
            study.report(claim.trial, epoch, 1.0)
        if number < 2:
            study.tell(claim.trial, TrialState.COMPLETE, 1.0)
            claim.release()
    assert _Clock(study, whole(study, 0)).time_left() == "less than a minute left"
    study.tell(claim.trial, TrialState.COMPLETE, 1.0)
    assert _Clock(study, whole(study, 0)).time_left() == "done"


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_written_while_nothing_changes(study, terminal, monkeypatch):
    monkeypatch.setattr(live, "CLOCK_SECONDS", 1e9)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    with live_view(study, console) as show:
        claim = acquire(study, 0, "cpu")
        show()
        written = console.file.getvalue()
        assert "trial 0" in written if not terminal else "0 of 4" in written
        show()
        assert console.file.getvalue() == written
        study.report(claim.trial, 1, 0.5)
        study.tell(claim.trial, TrialState.COMPLETE, 0.5)
        show()
        assert console.file.getvalue() != written
