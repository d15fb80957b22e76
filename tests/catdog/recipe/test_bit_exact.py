"""A training that is killed and goes on ends with the same bits as one that was left alone."""

import os
import random
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.servers import processes

TRAINING = """
import hashlib, sys
from pathlib import Path
from catdog.data.dataset import load_data
from catdog.model import ModelConfig, build_model
from catdog.train import TrainConfig, train

data = load_data(sys.argv[1], 32)
recipe = TrainConfig(3e-3, batch_size=8, epochs=int(sys.argv[3]), schedule="one_cycle", augmentation="color", seed=5)
shape = ModelConfig(image_size=32, stem_width=32, body_width=64, body_repeats=3, dropout=0.3)
model = build_model(shape, 5)
digest = hashlib.sha256()
for epoch in train(model, recipe, data.training, data.validation, checkpoint=Path(sys.argv[2])):
    print("epoch", flush=True)
    digest.update(repr((epoch.train_loss, epoch.train_accuracy, epoch.val_loss, epoch.val_accuracy)).encode())
for tensor in model.state_dict().values():
    digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""
NUM_KILLS = 20


def start(*arguments):
    return processes.start(
        [sys.executable, "-c", TRAINING, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bits(photographs, tmp_path):
    process = start(photographs, tmp_path / "whole.pt", 30)
    assert process.stdout.readline() == "epoch\n"
    began = time.monotonic()
    wanted = process.communicate()[0].splitlines()[-1]
    seconds = time.monotonic() - began
    kills, checkpoint = 0, tmp_path / "killed.pt"
    while kills < NUM_KILLS:
        process = start(photographs, checkpoint, 30)
        process.stdout.readline()
        time.sleep(random.uniform(0, seconds / 4))
        process.kill()
        lines = process.communicate()[0].splitlines()
        if process.returncode:
            kills += 1
        else:  # it was done before; the next kills meet another run
            assert lines[-1] == wanted
            checkpoint.unlink()
    assert start(photographs, checkpoint, 30).communicate()[0].splitlines()[-1] == wanted


def test_torn_checkpoint_gives_way_to_the_one_before(photographs, tmp_path):
    whole, torn = tmp_path / "whole.pt", tmp_path / "torn.pt"
    wanted = start(photographs, whole, 6).communicate()[0].splitlines()[-1]
    process = start(photographs, torn, 6)
    for _ in range(4):
        process.stdout.readline()
    process.kill()
    process.communicate()
    torn.write_bytes(torn.read_bytes()[:1000])
    lines = start(photographs, torn, 6).communicate()[0].splitlines()
    assert lines[-1] == wanted
