"""What each part of the recipe for photographs is worth: trainings with and without it, of equal time and equal seeds.

    python benchmarks/ablation.py                    # prints the table of the recorded trainings, ablation.json
    python benchmarks/ablation.py --data FOLDER --record mine.json    # trains, or goes on with the file
    python benchmarks/ablation.py --record benchmarks/ablation_long.json   # 40 epochs at 64 px

Each row changes one part of the recipe. Its epochs are as many as should take the time of the recipe's, by the CPU time
of a few steps with images of full size. Two trainings run at once, on one thread each. The test images are not used.
Columns:

    time      CPU time, as a share of the recipe's over the same seeds
    epochs    of each training
    accuracy  on the validation images, after the last epoch; mean over the seeds
    loss      likewise
    beside    the recipe's loss, mean over the same seeds
    gain      of the recipe's accuracy over the row's, in points: mean of the paired differences, 95 % interval (t)
"""

import argparse
import json
import os
import platform
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from catdog.data.dataset import ImageSubset, load_data
from catdog.evaluate import evaluate
from catdog.model import build_model
from catdog.recipe.config import image_size_of
from catdog.train import train
from pipeline.task import configure

RECORD = ROOT / "benchmarks/ablation.json"
NUM_TIMED = 320  # images
RECIPE = {
    "start_scale": 0.667, "stem_width": 16, "body_width": 256, "body_repeats": 3,
    "share_body": False, "double_width": True, "residual_blocks": 3, "global_pool": True, "flip_average": True,
    "batch_size": 64, "optimizer": "muon", "learning_rate": 3e-3, "weight_decay": 0.1,
    "schedule": "linear", "augmentation": "strong", "label_smoothing": 0.1, "ema": 0.998,
}  # fmt: skip
ALONE = "no answer averaged with the mirror image's"  # the weights are those of the recipe
LEFT_OUT = ["with drop_path 0.1", "with CutMix, probability 0.5"]  # of the product, after they had been recorded
ROWS = {
    "the recipe": {},
    "no residual blocks": {"residual_blocks": 0},
    "widths 16, 128, 128, ... instead of doubling": {"double_width": False, "body_width": 128},
    "every value of the last map, one image size": {"global_pool": False, "start_scale": 1.0},
    "one image size": {"start_scale": 1.0},
    ALONE: {"flip_average": False},
    "AdamW instead of Muon": {"optimizer": "adamw", "weight_decay": 0.05},
    "wsd instead of linear": {"schedule": "wsd"},
    "one_cycle instead of linear": {"schedule": "one_cycle"},
    "augmentation color instead of strong": {"augmentation": "color"},
    "no label smoothing": {"label_smoothing": 0.0},
    "no moving average": {"ema": 0.0},
    "with random erasing, probability 0.25": {"erasing": 0.25},
    **{name: {} for name in LEFT_OUT},
}
NOT_TRAINED = [ALONE, *LEFT_OUT]


def values_of(name, epochs, size, seed=0):
    """Return the parameters of a row of the table."""
    return {**RECIPE, **ROWS[name], "image_size": size, "epochs": epochs, "seed": seed}


def cost_of(name, data, size):
    """Return the CPU seconds of training on a few images of full size: the least of five epochs."""
    torch.set_num_threads(1)
    shape, recipe = configure({**values_of(name, 10**6, size), "start_scale": 1.0}, {})
    part = ImageSubset(data.training.images, data.training.labels, data.training.rows[:NUM_TIMED])
    one, clock, costs = ImageSubset(part.images, part.labels, part.rows[:1]), time.process_time(), []
    for _ in islice(train(build_model(shape), recipe, part, one), 6):
        costs.append(time.process_time() - clock)
        clock = time.process_time()
    return min(costs[1:])


def area_of(name, epochs, size):
    """Return the mean area of the images over the epochs, as a share of the full size."""
    shape, recipe = configure(values_of(name, epochs, size), {})
    return fmean((image_size_of(epoch, shape, recipe) / size) ** 2 for epoch in range(1, epochs + 1))


def train_row(name, epochs, seed, folder, size):
    """Train once; return what the table needs, for the recipe also with answers of the image alone."""
    torch.set_num_threads(1)
    shape, recipe = configure(values_of(name, epochs, size, seed), {})
    data, model, clock = load_data(folder, size), build_model(shape, seed), time.process_time()
    *_, last = train(model, recipe, data.training, data.validation)
    training = {"row": name, "seed": seed, "epochs": epochs, "seconds": round(time.process_time() - clock, 1)}
    results = [{**training, "loss": last.val_loss, "accuracy": last.val_accuracy}]
    if name == "the recipe":
        model.config = replace(shape, flip_average=False)
        scores = evaluate(model, data.validation)
        results.append({**training, "row": ALONE, "loss": scores.loss, "accuracy": scores.accuracy})
    return results


