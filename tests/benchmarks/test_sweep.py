"""The benchmark of whole sweeps: what it makes of its lines, and its small form."""

import json
import math
import os
import re
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from benchmarks.peers.measure import note_new_epochs, run_of
from benchmarks.peers.task import Task
from benchmarks.peers.tutorial import plain_network
from benchmarks.sweep import measure_round, row_of, target_of
from catdog.model import ModelConfig, build_model
from tests.conftest import ROOT


def test_network_of_the_tutorial_has_the_same_weights_and_no_layer_of_ours():
    config = ModelConfig(stem_width=32, body_width=64, image_size=64)
    theirs, ours = plain_network(config, seed=1), build_model(config, seed=1)
    assert {type(module).__module__.split(".")[0] for module in list(theirs.modules())[1:]} == {"torch"}
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(weights, ours.state_dict()[name]) for name, weights in theirs.state_dict().items())


def log(*records):
    names = ("time", "trial", "epoch", "val_loss")
    return "".join(json.dumps(dict(zip(names, record, strict=True))) + "\n" for record in records)


def make_round():
    ours = log((1010.0, "0", 1, 0.9), (1020.0, "1", 1, 0.5), (1030.0, "0", 2, 0.55))
    tutorial = log((2012.0, "2", 1, math.nan), (2015.0, "0", 1, 0.8), (2070.0, "1", 1, 0.6), (2090.0, "0", 2, 0.7))
    return {"a": run_of(ours, 1000.0, 40.0), "b": run_of(tutorial, 2010.0, 100.0)}


def test_target_is_the_best_loss_of_the_peer_that_ends_with_the_worst():
    runs = make_round()
    assert target_of(runs) == 0.6
    assert [run.seconds_to(0.6) for run in runs.values()] == [20.0, 60.0]
    assert [run.num_trials for run in runs.values()] == [2, 3]


def test_row_has_medians_and_ratios_of_the_rounds_in_which_a_peer_ended():
    whole = make_round()
    assert row_of("b", [whole]).split() == ["1", "3", "3", "100.0", "s", "2.50x", "60.0", "s", "3.00x", "0.6000"]
    alone = {"b": whole["b"]}  # ours failed: nothing to compare with
    assert row_of("b", [alone]).split() == ["1", "3", "3", "100.0", "s", "60.0", "s", "0.6000"]
    assert row_of("b", [whole, alone]).split()[0] == "2"


def test_each_epoch_of_a_history_is_noted_once_and_no_line_that_is_only_half_written(tmp_path):
    task, num_seen = Task("", "", str(tmp_path / "log"), 2, 1, 64), {}
    history = tmp_path / "0003/history.csv"
    history.parent.mkdir()
    for content in (
        "epoch,val_loss\r\n1,0.7\r\n",
        "epoch,val_loss\r\n1,0.7\r\n2,0.",
        "epoch,val_loss\r\n1,0.7\r\n2,0.65\r\n",
    ):
        history.write_bytes(content.encode())
        note_new_epochs(tmp_path, task, num_seen)
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(r["trial"], r["epoch"], r["val_loss"]) for r in records] == [("0003", 1, 0.7), ("0003", 2, 0.65)]


@pytest.mark.slow
def test_peer_that_fails_is_named_and_costs_its_row_only(tmp_path, capsys):
    runs = {"a": make_round()["a"]}
    task = Task(str(tmp_path / "nowhere"), "", "", 1, 2, 64)
    measure_round(runs, Namespace(peers=["b"], small=True), task, 1, lambda _: dict(os.environ))
    assert list(runs) == ["a"]
    said = capsys.readouterr().out
    assert re.search(r"^round 1: b failed: exit status 1", said, re.MULTILINE)
    assert "FileNotFoundError" in said
    assert "round 1: a reaches 0.5000 after 20.0 s" in said


@pytest.mark.slow
def test_small_form_measures_ours_and_the_tutorial(photographs):
    command = [sys.executable, "benchmarks/sweep.py", "--data", str(photographs), "--small", "--rounds", "1"]
    done = subprocess.run([*command, "--peers", "a,b"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for peer, name in (("a", "ours"), ("b", "tutorial")):
        row = re.search(rf"^{peer}  {name} +1 +4 +8 +([\d.]+) s +[\d.]+x +([\d.]+) s", done.stdout, re.MULTILINE)
        assert row, done.stdout
        assert 0 < float(row[2]) <= float(row[1])
