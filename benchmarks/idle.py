"""How much of their time do workers idle, with runs that are begun before the search has ended, and without them?

    python benchmarks/idle.py [--rounds 3] [--scale 0.15]

Real study, real worker processes, the best three confirmed by two runs each; no pruner, so that both ways do the same
work. Nothing is trained: trials and runs take the seconds, scaled, and have the losses that trials of
benchmarks/curves_drawn.json were recorded with, the first one the baseline's; each round draws the others anew. What is
measured is from the start of the first trial to the end of the last run.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console
from rich.table import Table

from search.study.confirmation import choose, create_confirmation
from search.study.create import create_study
from search.workers.supervisor import run_sweep, worker_pool, worker_slots
from tests.servers.counting_sweep import make_sweep

RECORDED = json.loads((ROOT / "benchmarks/curves_drawn.json").read_text())["trials"]
EPOCHS, NUM_CONFIRMED, NUM_REPEATS = 3, 3, 2
SIZES = ((12, 2), (40, 8))  # trials, workers
WAYS = {"one after the other": False, "ahead": True}


@dataclass(frozen=True)
class Measured:
    seconds: float
    idle: float  # share of the workers' time that went to no trial and no run
    displaced: float  # share of it that went to runs that do not count
    between: float  # seconds from the end of the last trial until a run begins after it


def epochs(trials, scale, context):
    """Take as long as a recorded trial, and be as good."""
    trial = trials[context.number if context.confirms is None else context.confirms]
    for epoch, loss in enumerate(trial["val_loss"], 1):
        time.sleep(scale * trial["seconds"] / EPOCHS)
        yield {"epoch": epoch, "loss": loss, "seconds": scale * trial["seconds"] / EPOCHS}


def measure(trials, num_workers, scale, ahead):
    with tempfile.TemporaryDirectory() as home:
        sweep = replace(make_sweep(Path(home) / "runs/sweep", len(trials), "none"), epochs=EPOCHS)
        study = create_study(sweep, {})
        runs = create_confirmation(study, NUM_CONFIRMED, NUM_REPEATS)
        context, where = partial(epochs, trials, scale), worker_slots(["cpu"], num_workers, num_workers)
        if ahead:
            with worker_pool([(study, None), (runs, None)], context, where) as pool:
                pool.complete(study, lambda: None)
                choose(runs)
                pool.complete(runs, lambda: None)
        else:
            run_sweep(study, context, where, lambda: None)
            choose(runs)
            run_sweep(runs, context, where, lambda: None)
        return figures(study.trials(), runs, num_workers)


def figures(trials, runs, num_workers):
    made = runs.trials()
    counted = {run.number for run in runs.counted(made)}
    assert len(counted) == NUM_CONFIRMED * NUM_REPEATS
    searched = max(trial.datetime_complete for trial in trials)
    first, last = min(t.datetime_start for t in trials), max(run.datetime_complete for run in made)
    later = [run.datetime_start for run in made if run.datetime_start >= searched]
    whole = num_workers * (last - first).total_seconds()
    surplus = sum(run.duration.total_seconds() for run in made if run.number not in counted)
    return Measured(
        seconds=(last - first).total_seconds(),
        idle=1 - sum(trial.duration.total_seconds() for trial in (*trials, *made)) / whole,
        displaced=surplus / whole,
        between=(min(later, default=searched) - searched).total_seconds(),
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=0.15, help="of the recorded seconds")
    options = parser.parse_args()
    dice = random.Random(1)
    measured = {(size, way): [] for size in SIZES for way in WAYS}
    for _ in range(options.rounds):
        for num_trials, num_workers in SIZES:
            trials = [RECORDED[0], *dice.choices(RECORDED[1:], k=num_trials - 1)]
            for way, ahead in WAYS.items():
                found = measure(trials, num_workers, options.scale, ahead)
                print(f"{num_trials} trials, {num_workers} workers, {way}: {found}", flush=True)
                measured[(num_trials, num_workers), way].append(found)
    table = Table("trials", "workers", "confirmed", "idle", "displaced", "until the next run", "seconds")
    for ((num_trials, num_workers), way), found in measured.items():
        idle, displaced, between, seconds = (
            median(getattr(one, name) for one in found) for name in ("idle", "displaced", "between", "seconds")
        )
        table.add_row(
            *(str(num_trials), str(num_workers), way, f"{idle:.1%}", f"{displaced:.1%}"),
            *(f"{between:.1f} s", f"{seconds:.1f}"),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
