import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from optuna.trial import TrialState

from pipeline import stages
from pipeline.cli import main, parse, resume_command
from search.study.create import create_study
from search.study.queue import acquire
from tests.conftest import ROOT
from tests.servers.counting_sweep import make_sweep


def test_password_of_an_address_is_not_said_again(monkeypatch):
    address = "postgresql://me:se/cr:et@host:5432/sweeps?password=secret"
    for storage in (["--storage", address], [f"--stor={address}"]):
        options = [*storage, "--artifacts", "s3://me:secret@host", "--data", "/night:v2@home"]
        monkeypatch.setattr(sys, "orig_argv", ["my env/bin/python", "-u", "run_sweep.py", *options])
        said = resume_command(parse(options))
        assert said == "'my env/bin/python' -u run_sweep.py --artifacts 's3://me:***@host' --data /night:v2@home"
    monkeypatch.setattr(sys, "orig_argv", ["python", "of_another_program.py"])
    assert resume_command(parse(options)) == "python of_another_program.py"


def test_storage_without_a_password_is_named(monkeypatch):
    options = ["--storage", "postgresql://me@host/sweeps"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "run_sweep.py", *options])
    assert resume_command(parse(options)) == "python run_sweep.py --storage postgresql://me@host/sweeps"


def test_dry_run_shows_the_plan_and_its_cost_and_creates_nothing(home, with_baseline, write_space, capsys):
    write_space(parameters={"learning_rate": {"type": "float", "min": 0.001, "max": 0.01}})  # one network: one profile
    assert main([*with_baseline, "--dry-run", "--artifacts", str(home / "store")]) == 0
    said = capsys.readouterr().out
    assert "3 trials of at most 2 epochs, bayes" in said
    assert ": 34 to train (17 cats, 17 dogs), 6 to validate (3 cats, 3 dogs), 8 to test (4 cats, 4 dogs)\n" in said
    assert "2,660,226" in said  # the baseline network at 64 px
    time = r"(\d+ min )?\d+ s"
    parts = rf"\(trials {time}, start and end {time}\)"
    cost = rf"expected: about {time} on this worker {parts}; peak memory about \d\.\d GB"
    assert re.search(cost, said)
    assert not list(home.iterdir())


