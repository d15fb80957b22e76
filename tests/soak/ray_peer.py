"""A sweep of counted epochs, made crash-safe as Ray Tune's documentation says: for comparison, under the same faults.

    python tests/soak/ray_peer.py FOLDER NUM_TRIALS NUM_WORKERS [--seconds S]

A trial whose process died goes on from its checkpoint (FailureConfig); the same command goes on with the experiment in
FOLDER (Tuner.restore). Each command starts a Ray of its own, and ends first what an earlier one left running. A line of
JSON at the end says what the result grid and FOLDER/epochs.log hold.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
import ray
from ray import tune

EPOCHS, MAX_RETRIES = 4, 3
NAME = "sweep"


def train(config, folder, seconds):
    number = tune.get_context().get_trial_name().rpartition("_")[2]
    losses = []
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as directory:
            losses = json.loads((Path(directory) / "losses.json").read_text())
    for epoch in range(len(losses) + 1, EPOCHS + 1):
        with (folder / "epochs.log").open("a") as log:
            log.write(f"{int(number)} {epoch}\n")
        time.sleep(seconds)
        losses.append(abs(config["x"] - 0.3) + 1 / epoch)
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "losses.json").write_text(json.dumps(losses))
            tune.report({"loss": losses[-1]}, checkpoint=tune.Checkpoint.from_directory(directory))


def make_tuner(options):
    """Make the experiment in the folder, or go on with the one that is there."""
    trainable = tune.with_resources(partial(train, folder=options.folder, seconds=options.seconds), {"cpu": 1})
    if tune.Tuner.can_restore(str(options.folder / NAME)):
        path = str(options.folder / NAME)
        return tune.Tuner.restore(path, trainable, resume_unfinished=True, restart_errored=True)
    return tune.Tuner(
        trainable,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=options.num_trials,
            max_concurrent_trials=options.num_workers,
            reuse_actors=True,  # else each trial starts a process
        ),
        run_config=tune.RunConfig(
            name=NAME,
            storage_path=str(options.folder),
            failure_config=tune.FailureConfig(max_failures=MAX_RETRIES),
            verbose=0,
        ),
    )


def outcome(grid, folder, num_trials):
    """Say what came of it."""
    ended = [
        result for result in grid if not result.error and (result.metrics or {}).get("training_iteration") == EPOCHS
    ]
    log = folder / "epochs.log"
    epochs = log.read_text().splitlines() if log.exists() else []
    return {
        "finished": len(ended),
        "asked": num_trials,
        "epochs_run": len(epochs),
        "epochs_needed": num_trials * EPOCHS,
    }


def end_what_was_left(folder):
    """Kill the processes of an earlier command on this folder: Ray's outlive a parent that is killed."""
    num_killed = 0
    for process in psutil.process_iter(["cmdline", "environ"]):
        belongs = (process.info["environ"] or {}).get("SWEEP_FOLDER") == str(folder)
        if belongs and process.pid != os.getpid():
            process.kill()
            num_killed += 1
    if num_killed:
        print(f"{num_killed} processes of an earlier command were still running", file=sys.stderr)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("num_trials", type=int)
    parser.add_argument("num_workers", type=int)
    parser.add_argument("--seconds", type=float, default=0.15, help="of an epoch")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    return options


def main():
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    end_what_was_left(options.folder)
    os.environ["SWEEP_FOLDER"] = str(options.folder)  # inherited by all that Ray starts
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ray.init(
        "local", num_cpus=options.num_workers, include_dashboard=False, configure_logging=False, log_to_driver=False
    )
    try:
        grid = make_tuner(options).fit()
    finally:
        ray.shutdown()
    print(json.dumps(outcome(grid, options.folder, options.num_trials)))


if __name__ == "__main__":
    main()
