import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from catdog.checkpoint import load_model, save_model
from catdog.data.dataset import load_data
from catdog.evaluate import evaluate
from pipeline.cli import main, parse
from pipeline.plan import make_plan
from pipeline.stages import epoch_shares
from search.study.sweep import CHOSEN, load_confirmation, load_study
from search.study.trials import counted
from search.workers.supervisor import WorkerPool
from tests.conftest import ROOT
from tests.servers import processes
from tests.servers.processes import wait_until

POOLED = {"body_repeats": [2], "global_pool": ["true"]}  # it takes images of 16 pixels too


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


@pytest.mark.parametrize(
    ("parameters", "shares"),
    [
        ({"body_width": [4, 8]}, []),
        ({**POOLED, "start_scale": [0.5]}, [0.25, 0.5625, 1, 1]),  # the baseline's do not grow
        ({**POOLED, "start_scale": [0.5, 1]}, [0.625, 0.78125, 1, 1]),
    ],
)
def test_cost_of_an_epoch_is_the_mean_area_of_its_images(home, with_baseline, write_space, parameters, shares):
    config = str(write_space(parameters=parameters, algorithm="grid"))
    plan = make_plan(parse([config, *with_baseline[1:], "--epochs", "4"]), print)
    assert epoch_shares(plan) == shares


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
    assert "promoted on" in said
    assert champion.stat().st_mtime_ns == before.st_mtime_ns
    assert not list(home.glob("best_model/history/*"))
    picture = next(photographs.rglob("test_set/cats/*.jpg"))
    predicted = subprocess.run(
        [sys.executable, "-m", "catdog.predict", str(picture), "--model", str(champion)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.search(r": (cat|dog)  \(cat \d+\.\d%  dog \d+\.\d%\)", predicted.stdout)
    assert model.config.image_size == 64


@pytest.mark.slow
def test_smaller_sweep_is_extended_but_not_under_other_settings(home, small, photographs, capsys):
    assert main([*small, "--trials", "1"]) == 0
    capsys.readouterr()
    assert main([*small, "--trials", "1", "--epochs", "3"]) == 2
    assert "other settings (epochs was 2, is 3); give the former settings, or another --name" in capsys.readouterr().err
    assert main([*small, "--trials", "1", "--epochs", "3", "--dry-run"]) == 2
    assert "other settings (epochs was 2, is 3); give the former settings, or another --name" in capsys.readouterr().err
    images = Path(small[small.index("--data") + 1])
    added = next(images.rglob("training_set/cats")) / "added.jpg"
    added.write_bytes(next(images.rglob("test_set/dogs/*.jpg")).read_bytes() + b"x")
    for options in (["--trials", "1"], ["--trials", "1", "--dry-run"]):
        assert main([*small, *options]) == 2
        told = (
            r"small was begun with 40 images, .* has 41 now: 1 new in cats \(.*added.jpg\); give the former images, or"
        )
        assert re.search(told, capsys.readouterr().err)
    added.unlink()
    assert main(["small"]) == 2
    assert "small is a sweep, not a search space; repeat its command with --name small" in capsys.readouterr().err
    assert main([*small, "--trials", "1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "note: small exists: 1 of 1 trials have ended" in said
    assert said.endswith("nothing is left to train: small has ended; its command only promotes and reports\n")
    assert main([*small, "--trials", "2", "--confirm", "1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "note: small exists: 1 of 2 trials and 0 of 2 runs of the confirmation have ended" in said
    assert re.search(r"this is for the whole sweep; left are 1 trial and 2 runs, about [\w ]+\n$", said)
    champion_of_another_sweep_is_named_and_kept(home, [*small, "--trials", "1"], capsys)
    assert main([*small, "--trials", "2"]) == 0
    assert "resuming small: 1 of 2 trials ended before" in capsys.readouterr().out
    assert len(states()) == 2
    for number in range(2):
        assert_weights_are_of_the_best_epoch(home / f"runs/small/trials/{number:04}", photographs)
    assert main([*small, "--trials", "2", "--keep", "1"]) == 0
    assert "note: --keep 1 removes the weights of 1 trial" in capsys.readouterr().out
    assert len(list(home.glob("runs/small/trials/*/model.safetensors"))) == 1


@pytest.mark.slow
def test_sweep_without_the_baseline(home, small, with_baseline, capsys):
    assert main(small) == 0
    said, trials = capsys.readouterr().out, load_study(Path("runs/small")).get_trials()
    assert "trial 0 is the baseline" not in said
    assert "note: the baseline network is no trial of this sweep (--no-baseline)" in said
    assert [trial.params["body_width"] in (4, 8) for trial in trials] == [True] * 3
    assert main(with_baseline) == 2
    assert (
        "other settings (baseline was False, is True); give the former settings, or another --name"
        in capsys.readouterr().err
    )
    warm = ["--name", "next", "--warm-start", "small", "--trials", "1"]
    assert main([*small, *warm]) == 0
    assert "its winner is trained again as trial 0\n" in capsys.readouterr().out
    assert load_study(Path("runs/next")).get_trials()[0].params in [trial.params for trial in trials]


def champion_of_another_sweep_is_named_and_kept(home, finished, capsys):
    champion = home / "best_model/model.safetensors"
    model, header = load_model(champion)
    header["provenance"]["run"] = "later"
    save_model(model, champion, {key: value for key, value in header.items() if key != "model"})
    assert main(finished) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ": trial 0 of small is the champion: there was none before" in said
    assert "the champion in best_model/ now: trial 0 of later" in said
    champion.unlink()
    assert main(finished) == 0
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
    assert main([*small, "--promote", "never"]) == 0
    warm = [*small, "--promote", "never", "--name", "next", "--warm-start", "small", "--trials", "2", "--epochs", "1"]
    assert main(warm) == 0
    said = capsys.readouterr().out
    assert re.search(r"warm start: the search uses \d trials of small; its winner is trained again as trial 0", said)
    assert "note: small had other settings (epochs); results are shifted by the median" in said
    assert "2 done, 0 running, 0 left" in said
    shutil.rmtree("runs/small")
    assert main(warm) == 0
    assert "nothing left to search: all 2 trials of next have ended" in capsys.readouterr().out


def test_interrupted_and_killed_program_is_finished_by_the_same_command(home, small, photographs):
    process = start(small)
    wait_for_an_epoch(process, home)
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate()
    assert process.returncode == 130
    assert said.endswith("report so far: runs/small/report.html\n")
    assert "ranking, best first" in said
    assert f"Progress is saved. Resume with: {sys.executable} " in complained
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


@pytest.mark.slow
def test_promote_never_promotes_nothing_and_the_reports_command_makes_the_same_weights(home, small, capsys):
    assert main([*small, "--trials", "1", "--promote", "never"]) == 0
    assert "winner: trial 0, not promoted because of --promote never" in capsys.readouterr().out
    assert not (home / "best_model").exists()
    folder = home / "runs/small/trials/0000"
    subprocess.run((folder / "command.txt").read_text(), shell=True, check=True)
    again, found = load_model(home / "model.safetensors")[0], load_model(folder / "model.safetensors")[0]
    pairs = zip(again.state_dict().values(), found.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_sweep_without_a_complete_trial_promotes_nothing(home, small, monkeypatch, capsys):
    monkeypatch.setattr(WorkerPool, "complete", lambda *_: None)
    assert main(small) == 1
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
def test_full_disk_ends_the_run_and_the_study_resumes(full_disk, with_baseline):
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
    assert "--timeout 5 s is over" in complained  # on a slow machine before an epoch has ended
    assert (home / "runs/small/report.html").exists()
    assert finish([*with_baseline, "--trials", "40"])[0] == 0
    assert states() == [TrialState.COMPLETE] * 40


@pytest.mark.slow
def test_folder_and_files_of_any_name_are_trained_promoted_and_reported(home, small, photographs):
    odd = Path(os.fsdecode(os.fsencode(photographs.parent) + b"/od\xffd \x1b[31m\n"))
    photographs.rename(odd)
    cats = next(odd.rglob("training_set/cats"))
    next(cats.iterdir()).rename(cats / os.fsdecode(b"\xfe\n\x07.jpg"))
    (cats / os.fsdecode(b"\xe9\x1b.jpg")).write_bytes(b"<html>")
    arguments = [str(odd) if argument == str(photographs) else argument for argument in small]
    status, said, complained = finish([*arguments, "--trials", "1"])
    assert (status, complained) == (0, "")
    assert r"note: left out 1 of 41 files that are web pages, not images" in said
    assert all(line.isprintable() for line in said.split("\n"))
    assert (home / "runs/small/report.html").exists()
    assert r"od\udcffd \x1b[31m\n" in (home / "best_model/README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_renamed_and_copied_runs_give_the_same_answers_and_overwrite_nothing(home, small, capsys, monkeypatch):
    """Also when best_model/ moves with them."""
    confirmed = [*small, "--trials", "2", "--confirm", "1"]
    assert main(confirmed) == 0
    runs = home / "runs"
    shutil.copytree(runs / "small", runs / "copied")
    weights = {path: path.read_bytes() for path in runs.rglob("*.safetensors")}
    capsys.readouterr()
    answers = {}
    for name in ("small", "copied"):
        assert main([*confirmed, "--name", name]) == 0
        answers[name] = re.sub(r"\b(small|copied)\b", "NAME", capsys.readouterr().out)
    assert answers["small"] == answers["copied"]
    assert "nothing left to search" in answers["copied"]
    (home / "elsewhere").mkdir()
    for part in ("runs", "best_model"):
        (home / part).rename(home / "elsewhere" / part)
    monkeypatch.chdir(home / "elsewhere")
    runs = Path("runs")
    (runs / "small").rename(runs / "renamed")
    status, said, _ = finish([*confirmed, "--name", "renamed", "--trials", "3"])
    assert (status, "resuming renamed: 2 of 3 trials ended before" in said) == (0, True)
    assert [len(load_study(runs / name).get_trials()) for name in ("renamed", "copied")] == [3, 2]
    for path, content in weights.items():
        now = runs / str(path.relative_to(home / "runs")).replace("small", "renamed")
        assert now.read_bytes() == content
    (runs / "renamed/study.db").rename("kept.db")
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    assert main([*confirmed, "--name", "renamed"]) == 2
    assert "runs/renamed has trials, but their study is gone; put it back, or give" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