BAD = {
    "missing config": (["none.json"], "none.json: cannot be read"),
    "missing data": (["--data", "/nowhere"], "data folder /nowhere does not exist"),
    "image too small": (["--image-size", "32"], "body_repeats 4 needs an image_size of at least 64, and not 32"),
    "unknown device": (["--devices", "cuda:77"], "unknown device 'cuda:77'; this machine has cpu"),
    "artifacts in a file": (["--artifacts", "/etc/passwd/here"], "/etc/passwd is not a writable folder"),
    "neither number nor auto": (["--workers-per-device", "some"], "'some' is not auto or a whole number of at least 1"),
    "no budget": (["--trials", "0"], "argument --trials: '0' is not a whole number of at least 1"),
    "no number": (["--epochs", "many"], "argument --epochs: 'many' is not a whole number of at least 1"),
    "address without Ray": (["--ray-address", "head"], "--ray-address is for --backend ray; give both or neither"),
    "workers per CPU": (
        ["--workers-per-device", "2", "--devices", "cpu"],
        "with a number is for GPUs; for the CPU give --workers",
    ),
    "workers twice": (["--workers-per-device", "auto"], "auto finds the number of workers; leave out --workers"),
    "unknown option": (["--gpu"], "unrecognized arguments: --gpu; --help lists the options"),
    "warm start from nothing": (["--warm-start", "none"], "--warm-start: runs/none holds no sweep; name one of runs/"),
    "warm start from itself": (["--warm-start", "small"], "--warm-start small is this sweep itself; name another one"),
    "warm start elsewhere": (["--warm-start", "../x"], "--warm-start is '../x'; give the name of another sweep"),
    "name with a slash": (["--name", "../up"], "--name is '../up'; use letters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_creates_nothing(home, small, capsys, case):
    arguments, message = BAD[case]
    config = [] if arguments[0].endswith(".json") else small[:1]
    try:
        status = main([*config, *small[1:], *arguments])
    except SystemExit as error:
        status = error.code
    complained = capsys.readouterr().err
    assert status == 2
    assert message in complained
    assert complained.count("\n") == 1
    assert not list(home.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_that_comes_within_a_finalizer_is_not_lost(home, small, capsys, monkeypatch, number):
    class Interrupted:
        def __del__(self):
            signal.raise_signal(number)

    @contextmanager
    def view(*_):
        yield Interrupted  # made, and deleted, each time the view is to move

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: dropped.append(error.exc_type))
    monkeypatch.setattr(stages, "live_view", view)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main([*small, "--trials", "1"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted. Progress is saved" in capsys.readouterr().err
    assert dropped == [KeyboardInterrupt]


@pytest.mark.parametrize("seconds", ["0.01", "0.1"])
def test_timeout_that_the_start_uses_up_is_to_be_longer(home, small, capsys, seconds):
    assert main([*small, "--timeout", seconds]) == 130
    complained = capsys.readouterr().err
    assert f"--timeout {seconds} s is over before an epoch has ended: the start alone took about 0 s" in complained
    assert "give a longer --timeout\n" in complained
    assert "Resume with" not in complained


def test_ray_that_is_not_installed_is_one_sentence(home, small, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "search.workers.ray_backend", raising=False)
    assert main([*small, "--backend", "ray"]) == 2
    assert "--backend ray needs Ray; pip install 'ray>=2.50' (extra cluster)" in capsys.readouterr().err
    assert not list(home.iterdir())


def test_best_model_that_cannot_be_written_is_refused_before_the_sweep(home, small, capsys):
    (home / "best_model").write_text("a file")
    assert main(small) == 2
    assert "best_model is not a folder; move it away" in capsys.readouterr().err
    assert not (home / "runs/small/study.db").exists()


def test_empty_and_one_class_and_broken_folders_are_refused(home, small, photographs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for path in photographs.rglob("dogs/*.jpg"):
        path.unlink()
    for folder, message in ((tmp_path / "empty", "holds no images"), (photographs, "show no dog")):
        assert main([*small, "--data", str(folder)]) == 2
        assert message in capsys.readouterr().err
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda home: (home / "runs").write_text("a file"), "runs is not a folder; move it away"),
        (lambda home: (home / "runs").symlink_to("nowhere"), "runs is not a folder; move it away"),
        (
            lambda home: (home / "runs/small/study.db").mkdir(parents=True),
            "runs/small/study.db is a folder; move it away, or use another name for the sweep",
        ),
    ],
)
def test_what_stands_where_a_sweep_writes_is_to_be_moved_away(home, small, capsys, make, answer):
    make(home)
    assert main(small) == 2
    assert capsys.readouterr().err == f"run_sweep.py: {answer}\n"


AS_USER = [] if os.getuid() else ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
COMMANDS = """import sys
from pathlib import Path
from types import SimpleNamespace
from pipeline.cli import _hint, parse
from search.report.__main__ import main
from search.workers.supervisor import sole_owner
folder = Path("runs/one")
try:
    with sole_owner(folder):
        pass
except ValueError as error:
    print(f"{error}{_hint(parse([]), SimpleNamespace(sweep=SimpleNamespace(folder=folder)))}")
sys.argv = ["report", "one"]
main()"""


def test_run_that_cannot_be_written_is_ranked_and_no_command_is_said_to_resume_it(tmp_path):
    folder = tmp_path / "runs/one"
    study = create_study(make_sweep(folder, 3), {"goal": {"metric": "best_loss", "direction": "minimize"}})
    claim = acquire(study, 0, "cpu")
    study.report(claim.trial, 1, 0.5)
    study.tell(claim.trial, TrialState.COMPLETE, 0.5)
    claim.release()
    study.close()
    folder.chmod(0o555)
    command, environment = [*AS_USER, sys.executable, "-c", COMMANDS], {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    folder.chmod(0o755)
    remedy = "make it writable, or run from a folder that can be written: runs/ belongs to the current directory"
    assert ended.stdout.startswith(f"runs/one cannot be written (Permission denied); {remedy}\n"), ended.stderr
    assert "1       0   complete" in ended.stdout
    assert ended.stderr == "runs/one cannot be written, so there is no new report; make it writable\n"
