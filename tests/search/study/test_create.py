"""A run is found whatever its folder is called, and a folder that holds something else is never written to."""

import hashlib
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import NullPool

from search.report.__main__ import main as report
from search.space.space import Goal
from search.study.create import create_study, load_begun_study
from search.study.queue import acquire
from search.study.shared_study import SharedStudy
from search.study.storage import noted_study, validated_storage
from search.study.sweep import find_sweep, load_confirmation, load_study
from search.study.warm_start import PriorSweep
from tests.servers.counting_sweep import begin_confirmation, make_sweep

SETTINGS = {"goal": vars(Goal("best_loss", "minimize")), "epochs": 4}


def hashes(folder):
    """Content of all files below a folder, by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def complete(study, num):
    """Complete trials, with files as training leaves them."""
    for _ in range(num):
        claim = acquire(study, 0, "cpu")
        folder = study.sweep.trial_folder(claim.trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history.csv").write_text("epoch,loss\n1,0.5\n")
        study.report(claim.trial, 1, 0.5)
        study.note(claim.trial, seconds=1.0)
        study.tell(claim.trial, TrialState.COMPLETE, 0.5 + claim.trial.number)
        claim.release()


def make_run(folder, num=3):
    """A sweep of 3 trials of which some are complete, and its confirmation if it has ended."""
    study = create_study(make_sweep(folder, 3), SETTINGS)
    complete(study, num)
    if num == 3:
        complete(begin_confirmation(study, 1, 2), 2)
    with closing(sqlite3.connect(folder / "study.db")) as source, closing(sqlite3.connect(folder / "copy")) as copy:
        source.backup(copy)
    for path in folder.glob("study.db*"):  # this process has connections to it
        path.unlink()
    (folder / "copy").rename(folder / "study.db")


@pytest.fixture
def run(made_once, tmp_path):
    """Copy a closed run, of 3 trials or interrupted after fewer, to a path in the test's folder."""

    def copy(place, num=3):
        made = made_once(f"run of {num} trials", lambda folder: make_run(folder / "runs/long", num))
        return shutil.copytree(made / "runs/long", tmp_path / place)

    return copy


@pytest.fixture
def long(run):
    return run("runs/long")


def resume(folder, num_trials=3):
    """Open the sweep in `folder` as a command with its name does."""
    return create_study(replace(make_sweep(folder, 3), num_trials=num_trials), SETTINGS)


PLACES = ["runs/renamed", "runs/long copy, of Mönday", "elsewhere/long", "elsewhere/runs/other.v2"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("transfer", [shutil.move, shutil.copytree], ids=["moved", "copied"])
def test_run_is_the_same_under_another_name_and_goes_on_there(long, tmp_path, monkeypatch, capsys, place, transfer):
    trials, runs, before = load_study(long).get_trials(), load_confirmation(long).get_trials(), hashes(long)
    folder = tmp_path / place
    folder.parent.mkdir(parents=True, exist_ok=True)
    transfer(long, folder)
    assert load_study(folder).get_trials() == trials
    assert load_confirmation(folder).get_trials() == runs
    study = resume(folder, 5)
    assert study.uid() == load_study(folder).user_attrs["uid"]
    complete(study, 2)
    confirmed = begin_confirmation(study, 1, 2)
    assert (acquire(study, 0, "cpu"), acquire(confirmed, 0, "cpu")) == (None, None)
    after = hashes(folder)
    ours = [name for name in before if name.startswith(("trials", "confirmation")) and not name.endswith("lock")]
    assert len(ours) == 5
    assert [name for name in ours if after[name] != before[name]] == []
    if transfer is shutil.copytree:
        assert hashes(long) == before
    monkeypatch.setattr("sys.argv", ["report", str(folder)])
    report()
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out.replace("\n", "")


def test_interrupted_run_goes_on_in_its_copy_alone(run, tmp_path):
    long = run("runs/long", num=2)
    before = hashes(long)
    copy = shutil.copytree(long, tmp_path / "runs/copy")
    study = resume(copy)
    complete(study, 1)
    assert acquire(study, 0, "cpu") is None
    assert len(load_study(long).get_trials()) == 2
    assert hashes(long) == before


def test_workers_find_the_study_of_a_renamed_run(long):
    sweep = resume(long.rename(long.with_name("renamed"))).sweep
    assert len(SharedStudy(sweep).trials()) == 3
    assert len(SharedStudy(replace(sweep, part="confirmation", num_confirmed=1)).search.get_trials()) == 3


def foreign_optuna_file(*names, trials=1):
    def make(folder, _):
        folder.joinpath("study.db").unlink(missing_ok=True)
        for name in names:
            storage = RDBStorage(f"sqlite:///{folder / 'study.db'}", engine_kwargs={"poolclass": NullPool})
            study = optuna.create_study(storage=storage, study_name=name)
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)

    return make


def without_last_trial(folder, _):
    with closing(sqlite3.connect(folder / "study.db")) as connection:
        connection.execute("DELETE FROM trials WHERE number = 2 AND study_id = 1")
        connection.commit()


