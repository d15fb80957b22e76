import csv
import errno
import math
import sqlite3

import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from search.study.create import create_study
from search.study.queue import acquire
from search.study.storage import StorageError, first_line
from search.task import TrialContext, WorkerSlot
from search.workers.worker import Part, TrialRun, work
from tests.servers.counting_sweep import make_sweep


@pytest.fixture
def study(tmp_path):
    return create_study(make_sweep(tmp_path / "runs/one", 12), {})


def drive(study, task):
    """Run one trial in this process; return how the study holds it."""
    trial = acquire(study, 0, "cpu").trial
    folder = study.sweep.trial_folder(trial.number)
    checkpoint = folder / "checkpoint.pt"
    checkpoint.write_text("state")
    TrialRun(study, trial, task, TrialContext(trial.number, None, {}, 0, folder, "cpu", checkpoint)).run()
    return study.trials()[trial.number]


def losses(*values):
    return lambda _: ({"loss": value, "seconds": 2.0, "val_accuracy": 1 - value} for value in values)


def test_complete_trial_has_the_best_epochs_value_and_metrics(study):
    trial = drive(study, losses(0.5, 0.2, 0.3))
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.2)
    assert trial.intermediate_values == {1: 0.5, 2: 0.2, 3: 0.2}
    assert trial.user_attrs["metrics"] == {"loss": 0.2, "seconds": 2.0, "val_accuracy": 0.8}
    assert trial.user_attrs["seconds"] == 6.0


def test_epochs_are_written_down_and_the_checkpoint_removed(study):
    drive(study, losses(0.5, 0.25))
    folder = study.sweep.trial_folder(0)
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert [row["loss"] for row in rows] == ["0.5", "0.25"]
    assert not (folder / "checkpoint.pt").exists()


def test_trial_is_stopped_by_not_asking_for_more(study):
    asked = []

    def poor(_):
        asked.clear()
        for epoch in range(1, 5):
            asked.append(epoch)
            yield {"loss": 9.0}

    for _ in range(5):
        drive(study, losses(0.1, 0.1, 0.1, 0.1))
    trial = drive(study, poor)
    assert trial.state == TrialState.PRUNED
    assert asked == [1, 2]  # of four epochs: more than a third
    assert trial.user_attrs["reason"] == "stopped by hyperband after epoch 2"


def test_trial_is_ranked_by_its_best_epoch_so_far(study):
    assert drive(study, losses(0.2, 0.9, 0.1)).intermediate_values == {1: 0.2, 2: 0.2, 3: 0.1}


def test_study_out_of_reach_is_not_the_trials_fault(study, monkeypatch):
    def unreachable(*_):
        raise StorageError("database is locked")

    monkeypatch.setattr(study, "report", unreachable)
    with pytest.raises(StorageError, match="locked"):
        drive(study, losses(0.5))
    assert study.trials()[0].state == TrialState.RUNNING


def test_storage_error_reaches_the_command_in_one_line(study):
    def full(_):
        raise StorageError("an exception was raised") from OperationalError("", {}, sqlite3.Error("disk is full"))

    slot = WorkerSlot(index=0, device="cpu", threads=1)
    with pytest.raises(StorageError, match="disk is full") as raised:
        work([Part(study.sweep, None)], study.owner, full, slot)
    assert raised.value.__cause__ is None  # it does not come along to another process
    assert first_line(raised.value) == "disk is full"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_value_that_is_not_finite_fails_the_trial_with_its_epoch(study, value):
    trial = drive(study, losses(0.5, value))
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == f"diverged in epoch 2: loss is {value}"


def test_mistake_of_a_configuration_is_a_result_not_the_end(study):
    def broken(_):
        yield {"loss": 0.5}
        raise RuntimeError("out of memory\nsecond line")

    trial = drive(study, broken)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == "RuntimeError: out of memory"


ENVIRONMENTS = {
    "a locale": UnicodeDecodeError("ascii", b"\xff", 0, 1, "ordinal not in range"),
    "a library": ImportError("libgomp.so.1: cannot open shared object file"),
    "a missing package": ModuleNotFoundError("No module named 'PIL'", name="PIL"),
    "threads": RuntimeError("can't start new thread"),
    "open files": RuntimeError("unable to open shared memory object: Too many open files (24)"),
    "shared memory": RuntimeError("unable to write to file </torch_1>: No space left on device (28)"),
}


@pytest.mark.parametrize("error", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_fault_of_the_machine_ends_the_worker_and_charges_no_trial(study, error):
    def disturbed(_):
        yield {"loss": 0.5}
        raise error

    with pytest.raises(OSError):
        drive(study, disturbed)
    assert study.trials()[0].state == TrialState.RUNNING
    assert "deaths" not in study.trials()[0].user_attrs


def test_full_disk_is_not_the_trials_fault(study):
    def full(_):
        yield {"loss": 0.5}
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        drive(study, full)
    assert study.trials()[0].state == TrialState.RUNNING