def fill(record, options):
    """Train every row with every seed that the record lacks; write it after each training."""
    size, of_recipe = record["image_size"], record["epochs"]
    data = load_data(options.data, size)
    rows = [name for name in ROWS if name not in NOT_TRAINED]
    rows = [name for name in rows if name == "the recipe" or re.search(options.only, name)]
    for name in rows:
        if name not in record["costs"]:
            record["costs"][name] = round(cost_of(name, data, size), 3)
            print(f"{record['costs'][name]:7.2f} CPU seconds for {NUM_TIMED} images: {name}", flush=True)
    budget = record["costs"]["the recipe"] * area_of("the recipe", of_recipe, size) * of_recipe
    done = {(training["row"], training["seed"]) for training in record["trainings"]}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.workers) as pool:
        futures = []
        for seed in range(1, options.seeds + 1):
            for name in rows:
                epochs = max(2, round(budget / (record["costs"][name] * area_of(name, of_recipe, size))))
                if (name, seed) not in done:
                    futures.append(pool.submit(train_row, name, epochs, seed, options.data, size))
        for future in futures:
            record["trainings"] += (results := future.result())
            lines = ",\n".join(map(json.dumps, record["trainings"]))
            about = {key: value for key, value in record.items() if key != "trainings"}
            options.record.write_text(f'{json.dumps(about)[:-1]},\n"trainings": [\n{lines}\n]}}\n')
            print(*results, sep="\n", flush=True)


def table(record):
    print(f"{record['about']}; {record['image_size']} px")
    print("recipe:", *(f"{name}={value}" for name, value in RECIPE.items()), end="\n\n")
    print(f"{'':46}{'time':>5}{'epochs':>8}{'seeds':>7}{'accuracy':>10}{'loss':>8}{'beside':>8}   gain of the recipe")
    found = {name: {t["seed"]: t for t in record["trainings"] if t["row"] == name} for name in ROWS}
    whole = found["the recipe"]
    for name, trainings in found.items():
        seeds = sorted(trainings.keys() & whole.keys())
        if not seeds:
            continue
        mean, loss = (fmean(trainings[seed][key] for seed in seeds) for key in ("accuracy", "loss"))
        beside = fmean(whole[seed]["loss"] for seed in seeds)
        share = sum(trainings[seed]["seconds"] for seed in seeds) / sum(whole[seed]["seconds"] for seed in seeds)
        gains = np.array([100 * (whole[seed]["accuracy"] - trainings[seed]["accuracy"]) for seed in seeds])
        text = ""
        if name != "the recipe" and len(seeds) > 1:
            half = stats.t.ppf(0.975, len(seeds) - 1) * gains.std(ddof=1) / len(seeds) ** 0.5
            text = f"{gains.mean():+6.2f} ({gains.mean() - half:+.2f} to {gains.mean() + half:+.2f})"
        epochs = trainings[seeds[0]]["epochs"]
        print(f"{name:46}{share:5.2f}{epochs:8}{len(seeds):7}{mean:10.2%}{loss:8.4f}{beside:8.4f}   {text}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of photographs; without it the table of the record alone")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON file of costs and trainings")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="of the recipe (default: the record's, 8 in a new one)")
    parser.add_argument("--image-size", type=int, help="pixels (default: the record's, 96 in a new one)")
    parser.add_argument("--only", default="", metavar="REGEX", help="the recipe, and the rows whose name has this")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    about = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, bfloat16 "
    about += "yes" if torch.cpu.get_capabilities().get("avx512_bf16") else "no"
    asked = {name: getattr(options, name) for name in ("image_size", "epochs") if getattr(options, name) is not None}
    record = {"about": about, "image_size": 96, "epochs": 8, **asked, "costs": {}, "trainings": []}
    if options.record.exists():
        record = json.loads(options.record.read_text())
        for name, value in asked.items():
            if record[name] != value:
                parser.error(
                    f"{options.record} was recorded with {name} {record[name]}, not {value}; take another --record"
                )
    if options.data:
        fill(record, options)
    table(record)


if __name__ == "__main__":
    main()
