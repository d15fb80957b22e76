"""The benchmark that replays learning curves, on made-up ones whose outcome is plain."""

import json
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
from optuna.pruners import NopPruner, SuccessiveHalvingPruner

from benchmarks.replay import figures
from tests.conftest import ROOT
from tests.servers.finished_sweep import EPOCHS, make_finished_sweep

OPTIONS = Namespace(trials=6, workers=2)
FALLING = np.linspace(0.9, 0.5, 6)[:, None] - np.array([0.0, 0.1, 0.2, 0.3])  # no two curves cross
LATE = np.array([*[[0.5, 0.5, 0.5, 0.5]] * 5, [0.9, 0.8, 0.7, 0.1]])  # the best one is the worst until its end


def halving():
    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)


def figures_of(curves, make_pruner):
    random = np.random.default_rng(0)
    orders = [[0, *random.permutation(np.arange(1, 6))] for _ in range(20)]
    return np.array([figures(curves, np.ones((6, 4)), make_pruner, order, OPTIONS) for order in orders]).T


def test_without_a_pruner_nothing_is_saved_and_nothing_lost():
    time, near, regret, lost, as_long = figures_of(LATE, NopPruner)
    assert set(time) == {1.0}
    assert (near <= 1).all()
    assert set(regret) == set(lost) == set(as_long) == {0.0}


def test_halving_saves_time_for_nothing_where_curves_never_cross():
    time, near, regret, lost, _ = figures_of(FALLING, halving)
    assert (time <= 1).all()
    assert time.mean() < 0.9
    assert (near <= 1).all()
    assert set(regret) == set(lost) == {0.0}


def test_halving_loses_the_best_trial_where_it_is_the_worst_at_first():
    _, near, regret, lost, _ = figures_of(LATE, halving)
    assert set(lost) == {1.0}
    assert regret == pytest.approx(0.4)
    assert np.isinf(near).all()


def test_recorded_sweep_is_replayed(tmp_path):
    study, path = make_finished_sweep(tmp_path / "runs/curves", 12), tmp_path / "curves.json"
    for trial in study.trials():
        rows = [f"{value},2.5" for value in trial.intermediate_values.values()]
        trial_folder = study.sweep.trial_folder(trial.number)
        trial_folder.mkdir(parents=True, exist_ok=True)
        (trial_folder / "history.csv").write_text("\n".join(["val_loss,seconds", *rows]))
    run = [sys.executable, str(ROOT / "benchmarks/replay.py")]
    subprocess.run([*run, "--record", study.sweep.folder, "--output", path], check=True)
    trials = json.loads(path.read_text())["trials"]
    assert {len(trial["val_loss"]) for trial in trials} == {EPOCHS}  # those that were not pruned
    assert trials[0]["parameters"]["body_width"] == 512
    said = subprocess.run([*run, path, "--orders", "3", "--trials", "3"], check=True, capture_output=True, text=True)
    assert "median after 0" in said.stdout