def database_of_another_program(folder, _):
    with closing(sqlite3.connect(folder / "study.db")) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
        connection.commit()


def two_sweeps_in_one_file(folder):
    address = f"sqlite:///{folder / 'study.db'}"
    optuna.copy_study(from_study_name="long", from_storage=address, to_storage=address, to_study_name="second")


SPOILED = {  # what happened to the folder of a run; what is said
    "study removed": (
        lambda folder, _: (folder / "study.db").unlink(),
        "long has trials, but their study is gone; put",
    ),
    "study emptied": (
        lambda folder, _: (folder / "study.db").write_bytes(b""),
        "long has trials, but their study is g",
    ),
    "study cut off": (
        lambda folder, _: cut(folder / "study.db", 9000),
        "study.db is damaged (database disk image is m",
    ),
    "first page left": (
        lambda folder, _: cut(folder / "study.db", 4096),
        "study.db is damaged (database disk image is",
    ),
    "study of text": (
        lambda folder, _: (folder / "study.db").write_text("x" * 5000),
        "study.db is damaged (file is not",
    ),
    "older copy put back": (
        without_last_trial,
        "long/trials/0002 is none of the 2 trials in its study; put back the",
    ),
    "Optuna's, another": (foreign_optuna_file("mine"), "study.db holds the studies of another program (mine); move it"),
    "Optuna's, same name": (foreign_optuna_file("long"), "study.db holds the studies of another program (long); move"),
    "Optuna's, several": (foreign_optuna_file("a", "b"), "study.db holds the studies of another program (a, b); move"),
    "Optuna's, empty": (foreign_optuna_file("long", trials=0), "long has trials, but their study is gone; put it back"),
    "of another program": (
        lambda f, t: (cut(f / "study.db", 0), database_of_another_program(f, t)),
        "study.db is a datab",
    ),
}


def cut(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


@pytest.mark.parametrize("case", SPOILED)
def test_files_that_are_not_the_studys_are_never_touched(long, tmp_path, monkeypatch, capsys, case):
    spoil, message = SPOILED[case]
    spoil(long, tmp_path)
    before = hashes(long)
    for attempt in (lambda: resume(long), lambda: load_begun_study(make_sweep(long, 3))):
        with pytest.raises(ValueError) as refusal:
            attempt()
        assert message in str(refusal.value)
        assert "; " in str(refusal.value)  # the way out
        assert hashes(long) == before
    if case != "older copy put back":  # that can be reported
        monkeypatch.setattr("sys.argv", ["report", str(long)])
        with pytest.raises(SystemExit, match="2"):
            report()
        assert capsys.readouterr().err.count("\n") == 1
        assert hashes(long) == before


@pytest.mark.parametrize("names", [["thesis.tex"], ["events.out.tfevents", "weights/best.pt"], ["sweep.json"]])
def test_folder_of_something_else_is_not_made_a_run(tmp_path, names):
    for name in names:
        (tmp_path / "runs/mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/mine" / name).write_text("precious")
    before = hashes(tmp_path / "runs/mine")
    with pytest.raises(
        ValueError, match=r"mine is no sweep's folder: it holds .*; move it away, or give another --name"
    ):
        resume(tmp_path / "runs/mine")
    assert hashes(tmp_path / "runs/mine") == before


def test_study_among_two_sweeps_is_that_of_the_folders_name(long):
    two_sweeps_in_one_file(long)
    assert load_study(long).study_name == "long"
    renamed = long.rename(long.with_name("neither"))
    with pytest.raises(
        ValueError, match=r"study.db holds several sweeps \(long, second\); move it away, or use another"
    ):
        load_study(renamed)


@pytest.mark.parametrize("left", [{}, {"study.db": b""}, {"sweep.lock": b"", "claim.lock": b"", ".DS_Store": b"x"}])
def test_what_a_command_left_that_was_killed_at_once_is_begun_again(tmp_path, left):
    (tmp_path / "runs/long").mkdir(parents=True)
    for name, content in left.items():
        (tmp_path / "runs/long" / name).write_bytes(content)
    assert acquire(resume(tmp_path / "runs/long"), 0, "cpu").trial.number == 0


@pytest.mark.parametrize("name", ["long", "runs/long", "runs/long/", "./runs/../runs/long", "{home}/runs/long"])
def test_sweep_is_named_by_its_name_or_its_path(long, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_sweep(name.format(home=tmp_path)).samefile(long)


def test_path_never_leads_to_another_sweep_of_that_name(long, run, tmp_path, monkeypatch):
    other = run("elsewhere/runs/long", num=2)
    monkeypatch.chdir(tmp_path)
    assert find_sweep("elsewhere/runs/long").samefile(other)
    monkeypatch.chdir(other)
    assert find_sweep(".") == other
    assert find_sweep("../long").samefile(other)
    with pytest.raises(
        ValueError, match=r"nowhere/runs/long holds no sweep; name one of nowhere/runs/ in .*\(none: runs/"
    ):
        find_sweep("nowhere/runs/long")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lnog", r"runs/lnog holds no sweep; name one of runs/ in {home}; did you mean long\?"),
        ("runs/lon", r"runs/lon holds no sweep; name one of runs/ in {home}; did you mean long\?"),
        ("quick", r"runs/quick holds no sweep; name one of runs/ in {home} \(long\)"),
        ("{home}/runs/longer", r"{home}/runs/longer holds no sweep; name one of {home}/runs/; did you mean long\?"),
    ],
)
def test_unknown_sweep_is_answered_with_the_place_and_those_that_are_there(long, tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=hint.format(home=tmp_path)):
        find_sweep(name.format(home=tmp_path))


