"""A short random search for the network that is best from scratch: no study, no Optuna."""

import json
import math
import multiprocessing
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from on_gpu.speed import start_worker

import catdog.train
from catdog.checkpoint import load_model, save_model
from catdog.data.dataset import load_data, load_test
from catdog.data.preprocess import preprocessing
from catdog.evaluate import evaluate
from catdog.model import ModelConfig, build_model
from catdog.train import TrainConfig, train


def candidate(scale, rng):
    """Draw a network and a recipe."""
    pick = lambda values: values[rng.integers(len(values))]  # noqa: E731 - a name for two words
    network = ModelConfig(
        stem_width=pick(scale.stems),
        body_width=pick(scale.bodies),
        body_repeats=pick(scale.repeats),
        share_body=False,
        dropout=float(rng.uniform(0, 0.4)),
        image_size=scale.sweep_size,
    )
    recipe = TrainConfig(
        learning_rate=float(10 ** rng.uniform(-3, -2.3)),
        batch_size=pick((scale.batch_size, 2 * scale.batch_size, 4 * scale.batch_size)),
        optimizer="adamw",
        weight_decay=float(10 ** rng.uniform(-2.5, -0.7)),
        schedule="one_cycle",
        augmentation=pick(("crop", "color", "color")),
        label_smoothing=float(rng.uniform(0, 0.15)),
    )
    return network, recipe


class Search:
    """Random search; the best go on to the next rung and are trained anew for more epochs, until time is up."""

    def __init__(self, scale, source, device, seed, seconds, output):
        self.scale, self.device, self.output = scale, device, output
        self.rng, self.seed = np.random.default_rng(seed), seed
        self.began, self.seconds = time.monotonic(), seconds
        self.data = load_data(source, scale.sweep_size)
        self.best, self.num_trials = 0.0, 0

    def left(self, share):
        """Seconds until `share` of all is used."""
        return self.began + share * self.seconds - time.monotonic()

    def run(self):
        """Return the best validation accuracy and the number of trials; the best weights are in the file."""
        tried = [self.trial(*candidate(self.scale, self.rng), self.scale.rungs[0])]
        while self.left(0.3) > tried[-1][1] and len(tried) < self.scale.most_trials:
            tried.append(self.trial(*candidate(self.scale, self.rng), self.scale.rungs[0]))
        short, long = self.scale.rungs
        again = []
        for _, seconds, network, recipe in sorted(tried, key=lambda one: -one[0])[: max(2, len(tried) // 4)]:
            if not again or self.left(0.6) > seconds * long / short:
                again.append(self.trial(network, recipe, long))
        _, seconds, network, recipe = max(again, key=lambda one: one[0])
        most = min(self.scale.most_epochs, int(0.9 * self.left(1) / (seconds / long)))
        if most > long:
            self.trial(network, recipe, most)
        return self.best, self.num_trials

    def trial(self, network, recipe, num_epochs):
        """Train from scratch; return the best validation accuracy, the seconds, and what was trained."""
        self.num_trials += 1
        recipe = replace(recipe, epochs=num_epochs, seed=1000 * self.seed + self.num_trials)
        began, best = time.monotonic(), 0.0
        model = build_model(network, recipe.seed)
        try:
            for epoch in train(model, recipe, self.data.training, self.data.validation, device=self.device):
                best = max(best, epoch.val_accuracy)
                if epoch.val_accuracy > self.best:
                    self.best = epoch.val_accuracy
                    self.save(model, recipe, epoch)
                if self.left(1) < 0:
                    break
        except FloatingPointError:
            best = 0.0
        return best, time.monotonic() - began, network, recipe

    def save(self, model, recipe, epoch):
        header = {
            "classes": self.data.classes,
            "preprocessing": preprocessing(self.scale.sweep_size),
            "metrics": {"validation": epoch.figures()},
            "provenance": {"training": asdict(recipe), "data": self.data.fingerprint},
        }
        save_model(model, self.output, header)


def search(*arguments):
    return Search(*arguments).run()


def workers_that_pay(bench):
    """The fastest number of workers of those measured at the sweep's size; 2 where none was."""
    scale, rows = bench.scale, bench.figures.get("workers", {})
    rates = {count: rows.get(f"{scale.sweep_size} px, workers {count}: images/s in sum") for count in scale.counts}
    if not all(rates.values()):
        return 2
    return next(count for count in scale.counts if rates[count] > 0.9 * max(rates.values()))


def sweep(bench):
    """Best test accuracy from scratch that a short search finds; chosen by validation, tested once."""
    count, seconds = workers_that_pay(bench), min(300, bench.ends - time.monotonic() - 15)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(count, start_worker, (catdog.train.STEP, {})) as pool:
        files = [Path(folder) / f"{seed}.safetensors" for seed in range(count)]
        common = bench.scale, bench.source, bench.device
        tasks = [pool.apply_async(search, (*common, seed, seconds - 10, file)) for seed, file in enumerate(files)]
        results = [task.get(seconds + 10) for task in tasks]
        best = max(range(count), key=lambda seed: results[seed][0])
        model, header = load_model(files[best])
    bench.about["best of the sweep"] = {"model": header["model"], **header["provenance"], **header["metrics"]}
    print(f"  {json.dumps(bench.about['best of the sweep'])}")
    test = load_test(bench.source, bench.scale.sweep_size).subset
    accuracy = evaluate(model, test, device=bench.device).accuracy
    low, high = interval(accuracy, len(test))
    yield "processes", count
    yield "seconds given", seconds
    yield "trials", sum(num_trials for _, num_trials in results)
    yield "validation accuracy of the best", results[best][0]
    yield "test accuracy of the best (goal 0.97)", accuracy
    yield "95 % from", low
    yield "95 % to", high


def interval(share, n, z=1.96):
    """Wilson's score interval."""
    middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
