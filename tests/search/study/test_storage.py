"""A study on a real PostgreSQL server: many machines, a server that goes away, a machine that comes back."""

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy
from optuna.trial import TrialState

from search.study.create import create_study
from search.study.locks import SectionLostError, TrialLostError
from search.study.queue import acquire
from search.study.shared_study import SharedStudy
from search.study.storage import StorageError, noted_storage, validated_storage
from search.study.sweep import load_study
from search.workers.artifacts import Artifacts
from tests.search.analysis.test_confirmation import values_of
from tests.search.workers.test_supervisor import assert_exact, epochs_in, start
from tests.servers.counting_sweep import make_sweep
from tests.servers.processes import wait_until


def server_sweep(postgres, folder, num_trials=3, **changes):
    return replace(make_sweep(folder, num_trials), storage=validated_storage(postgres.url), **changes)


@pytest.fixture
def study(tmp_path):
    return create_study(make_sweep(tmp_path / "runs/file", 3), {})


@pytest.fixture
def opened():
    """Open a study that is closed in the end."""
    studies = []

    def keep(study):
        studies.append(study)
        return study

    yield keep
    for study in studies:
        study.close()


def cut_off(postgres, trial):
    """End the session of whoever holds a trial, as the server does with a machine that has gone without a word."""
    held = f"locktype = 'advisory' AND objid = {trial._trial_id} AND classid = {0x0CA7D063}"
    postgres.ask(f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {held}")


def num_epochs(folder):
    return len(epochs_in(folder)) if (folder / "epochs.log").exists() else 0


def all_epochs(*folders):
    return Counter(epoch for folder in folders for epoch in epochs_in(folder))


@pytest.mark.slow
def test_two_machines_share_a_sweep_and_one_dies_for_good(postgres, tmp_path):
    hosts = [tmp_path / name / "runs/shared" for name in ("one", "two")]
    options = ("60", "4", "--storage", postgres.url, "--pruner", "none")
    one, two = (start(host, *options, start_new_session=True) for host in hosts)
    wait_until(lambda: all(num_epochs(host) > 20 for host in hosts), one)
    os.killpg(one.pid, signal.SIGKILL)
    assert one.wait() == -signal.SIGKILL
    assert two.wait() == 0
    assert_exact(hosts[1], 60)
    # What the dead machine had checkpoints of is trained again from the first epoch: its folder is gone.
    repeated = sum(count - 1 for count in all_epochs(*hosts).values())
    assert repeated <= 4 * 4


@pytest.mark.slow
def test_trial_goes_on_on_another_machine_where_the_first_one_left_it(postgres, tmp_path):
    hosts = [tmp_path / name / "runs/shared" for name in ("one", "two")]
    options = ("12", "2", "--seconds", "0.4", "--storage", postgres.url, "--pruner", "none")
    options = (*options, "--artifacts", tmp_path / "store", "--keep", "3")
    one, two = (start(host, *map(str, options), start_new_session=True) for host in hosts)
    wait_until(lambda: num_epochs(hosts[0]) >= 6, one)
    os.killpg(one.pid, signal.SIGKILL)
    assert one.wait() == -signal.SIGKILL
    assert two.wait() == 0
    assert_exact(hosts[1], 12)
    repeated = sum(count - 1 for count in all_epochs(*hosts).values())
    assert repeated <= 2  # one epoch of each of its workers
    stored = [path.read_text() for path in (tmp_path / "store").iterdir()]
    assert stored.count("weights") == 3
    assert not [content for content in stored if content.startswith("[{")]  # checkpoints


@pytest.mark.slow
def test_server_that_starts_again_interrupts_nothing(postgres, tmp_path):
    folder = tmp_path / "runs/restarted"
    process = start(folder, "10", "3", "--storage", postgres.url, "--pruner", "none", "--seconds", "0.4")
    for number in (4, 16):
        wait_until(lambda: num_epochs(folder) >= number, process)  # noqa: B023
        postgres.stop()
        time.sleep(1)
        postgres.start()
    assert process.wait() == 0
    assert_exact(folder, 10)
    assert max(Counter(epochs_in(folder)).values()) == 1  # whoever held a trial has it back before others may take it


def test_machine_that_was_cut_off_comes_back_and_writes_nothing(postgres, tmp_path, opened):
    sleeper = opened(create_study(server_sweep(postgres, tmp_path / "one/runs/shared"), {}))
    other = opened(SharedStudy(server_sweep(postgres, tmp_path / "two/runs/shared")))
    other.locks.are_settled = lambda: True  # though the server has just been started
    sleeper.locks._ping = lambda: None  # it sleeps
    claim = acquire(sleeper, 0, "cpu")
    sleeper.report(claim.trial, 1, 0.5)
    cut_off(postgres, claim.trial)
    assert acquire(other, 0, "cpu").trial.number == claim.trial.number
    before = other.read_trial(claim.trial)
    for write in (
        lambda: sleeper.report(claim.trial, 2, 0.25),
        sleeper.check,
        lambda: sleeper.note(claim.trial, reason="it is mine"),
        lambda: sleeper.tell(claim.trial, TrialState.COMPLETE, 0.25),
    ):
        with pytest.raises(TrialLostError):
            write()
    assert other.read_trial(claim.trial) == before
    claim.release()
    assert acquire(sleeper, 0, "cpu").trial.number == 1  # it is of use again


def test_connection_that_broke_is_made_again_with_its_locks(postgres, tmp_path, opened):
    study = opened(create_study(server_sweep(postgres, tmp_path / "runs/one"), {}))
    claim = acquire(study, 0, "cpu")
    cut_off(postgres, claim.trial)
    study.report(claim.trial, 1, 0.5)
    assert study.read_trial(claim.trial).intermediate_values == {1: 0.5}
    assert opened(SharedStudy(study.sweep)).locks.free([claim.trial]) == []


def test_connection_that_breaks_while_trials_are_read_is_made_again(postgres, tmp_path, opened):
    study = opened(create_study(server_sweep(postgres, tmp_path / "runs/one"), {}))
    claim = acquire(study, 0, "cpu")
    study.report(claim.trial, 1, 0.5)
    broken = []

    def break_off(_, __, statement, *___):
        if "FROM trial_intermediate_values" in statement and not broken:
            broken.append(statement)
            cut_off(postgres, claim.trial)

    sqlalchemy.event.listen(study.storage.engine, "before_cursor_execute", break_off)
    assert [trial.intermediate_values for trial in study.trials()] == [{1: 0.5}]
    assert broken


def test_server_that_ends_all_sessions_gives_no_trial_away(postgres, tmp_path, opened):
    sweep = server_sweep(postgres, tmp_path / "runs/one")
    holder, other = opened(create_study(sweep, {})), opened(SharedStudy(sweep))
    for study in (holder, other):
        study.locks._ask = as_of_old(study.locks._ask)
    holder.locks._ping = lambda: None  # it trains an epoch
    claim = acquire(holder, 0, "cpu")
    postgres.kill_a_session()
    assert acquire(other, 0, "cpu").trial.number == 1
    holder.report(claim.trial, 1, 0.5)


def as_of_old(ask):
    """Have a server that was started long ago."""
    return lambda question, **values: 1000 if "start_time" in question else ask(question, **values)


def test_files_that_are_out_of_date_here_are_brought_again(study, tmp_path):
    one, two = (Artifacts(str(tmp_path / "store")) for _ in "ab")
    here, there = tmp_path / "here", tmp_path / "there"
    claim = acquire(study, 0, "cpu")
    for store, folder, text in ((one, here, "epoch 2"), (two, there, "epoch 4")):
        folder.mkdir()
        store.fetch(study.read_trial(claim.trial), folder)
        (folder / "model.safetensors").write_text(text)
        store.push(study, claim.trial, folder)
    Artifacts(one.address).fetch(study.read_trial(claim.trial), here)
    assert (here / "model.safetensors").read_text() == "epoch 4"
    (here / "model.safetensors").write_text("epoch 5")  # made here since, and not in the store yet
    Artifacts(one.address).fetch(study.read_trial(claim.trial), here)
    assert (here / "model.safetensors").read_text() == "epoch 5"


def test_process_that_is_frozen_where_it_must_not_be_is_cut_off(postgres, tmp_path, opened, monkeypatch):
    monkeypatch.setattr("search.study.storage.LOCK_SECONDS", 1)
    frozen = opened(create_study(server_sweep(postgres, tmp_path / "runs/one"), {}))
    other = opened(SharedStudy(frozen.sweep))
    with pytest.raises(SectionLostError), frozen.locks.exclusively("claim"):  # noqa: PT012
        assert acquire(other, 0, "cpu").trial.number == 0
        try:
            frozen.locks.check()  # the connection that is gone
        except StorageError:
            frozen.locks.check()  # no new one, while it believes to be alone
    assert acquire(frozen, 0, "cpu").trial.number == 1


def test_processes_that_wait_for_many_quick_ones_cut_nobody_off(postgres, tmp_path, opened, monkeypatch):
    monkeypatch.setattr("search.study.storage.LOCK_SECONDS", 4)
    first = opened(create_study(server_sweep(postgres, tmp_path / "runs/one"), {}))
    studies = [first, *(opened(SharedStudy(first.sweep)) for _ in range(9))]

    def hold(study):
        for _ in range(2):
            with study.locks.exclusively("claim"):  # each waits for nine others, longer than LOCK_SECONDS
                for _ in range(5):
                    time.sleep(0.1)
                    study.locks.check()

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(hold, studies)) == [None] * 10