@pytest.mark.parametrize(
    ("directory", "name", "hint"),
    [
        (".", "runs/long/trials", r"^runs/long/trials is inside the sweep runs/long; name that$"),
        (".", "{home}/runs/long/trials/0000", r"^{home}/.*/0000 is inside the sweep {home}/runs/long; name that$"),
        ("runs/long/trials", ".", r"^\. is inside the sweep {home}/runs/long; name that$"),
        ("runs/long", "trials", r"^trials is inside the sweep {home}/runs/long; name that$"),
        (".", ".", r"^\. holds no sweep; name one of runs/ in {home} \(long\)$"),
        ("runs", ".", r"^\. holds no sweep; name one of \./ in {home}/runs \(long\)$"),
        (".", "runs", r"^runs holds no sweep; name one of runs/ in {home} \(long\)$"),
        (".", "", r"^no sweep is named; name one of runs/ in {home} \(long\)$"),
        (".", " ", r"^no sweep is named; "),
        (".", "/etc", r"^/etc holds no sweep; name one of runs/ in {home} \(long\)$"),
        (".", "/", r"^/ holds no sweep; name one of runs/ in {home} \(long\)$"),
        ("runs", "/etc", r"^/etc holds no sweep; name one of runs/ in {home}/runs \(none: runs/ belongs"),
    ],
)
def test_folder_near_a_sweep_is_answered_with_that_sweep(long, tmp_path, monkeypatch, directory, name, hint):
    (long / "trials/0000").mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / directory)
    with pytest.raises(ValueError, match=hint.format(home=tmp_path)):
        find_sweep(name.format(home=tmp_path))


@pytest.fixture
def shared(postgres, tmp_path):
    """A sweep on a server; call it with a folder's name to resume the sweep there."""
    studies = []

    def open_in(name):
        sweep = replace(make_sweep(tmp_path / "runs" / name, 3), storage=validated_storage(postgres.url))
        studies.append(create_study(sweep, SETTINGS))
        return studies[-1]

    complete(open_in("long"), 2)
    yield open_in
    for study in studies:
        study.close()


def test_renamed_run_keeps_its_study_on_a_server(shared, tmp_path):
    renamed = (tmp_path / "runs/long").rename(tmp_path / "runs/renamed")
    assert len(load_study(renamed).get_trials()) == 2
    study = shared("renamed")
    complete(study, 1)
    runs = begin_confirmation(study, 1, 1)
    assert len(runs.trials()) == 1
    runs.close()
    assert study.optuna.study_name == "long"
    assert len(load_confirmation(renamed).get_trials()) == 1


def test_copy_of_a_run_on_a_server_is_no_second_sweep(shared, tmp_path):
    copy = shutil.copytree(tmp_path / "runs/long", tmp_path / "runs/copy")
    before = hashes(copy)
    with pytest.raises(ValueError, match=r"copy and .*long have the same study on the server; resume .*long, or give"):
        shared("copy")
    assert hashes(copy) == before
    complete(shared("long"), 1)


def test_study_that_was_made_anew_on_its_server_is_not_mixed_with_the_former(shared, tmp_path):
    study = shared("long")
    url, (name, _) = study.sweep.storage, noted_study(study.sweep.folder)
    study.optuna._storage.delete_study(study.optuna._study_id)
    before = hashes(tmp_path / "runs/long")
    with pytest.raises(ValueError, match="has trials, but their study is gone; put it back, or give another --name"):
        shared("long")
    anew = create_study(replace(make_sweep(tmp_path / "other/long", 9), storage=url), SETTINGS)
    complete(anew, 4)
    anew.close()
    with pytest.raises(ValueError, match="the study long on the server was made anew, and is not that of"):
        shared("long")
    assert (name, hashes(tmp_path / "runs/long")) == ("long", before)


def test_prior_sweep_is_known_under_its_new_name(run, tmp_path):
    renamed = run("runs/renamed")
    prior = PriorSweep("long", {}, {}, [], 3, load_study(renamed).user_attrs["uid"])
    other = replace(prior, uid="of another sweep")
    old = replace(prior, uid="")  # noted by an earlier version
    folders = (renamed, tmp_path / "runs/long", tmp_path / "runs/none")
    assert [prior.is_that_of(folder) for folder in folders] == [True, True, False]
    assert [other.is_that_of(renamed), old.is_that_of(renamed)] == [False, False]
