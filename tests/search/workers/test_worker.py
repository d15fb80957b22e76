import csv
import errno
import math
import sqlite3

import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from search.study.create import create_ledger
from search.study.storage import LedgerError, first_line
from search.workers.worker import Part, Place, Task, run_trial, work
from tests.servers.counting_sweep import make_sweep


@pytest.fixture
def ledger(tmp_path):
    return create_ledger(make_sweep(tmp_path / "runs/one", 12), {})


def drive(ledger, objective):
    """Run one trial in this process; return how the ledger holds it."""
    trial = ledger.take(0, "cpu").trial
    folder = ledger.sweep.trial_folder(trial.number)
    checkpoint = folder / "checkpoint.pt"
    checkpoint.write_text("state")
    run_trial(ledger, trial, objective, Task(trial.number, None, {}, 0, folder, "cpu", checkpoint))
    return ledger.trials()[trial.number]


def losses(*values):
    return lambda _: ({"loss": value, "seconds": 2.0, "val_accuracy": 1 - value} for value in values)


def test_complete_trial_has_the_best_epochs_value_and_metrics(ledger):
    trial = drive(ledger, losses(0.5, 0.2, 0.3))
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.2)
    assert trial.intermediate_values == {1: 0.5, 2: 0.2, 3: 0.2}
    assert trial.user_attrs["metrics"] == {"loss": 0.2, "seconds": 2.0, "val_accuracy": 0.8}
    assert trial.user_attrs["seconds"] == 6.0


def test_epochs_are_written_down_and_the_checkpoint_removed(ledger):
    drive(ledger, losses(0.5, 0.25))
    folder = ledger.sweep.trial_folder(0)
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert [row["loss"] for row in rows] == ["0.5", "0.25"]
    assert not (folder / "checkpoint.pt").exists()


def test_trial_is_stopped_by_not_asking_for_more(ledger):
    asked = []

    def poor(_):
        asked.clear()
        for epoch in range(1, 5):
            asked.append(epoch)
            yield {"loss": 9.0}

    for _ in range(5):
        drive(ledger, losses(0.1, 0.1, 0.1, 0.1))
    trial = drive(ledger, poor)
    assert trial.state == TrialState.PRUNED
    assert asked == [1, 2]  # of four epochs: more than a third
    assert trial.user_attrs["reason"] == "stopped by hyperband after epoch 2"


def test_trial_is_judged_by_its_best_epoch_so_far(ledger):
    assert drive(ledger, losses(0.2, 0.9, 0.1)).intermediate_values == {1: 0.2, 2: 0.2, 3: 0.1}


def test_ledger_out_of_reach_is_not_the_trials_fault(ledger, monkeypatch):
    def unreachable(*_):
        raise LedgerError("database is locked")

    monkeypatch.setattr(ledger, "report", unreachable)
    with pytest.raises(LedgerError, match="locked"):
        drive(ledger, losses(0.5))
    assert ledger.trials()[0].state == TrialState.RUNNING


def test_what_the_ledger_says_is_said_in_the_workers_own_words(ledger):
    def full(_):
        raise LedgerError("an exception was raised") from OperationalError("", {}, sqlite3.Error("disk is full"))

    place = Place(slot=0, device="cpu", threads=1)
    with pytest.raises(LedgerError, match="disk is full") as raised:
        work([Part(ledger.sweep, None)], ledger.owner, full, place)
    assert raised.value.__cause__ is None  # it does not come along to another process
    assert first_line(raised.value) == "(sqlite3.Error) disk is full"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_value_that_is_not_finite_fails_the_trial_with_its_epoch(ledger, value):
    trial = drive(ledger, losses(0.5, value))
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == f"diverged in epoch 2: loss is {value}"


def test_mistake_of_a_configuration_is_a_result_not_the_end(ledger):
    def broken(_):
        yield {"loss": 0.5}
        raise RuntimeError("out of memory\nsecond line")

    trial = drive(ledger, broken)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == "RuntimeError: out of memory"


def test_full_disk_is_not_the_trials_fault(ledger):
    def full(_):
        yield {"loss": 0.5}
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        drive(ledger, full)
    assert ledger.trials()[0].state == TrialState.RUNNING
