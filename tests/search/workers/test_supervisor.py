import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from optuna.trial import TrialState

from search.study.sweep import load_study
from search.study.trials import parameters_of
from search.workers.supervisor import sole_owner, worker_slots
from tests.conftest import ROOT
from tests.servers import processes
from tests.servers.counting_sweep import EPOCHS
from tests.servers.processes import is_alive, wait_until

PROGRAM = [sys.executable, str(ROOT / "tests/servers/counting_sweep.py")]


def start(folder, *arguments, **options):
    return processes.start([*PROGRAM, folder, *arguments], **options)


def workers_of(pid):
    """Pids of the worker processes of a sweep."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in listing.stdout.splitlines() if "popen_loky" in line]


def epochs_in(folder):
    """Every epoch that was trained, as (trial, epoch), in order."""
    lines = (folder / "epochs.log").read_text().splitlines()
    return [tuple(map(int, line.split()[:2])) for line in lines]


def assert_exact(folder, num_trials):
    trials = load_study(folder).get_trials()
    assert [trial.number for trial in trials] == list(range(num_trials))
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    for trial in trials:
        assert trial.intermediate_values.keys() == set(range(1, trial.last_step + 1))
        assert trial.state == TrialState.PRUNED or trial.last_step == EPOCHS
    return trials


def test_uninterrupted_sweep_trains_every_epoch_once(tmp_path):
    folder = tmp_path / "runs/plain"
    assert start(folder, "6", "2").wait() == 0
    trials = assert_exact(folder, 6)
    assert max(Counter(epochs_in(folder)).values()) == 1
    assert parameters_of(trials[0]) == {"x": 2.0}
    assert {trial.user_attrs["worker"]["slot"] for trial in trials} == {0, 1}
    assert start(folder, "6", "2").wait() == 0  # nothing left
    assert len(epochs_in(folder)) == sum(trial.last_step for trial in trials)


def test_retaken_trial_keeps_its_seed_and_parameters(tmp_path):
    folder = tmp_path / "runs/retaken"
    process = start(folder, "4", "2")
    wait_until((folder / "epochs.log").exists, process)
    process.kill()
    process.wait()
    assert start(folder, "4", "2").wait() == 0
    told = {}
    for line in (folder / "epochs.log").read_text().splitlines():
        number, _, seed, x, _ = line.split()
        assert told.setdefault(number, (seed, x)) == (seed, x)
    assert len(told) == 4


@pytest.fixture
def troubled(made_once):
    """The trials of a sweep in which 1 kills its worker, for 2 there is no memory, and 3 never ends an epoch."""
    trouble = ("--deadly", "1", "--hungry", "2", "--stuck", "3", "--trial-timeout", "10", "--pruner", "none")

    def make(folder):
        assert start(folder / "runs/troubled", "6", "2", *trouble).wait() == 0

    trials = load_study(made_once("troubled", make) / "runs/troubled").get_trials()
    assert [trial.number for trial in trials if trial.state == TrialState.COMPLETE] == [0, 4, 5]
    return trials


def test_configuration_that_kills_its_worker_is_given_up_and_the_sweep_goes_on(troubled):
    assert troubled[1].state == TrialState.FAIL
    # The other worker may acquire the trial before the third death is counted.
    assert re.match("its worker died [34] times in epoch 1", troubled[1].user_attrs["reason"])


def test_trial_that_finds_no_memory_is_tried_by_new_workers_and_given_up_with_the_reason(troubled):
    reason = r"its worker died [34] times in epoch 1 \(out of memory, 1 GiB wanted\)"
    assert re.fullmatch(reason, troubled[2].user_attrs["reason"])


def test_trial_that_finds_no_memory_beside_others_goes_on_with_fewer_workers_unblamed(tmp_path):
    folder = tmp_path / "runs/crowded"
    assert start(folder, "8", "3", "--crowded", "1", "--waiting", "6", "--pruner", "none").wait() == 0
    trials = assert_exact(folder, 8)
    assert "deaths" not in trials[1].user_attrs
    assert len({trial.user_attrs["worker"]["slot"] for trial in trials}) > 1


@pytest.mark.parametrize("moment", ["as they start", "as they train"])
def test_workers_die_with_their_parent(tmp_path, moment):
    process = start(tmp_path / "runs/orphans", "12", "2")
    workers = wait_until(lambda: len(pids := workers_of(process.pid)) == 2 and pids, process)
    if moment == "as they train":
        wait_until((tmp_path / "runs/orphans/epochs.log").exists, process)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, workers)))


@pytest.mark.parametrize("pauses", [(), (0.04,)], ids=["once", "twice"])
def test_interrupt_ends_the_command_and_its_workers_whatever_it_is_doing(tmp_path, pauses):
    process = start(tmp_path / "runs/interrupted", "200", "4", stderr=subprocess.DEVNULL)
    workers = wait_until(lambda: workers_of(process.pid), process)  # others are just being started
    process.send_signal(signal.SIGINT)
    for pause in pauses:
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert not any(map(is_alive, workers))


def test_worker_that_was_stopped_does_not_outlive_its_parent(tmp_path):
    folder = tmp_path / "runs/left"
    process = start(folder, "3", "2", start_new_session=True)  # else the kernel wakes those that are left
    wait_until((folder / "epochs.log").exists, process)
    os.kill(workers_of(process.pid)[0], signal.SIGSTOP)
    process.kill()
    process.wait()
    assert start(folder, "3", "2").wait() == 0
    assert_exact(folder, 3)


def test_second_command_on_one_sweep_is_refused(tmp_path):
    with sole_owner(tmp_path / "runs/one"):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        code += "from pathlib import Path\nfrom search.workers.supervisor import sole_owner\n"
        code += f"with sole_owner(Path({str(tmp_path / 'runs/one')!r})): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is being swept by another process" in other.stderr


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with (
        pytest.raises(ValueError, match=f"^{tmp_path}/runs is not a folder; move it away$"),
        sole_owner(tmp_path / "runs/one"),
    ):
        pass


def test_workers_are_dealt_onto_devices_and_share_the_cores():
    gpus = worker_slots(["cuda:0", "cuda:1"], 4, 16)
    assert [slot.device for slot in gpus] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert {slot.threads for slot in gpus} == {4}
    assert [slot.threads for slot in worker_slots(["cpu"], 3, 2)] == [1, 1, 1]


def test_worker_that_is_stopped_for_long_is_replaced(tmp_path):
    folder = tmp_path / "runs/stopped"
    process = start(folder, "4", "2", "--stopped", "2", "--pruner", "none")
    wait_until((folder / "epochs.log").exists, process)
    victim = workers_of(process.pid)[0]
    os.kill(victim, signal.SIGSTOP)
    assert process.wait() == 0
    assert not is_alive(victim)  # it cannot come back
    trials = assert_exact(folder, 4)
    assert not any("deaths" in trial.user_attrs for trial in trials)
    assert sum(count - 1 for count in Counter(epochs_in(folder)).values()) <= 1


def test_trial_without_progress_fails_and_the_sweep_goes_on(troubled):
    assert troubled[3].user_attrs["reason"] == "no progress for 10 s in epoch 1 (--trial-timeout)"


def test_weights_of_the_best_are_kept_and_of_nobody_else(tmp_path):
    folder = tmp_path / "runs/kept"
    assert start(folder, "6", "2", "--pruner", "none", "--keep", "2").wait() == 0
    trials = sorted(load_study(folder).get_trials(), key=lambda trial: trial.value)
    kept = {int(path.parent.name) for path in folder.glob("trials/*/model.safetensors")}
    assert kept == {trial.number for trial in trials[:2]}
    assert not list(folder.glob("trials/*/checkpoint*"))
