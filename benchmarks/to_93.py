"""From the command to a network with 93 % of the test photographs right: time, operations, accuracy.

    python benchmarks/to_93.py --data FOLDER [--seeds 5] [--epochs 16]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/to_93.py --data FOLDER     # a CPU with AVX2

One training after another, each by `python -m catdog.train` on all cores, with another seed. The last epoch is kept.
The settings were chosen on the validation images alone. The test images are looked at once, after the last training.
Beside it the origin's recipe: the README network at 224 px, 20 epochs of Adam with 1e-4 and batches of 32; its time is
that of one epoch times 20, and its accuracy is what the origin reports, not measured here.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.ablation import RECIPE
from catdog.checkpoint import load_model
from catdog.data.dataset import load_data, load_test
from catdog.evaluate import evaluate
from catdog.kernels.precision import uses_bfloat16
from catdog.model import ModelConfig, build_model, count_mult_adds
from catdog.recipe.config import TrainConfig, image_size_of
from catdog.train import train
from pipeline.task import configure

LARGER = {**RECIPE, "image_size": 128, "start_scale": 0.625}
BACKWARD = 2  # a backward pass takes twice the multiplications of a forward pass


def options_of(values):
    """Return the options of `python -m catdog.train`."""
    for name, value in values.items():
        flag = name.replace("_", "-")
        yield from [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]


def mult_adds(values, num_images):
    """Count the multiply-adds of a training: forward and backward, in the image size of each epoch."""
    shape, recipe = configure({**values, "flip_average": False}, {})
    areas = [(image_size_of(epoch, shape, recipe) / shape.image_size) ** 2 for epoch in range(1, recipe.epochs + 1)]
    return count_mult_adds(shape) * (1 + BACKWARD) * num_images * sum(areas)


def origin(folder):
    """Return the seconds of the origin's recipe, from one epoch, and its multiply-adds."""
    data, config = load_data(folder, ModelConfig().image_size), TrainConfig()
    model = build_model(ModelConfig())
    (epoch,) = islice(train(model, config, data.training, data.validation), 1)
    return config.epochs * epoch.seconds, mult_adds({"epochs": config.epochs}, len(data.training))


def interval(accuracies):
    """Return the 95 % interval of the mean over seeds (t)."""
    half = stats.t.ppf(0.975, len(accuracies) - 1) * np.std(accuracies, ddof=1) / len(accuracies) ** 0.5
    return f"{fmean(accuracies):.2%} ({fmean(accuracies) - half:.2%} to {fmean(accuracies) + half:.2%})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of photographs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--no-origin", action="store_true", help="leave out the epoch of the origin's recipe")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2, for an interval")
    values = {**LARGER, "epochs": options.epochs}
    size = values["image_size"]
    data = load_data(options.data, size)  # decoded once, in the cache
    precision = "bfloat16" if uses_bfloat16(torch.device("cpu")) else "float32"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {precision}, torch {torch.__version__};", end=" ")
    print(f"{len(data.training)} to train, {len(data.validation)} to validate")
    arguments = ["-m", "catdog.train", "--data", options.data, "--keep", "last", *options_of(values)]
    print("python", shlex.join("FOLDER" if argument == options.data else argument for argument in arguments))
    seconds, validation = [], []
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{seed}.safetensors" for seed in range(1, options.seeds + 1)]
        for seed, file in enumerate(files, 1):
            began = time.perf_counter()
            command = [sys.executable, *arguments, "--seed", str(seed), "--output", file]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
            _, header = load_model(Path(file))
            validation.append(header["metrics"]["validation"]["val_accuracy"])
            print(f"seed {seed}: {seconds[-1]:.0f} s, validation accuracy {validation[-1]:.2%}", flush=True)
        held_out = load_test(options.data, size).subset
        test = [evaluate(load_model(Path(file))[0], held_out).accuracy for file in files]
    print(f"validation accuracy: {interval(validation)} of {len(data.validation)} images")
    print(f"test accuracy: {interval(test)} of {len(held_out)} images; each:", *(f"{each:.2%}" for each in test))
    spent = mult_adds(values, len(data.training))
    print(f"time: {median(seconds):.0f} s ({min(seconds):.0f} to {max(seconds):.0f}), {spent / 1e12:,.0f} T mult-adds")
    if not options.no_origin:
        theirs, of_theirs = origin(options.data)
        print(f"origin's recipe: {theirs:,.0f} s (one epoch times 20), {of_theirs / 1e12:,.0f} T mult-adds,", end=" ")
        print(f"93 % reported; {theirs / median(seconds):.1f} times the time, {of_theirs / spent:.1f} the mult-adds")


if __name__ == "__main__":
    main()
