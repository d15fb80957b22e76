import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from catdog.checkpoint import load_model, save_model
from catdog.data.dataset import load_data
from catdog.evaluate import evaluate
from pipeline import cli
from search.study.sweep import CHOSEN, load_confirmation, load_study
from search.study.trials import counted
from search.task import OutOfMemoryError, ProcessLostError, TrialContext
from search.workers.supervisor import WorkerPool
from tests.conftest import ROOT
from tests.servers import processes
from tests.servers.processes import wait_until


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder to run in, with SIGTERM as it was afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    yield tmp_path / "home"
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def with_baseline(write_space, photographs):
    """Arguments of a sweep whose first trial is the README network."""
    options = ["--image-size", "64", "--epochs", "2", "--name", "small", "--tracking", "off", "--confirm", "0"]
    return [str(write_space()), "--data", str(photographs), "--workers", "1", *options]


@pytest.fixture
def small(with_baseline):
    """Arguments of a sweep of a few seconds."""
    return [*with_baseline, "--no-baseline"]


def start(arguments, cwd="."):
    return processes.start(
        [sys.executable, ROOT / "run_sweep.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


def finish(arguments, cwd="."):
    process = start(arguments, cwd)
    said, complained = process.communicate()
    return process.returncode, said, complained


def states():
    return [trial.state for trial in load_study(Path("runs/small")).get_trials()]


def wait_for_an_epoch(process, home):
    wait_until(lambda: list(home.glob("runs/small/trials/*/checkpoint.pt")), process)


def test_sweep_ranks_and_promotes_and_does_nothing_twice(home, with_baseline, photographs):
    confirmed = [*with_baseline, "--workers", "2", "--confirm", "1", "--confirm-seeds", "2"]
    status, said, complained = finish(confirmed)
    assert (status, complained) == (0, "")
    assert "test accuracy" in said
    assert "report: runs/small/report.html" in said
    study = load_confirmation(Path("runs/small"))
    runs = counted(study.get_trials(), study.user_attrs[CHOSEN])
    assert len(runs) == 2
    rows = list(csv.DictReader((home / "runs/small/ranking.csv").read_text().splitlines()))
    assert sorted(row["trial"] for row in rows) == ["0", "1", "2"]
    assert next(row for row in rows if row["trial"] == "0")["body_width"] == "512"
    champion = home / "best_model/model.safetensors"
    model, header = load_model(champion)
    assert header["metrics"]["test"]["pictures"] == 8
    assert header["provenance"]["trial"] == int(rows[0]["trial"])
    assert header["provenance"]["confirmation"] in [run.number for run in runs]
    assert {"run", "trial", "parameters", "seeds", "data", "versions", "commit", "time"} <= set(header["provenance"])
    before = champion.stat()
    status, said, _ = finish([*confirmed, "--trials", "2"])
    assert status == 0
    assert "note: small has 3 trials already, more than the 2 asked for" in said
    assert "nothing left to search: all 3 trials of small have ended" in said
    assert "judged on" in said
    assert champion.stat().st_mtime_ns == before.st_mtime_ns
    assert not list(home.glob("best_model/history/*"))
    picture = next(photographs.rglob("test_set/cats/*.jpg"))
    predicted = subprocess.run(
        [sys.executable, "-m", "catdog.predict", str(picture), "--model", str(champion)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.search(r": (cat|dog)  \(cat \d+\.\d%  dog \d+\.\d%\)", predicted.stdout)
    assert model.config.image_size == 64


def test_smaller_sweep_is_extended_but_not_under_other_settings(home, small, photographs, capsys):
    assert cli.main([*small, "--trials", "1"]) == 0
    capsys.readouterr()
    assert cli.main([*small, "--trials", "1", "--epochs", "3"]) == 2
    assert "other settings (epochs was 2, is 3); give another --name" in capsys.readouterr().err
    assert cli.main([*small, "--trials", "1", "--epochs", "3", "--dry-run"]) == 2
    assert "other settings (epochs was 2, is 3); give another --name" in capsys.readouterr().err
    assert cli.main(["small"]) == 2
    assert "small is a sweep, no search space; give its command again, with --name small" in capsys.readouterr().err
    assert cli.main([*small, "--trials", "1", "--dry-run"]) == 0
    assert "note: small was begun before and 1 trial of it ended; this is about" in capsys.readouterr().out
    champion_of_another_sweep_is_named_and_kept(home, [*small, "--trials", "1"], capsys)
    assert cli.main([*small, "--trials", "2"]) == 0
    assert "going on with small: 1 of 2 trials ended before" in capsys.readouterr().out
    assert len(states()) == 2
    for number in range(2):
        assert_weights_are_of_the_best_epoch(home / f"runs/small/trials/{number:04}", photographs)
    assert cli.main([*small, "--trials", "2", "--keep", "1"]) == 0
    assert "note: --keep 1 removes the weights of 1 trial" in capsys.readouterr().out
    assert len(list(home.glob("runs/small/trials/*/model.safetensors"))) == 1


@pytest.mark.slow
def test_sweep_without_the_readme_network(home, small, with_baseline, capsys):
    assert cli.main(small) == 0
    said, trials = capsys.readouterr().out, load_study(Path("runs/small")).get_trials()
    assert "README baseline" not in said
    assert "note: the README network is no trial of this sweep (--no-baseline)" in said
    assert [trial.params["body_width"] in (4, 8) for trial in trials] == [True] * 3
    assert cli.main(with_baseline) == 2
    assert "other settings (baseline was False, is True); give another --name" in capsys.readouterr().err
    warm = ["--name", "next", "--warm-start", "small", "--trials", "1"]
    assert cli.main([*small, *warm]) == 0
    assert "its winner is to be tried again, as trial 0\n" in capsys.readouterr().out
    assert load_study(Path("runs/next")).get_trials()[0].params in [trial.params for trial in trials]


def test_space_of_small_networks_takes_small_pictures(home, small, write_space):
    depths = {"type": "integer", "min": 2, "max": 3}
    config = str(write_space(parameters={"body_repeats": depths, "body_width": [4, 8]}))
    options = [config, *small[1:], "--image-size", "32"]
    assert cli.make_plan(cli.parse(options), print).fixed["image_size"] == 32
    depths["max"] = 4
    write_space(parameters={"body_repeats": depths})
    with pytest.raises(ValueError, match=r"\.json: image_size 32 is too small for body_repeats 4"):
        cli.make_plan(cli.parse(options), print)
    write_space(parameters={"body_width": [4, 8], "schedule": ["linear"]})
    with pytest.raises(ValueError, match=r"\.json: parameters\.schedule: schedule is 'linear'"):
        cli.make_plan(cli.parse(options), print)


def test_password_of_an_address_is_not_said_again(monkeypatch):
    options = ["--storage", "postgresql://me:se/cr:et@host:5432/sweeps?password=secret", "--data", "/night:v2@home"]
    monkeypatch.setattr(sys, "argv", ["run_sweep.py", *options])
    said = cli.command(cli.parse(options))
    assert said.endswith("'postgresql://me:***@host:5432/sweeps?password=***' --data /night:v2@home")


def champion_of_another_sweep_is_named_and_kept(home, finished, capsys):
    champion = home / "best_model/model.safetensors"
    model, header = load_model(champion)
    header["provenance"]["run"] = "later"
    save_model(model, champion, {key: value for key, value in header.items() if key != "model"})
    assert cli.main(finished) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ": trial 0 of small is the champion: there was none before; now best_model" in said
    assert "best_model/model.safetensors holds trial 0 of later" in said
    champion.unlink()
    assert cli.main(finished) == 0
    assert champion.exists()


def assert_weights_are_of_the_best_epoch(folder, photographs):
    model, header = load_model(folder / "model.safetensors")
    losses = [float(row["val_loss"]) for row in csv.DictReader((folder / "history.csv").read_text().splitlines())]
    kept = header["metrics"]["validation"]
    assert kept["loss"] == min(losses)
    assert kept["epoch"] == 1 + losses.index(min(losses))
    validation = load_data(str(photographs), 64).validation
    assert evaluate(model, validation).loss == pytest.approx(kept["loss"], rel=1e-3)


@pytest.mark.slow
def test_sweep_starts_from_an_earlier_one_and_needs_it_only_then(home, small, capsys):
    assert cli.main([*small, "--promote", "never"]) == 0
    warm = [*small, "--promote", "never", "--name", "next", "--warm-start", "small", "--trials", "2", "--epochs", "1"]
    assert cli.main(warm) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"warm start: the search knows \d trials of small; its winner is to be tried again, as trial 0", said
    )
    assert "note: small had other settings (epochs); what configurations" in said
    assert "2 done, 0 running, 0 left" in said
    shutil.rmtree("runs/small")
    assert cli.main(warm) == 0
    assert "nothing left to search: all 2 trials of next have ended" in capsys.readouterr().out


def test_search_at_comet_has_no_warm_start(home, small, capsys, monkeypatch):
    monkeypatch.setenv("COMET_API_KEY", "nobody's")
    assert cli.main([*small, "--engine", "comet", "--warm-start", "earlier"]) == 2
    assert "a search at Comet takes no results of another" in capsys.readouterr().err
    assert not list(home.iterdir())


def test_interrupted_and_killed_program_is_finished_by_the_same_command(home, small, photographs):
    process = start(small)
    wait_for_an_epoch(process, home)
    process.send_signal(signal.SIGINT)
    _, complained = process.communicate()
    assert process.returncode == 130
    assert "nothing is lost, the same command goes on: python" in complained
    assert "Traceback" not in complained
    process = start(small)
    wait_until(lambda: any(state.is_finished() for state in states()), process)
    process.kill()
    process.communicate()
    status, _, complained = finish(small)
    assert status == 0, complained
    assert [state.is_finished() for state in states()] == [True] * 3
    assert not list(home.glob("runs/small/trials/*/checkpoint.pt"))
    for folder in home.glob("runs/small/trials/*"):
        assert_weights_are_of_the_best_epoch(folder, photographs)


def test_dry_run_shows_the_plan_and_its_cost_and_creates_nothing(home, with_baseline, write_space, capsys):
    write_space(parameters={"learning_rate": {"type": "float", "min": 0.001, "max": 0.01}})  # one network: one probe
    assert cli.main([*with_baseline, "--dry-run", "--artifacts", str(home / "store")]) == 0
    said = capsys.readouterr().out
    assert "3 trials of at most 2 epochs, bayes" in said
    assert "(40 images to train, 8 to test)" in said
    assert "2,660,226" in said  # the README network at 64 px
    time = r"\d+ min \d+ s"
    parts = rf"\(trials {time}, start and end {time}\)"
    cost = rf"expected: about {time} on this worker {parts}; peak memory about \d\.\d GB"
    assert re.search(cost, said)
    assert not list(home.iterdir())


BAD = {
    "missing config": (["none.json"], "none.json: cannot be read"),
    "missing data": (["--data", "/nowhere"], "data folder /nowhere does not exist"),
    "image too small": (["--image-size", "32"], "image_size 32 is too small for body_repeats 4"),
    "unknown device": (["--devices", "cuda:77"], "unknown device 'cuda:77'; this machine has cpu"),
    "artifacts in a file": (["--artifacts", "/etc/passwd/here"], "/etc/passwd is not a writable folder"),
    "neither number nor auto": (
        ["--workers-per-device", "some"],
        "'some' is neither auto nor a whole number from 1 on",
    ),
    "no budget": (["--trials", "0"], "argument --trials: '0' is no whole number from 1 on"),
    "no number": (["--epochs", "many"], "argument --epochs: 'many' is no whole number from 1 on"),
    "address without Ray": (["--ray-address", "head"], "--ray-address is for --backend ray; give both or neither"),
    "workers per CPU": (["--workers-per-device", "2", "--devices", "cpu"], "but for auto; for the CPU give --workers"),
    "workers twice": (["--workers-per-device", "auto"], "auto finds the number of workers; leave out --workers"),
    "unknown option": (["--gpu"], "unrecognized arguments: --gpu; --help lists the options"),
    "warm start from nothing": (["--warm-start", "none"], "--warm-start: runs/none holds no sweep; name one of runs/"),
    "warm start from itself": (["--warm-start", "small"], "--warm-start is 'small'; give the name of another sweep"),
    "warm start elsewhere": (["--warm-start", "../x"], "--warm-start is '../x'; give the name of another sweep"),
    "name with a slash": (["--name", "../up"], "--name is '../up'; use letters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_creates_nothing(home, small, capsys, case):
    arguments, message = BAD[case]
    config = [] if arguments[0].endswith(".json") else small[:1]
    try:
        status = cli.main([*config, *small[1:], *arguments])
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
    monkeypatch.setattr(cli, "live_view", view)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main([*small, "--trials", "1"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted; nothing is lost" in capsys.readouterr().err
    assert dropped == [KeyboardInterrupt]


def test_ray_that_is_not_installed_is_one_sentence(home, small, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "search.workers.ray_backend", raising=False)
    assert cli.main([*small, "--backend", "ray"]) == 2
    assert "--backend ray needs Ray; pip install 'ray>=2.50' (extra cluster)" in capsys.readouterr().err
    assert not list(home.iterdir())


def test_best_model_that_cannot_be_written_is_refused_before_the_sweep(home, small, capsys):
    (home / "best_model").write_text("a file")
    assert cli.main(small) == 2
    assert "best_model/ cannot be written (Not a directory)" in capsys.readouterr().err
    assert not (home / "runs/small/study.db").exists()


def test_promote_never_promotes_nothing_and_the_reports_command_makes_the_same_weights(home, small, capsys):
    assert cli.main([*small, "--trials", "1", "--promote", "never"]) == 0
    assert "winner: trial 0, not promoted as --promote never asks" in capsys.readouterr().out
    assert not (home / "best_model").exists()
    folder = home / "runs/small/trials/0000"
    command = (folder / "command.txt").read_text().replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    again, found = load_model(home / "model.safetensors")[0], load_model(folder / "model.safetensors")[0]
    pairs = zip(again.state_dict().values(), found.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_no_budget_in_file_or_command_is_refused(home, small, write_space, capsys):
    path = write_space(spec={"metric": "best_val_loss"})
    assert cli.main([str(path), *small[1:]]) == 2
    assert "spec.maxCombo is 0; set it, or give --trials" in capsys.readouterr().err


def test_searched_field_cannot_be_given_on_the_command_line_too(home, small, write_space, capsys):
    path = write_space(parameters={"epochs": [1, 2]})
    assert cli.main([str(path), *small[1:]]) == 2
    assert "epochs is searched; leave out --epochs" in capsys.readouterr().err


def test_empty_and_one_class_and_broken_folders_are_refused(home, small, photographs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for path in photographs.rglob("dogs/*.jpg"):
        path.unlink()
    for folder, message in ((tmp_path / "empty", "holds no images"), (photographs, "show no dog")):
        assert cli.main([*small, "--data", str(folder)]) == 2
        assert message in capsys.readouterr().err
    assert not list(home.iterdir())


def test_runs_that_cannot_be_written_are_refused(home, small, capsys):
    (home / "runs").write_text("a file")
    assert cli.main(small) == 2
    assert "runs/small cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"), [("gone", "does not exist"), ("other", "are not those that the sweep began with")]
)
def test_data_that_goes_or_changes_is_no_trials_fault(home, small, photographs, change, message):
    plan = cli.make_plan(cli.parse(small), print)
    train_trial = cli.TrainTrial(plan.sweep, plan.source, plan.fixed, "fingerprint of before", {})
    if change == "gone":
        shutil.rmtree(photographs)
    with pytest.raises(OSError, match=message):
        next(train_trial(TrialContext(0, None, {}, 0, home, "cpu", home / "checkpoint.pt")))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), ProcessLostError),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemoryError),
        (torch.OutOfMemoryError("CUDA out of memory."), OutOfMemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), OutOfMemoryError),
        (MemoryError("out of memory"), OutOfMemoryError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ],
)
def test_lost_gpu_and_lack_of_memory_are_told_from_what_a_trial_does_wrong(home, small, monkeypatch, error, kind):
    def lost(*_, **__):
        raise error

    monkeypatch.setattr("pipeline.task.train", lost)
    plan = cli.make_plan(cli.parse(small), print)
    data = cli.load_data(plan.source, 64)
    train_trial = cli.TrainTrial(plan.sweep, plan.source, plan.fixed, data.fingerprint, {})
    with pytest.raises(kind, match=str(error)) as raised:
        next(train_trial(TrialContext(4, None, {}, 0, home, "cpu", home / "checkpoint.pt")))
    assert raised.type is kind


def test_sweep_without_a_complete_trial_promotes_nothing(home, small, monkeypatch, capsys):
    monkeypatch.setattr(WorkerPool, "complete", lambda *_: None)
    assert cli.main(small) == 1
    assert "no trial completed, so nothing is promoted" in capsys.readouterr().err


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 24 MB, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if (
        not mounted
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_full_disk_ends_the_run_and_the_ledger_resumes(full_disk, with_baseline):
    ballast = full_disk / "ballast"
    ballast.write_bytes(b"0" * 14 * 2**20)  # the baseline's weights fit, its checkpoint does not
    status, _, complained = finish(with_baseline, full_disk)
    assert status == 1
    assert "No space left on device" in complained
    assert "Traceback" not in complained
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=200m", full_disk], check=True)
    status, _, complained = finish(with_baseline, full_disk)
    assert status == 0, complained
    trials = load_study(full_disk / "runs/small").get_trials()
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    assert len(trials) == 3


@pytest.mark.slow
def test_timeout_stops_the_sweep_and_the_same_command_goes_on(home, with_baseline):
    status, _, complained = finish([*with_baseline, "--trials", "40", "--timeout", "5"])
    assert status == 130
    assert "--timeout 5 s is over; nothing is lost, the same command goes on" in complained
    assert finish([*with_baseline, "--trials", "40"])[0] == 0
    assert states() == [TrialState.COMPLETE] * 40