def test_address_that_nobody_answers_is_not_kept(tmp_path):
    sweep = replace(make_sweep(tmp_path / "runs/one", 3), storage=validated_storage("postgresql://me@127.0.0.1:1/base"))
    with pytest.raises(OSError, match="cannot be opened"):
        create_study(sweep, {})
    assert noted_storage(sweep.folder) == ""


@pytest.mark.parametrize(
    ("account", "reason"),
    [("sweeper", "no password supplied"), ("sweeper:not-the-one", "password authentication failed for user")],
)
def test_password_that_the_server_wants_is_asked_for(postgres, tmp_path, account, reason):
    rules = postgres.data / "pg_hba.conf"
    trust = rules.read_text()
    sweep = make_sweep(tmp_path / "runs/one", 3)
    sweep = replace(sweep, storage=validated_storage(postgres.url.replace("sweeper", account)))
    rules.write_text(f"host all all all scram-sha-256\n{trust}")
    try:
        postgres.ask("SELECT pg_reload_conf()")
        with pytest.raises(OSError, match=rf"\({reason}.*\); write the right one into PGPASSWORD"):
            create_study(sweep, {})
    finally:
        rules.write_text(trust)
        postgres.ask("SELECT pg_reload_conf()")


@pytest.mark.slow
def test_checkpoint_of_a_trial_that_has_ended_leaves_the_store(postgres, tmp_path):
    folder, store = tmp_path / "runs/one", tmp_path / "store"
    options = ("--storage", postgres.url, "--artifacts", str(store), "--stuck", "1", "--trial-timeout", "10")
    assert start(folder, "2", "2", *options).wait() == 0
    assert load_study(folder).get_trials()[1].state == TrialState.FAIL
    assert not [path for path in store.iterdir() if path.read_text().startswith("[{")]


