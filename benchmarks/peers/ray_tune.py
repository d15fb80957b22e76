"""Ray Tune with ASHA and its Optuna search, two trials at a time; the second argument names the training.

ASHA is set up as in Ray's PyTorch tutorial: it decides from the first epoch on and lets half go on.
"""

import sys
from functools import partial

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.peers.task import note, read_task, suggest

NUM_WORKERS = 2


def losses_of_ours(parameters, task):
    """Train by our own generator, on images that are decoded once."""
    from catdog.data.dataset import load_data
    from catdog.model import build_model
    from catdog.train import train
    from pipeline.task import configure

    shape, recipe = configure(parameters, {"epochs": task.epochs, "image_size": task.image_size})
    data = load_data(task.data, task.image_size)
    for epoch in train(build_model(shape), recipe, data.training, data.validation):
        yield epoch.val_loss


def trainable(task, kind, parameters):
    if kind == "tutorial":
        from benchmarks.peers.tutorial import losses
    else:
        losses = losses_of_ours
    trial = tune.get_context().get_trial_id()
    for epoch, loss in enumerate(losses(parameters, task), 1):
        note(task, trial, epoch, loss)
        tune.report({"val_loss": loss})


def main():
    task = read_task()
    ray.init(num_cpus=NUM_WORKERS, include_dashboard=False)
    tuner = tune.Tuner(
        partial(trainable, task, sys.argv[2]),
        tune_config=tune.TuneConfig(
            metric="val_loss",
            mode="min",
            num_samples=task.trials,
            max_concurrent_trials=NUM_WORKERS,
            search_alg=OptunaSearch(partial(suggest, task), metric="val_loss", mode="min"),
            scheduler=ASHAScheduler(max_t=task.epochs, grace_period=1, reduction_factor=2),
        ),
        run_config=tune.RunConfig(name="sweep", storage_path=f"{task.log}.ray"),
    )
    return int(bool(tuner.fit().errors))


if __name__ == "__main__":
    raise SystemExit(main())