def test_address_is_noted_for_readers_and_for_nobody_else(postgres, tmp_path, opened):
    sweep = server_sweep(postgres, tmp_path / "runs/one")
    opened(create_study(sweep, {"goal": "loss"}))
    assert noted_storage(sweep.folder) == sweep.storage
    assert (sweep.folder / "storage.txt").stat().st_mode & 0o077 == 0
    assert load_study(sweep.folder).user_attrs["settings"] == {"goal": "loss"}


def test_machine_with_other_data_is_refused(postgres, tmp_path, opened):
    opened(create_study(server_sweep(postgres, tmp_path / "one/runs/shared"), {"data": "abc"}))
    with pytest.raises(ValueError, match="data was abc, is xyz"):
        create_study(server_sweep(postgres, tmp_path / "two/runs/shared"), {"data": "xyz"})


@pytest.mark.parametrize("address", ["mysql://me@there/base", "/a/file", "sqlite:///x.db", "nonsense"])
def test_other_storages_are_refused_in_a_sentence(address):
    with pytest.raises(ValueError, match="--storage takes postgresql://USER@HOST/DATABASE"):
        validated_storage(address)


@pytest.mark.slow
def test_two_machines_that_confirm_ahead_make_each_run_once_though_one_is_killed(postgres, tmp_path):
    hosts = [tmp_path / name / "runs/shared" for name in ("one", "two")]
    options = ("7", "2", "--storage", postgres.url, "--pruner", "none", "--confirm", "2", "--lengths", "1,1,1,1,1,8,8")
    machines = {host: start(host, *options, start_new_session=True) for host in hosts}
    while not (confirming := [host for host in hosts if (host / "confirmation.log").exists()]):
        assert all(process.poll() is None for process in machines.values())
        time.sleep(0.05)
    killed = machines.pop(confirming[0])
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    ((host, process),) = machines.items()
    assert process.wait() == 0
    assert_exact(host, 7)
    assert len(values_of(host)) == 4
