"""Which pruner finds the best model soonest: recorded learning curves, replayed under many.

    python run_sweep.py space.json --name curves --pruner none --confirm 0 --promote never --tracking off ...
    python benchmarks/replay.py --record runs/curves --output benchmarks/curves.json    # numbers alone, no pictures
    python benchmarks/replay.py benchmarks/curves_*.json [--trials 16] [--workers 2] [--orders 300]

Every trial of a recorded sweep was trained to its end. A replay draws some of them in a random order, the baseline
first, has simulated workers train them, and shows a real Optuna pruner what run_sweep.py would: after each epoch the
best loss so far. An epoch of a trial costs the seconds that its fastest one took. Columns, over all orders:

    time      until the last trial ended, as a share of what it takes without a pruner
    to best   until some trial came within 2 % of the best loss that is to be found, likewise (median; never counts as
              longer than any)
    found     sweeps in which that happened
    half      regret, in loss, of the best trial so far when half the time is over that it takes without a pruner
    regret    of the best complete trial in the end: its loss less the best that was to be found; mean and 95 % bound
    lost      sweeps in which the pruner stopped the trial that would have been the best
"""

import argparse
import csv
import json
import os
import platform
import sys
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from search.schedule import Cost, play
from search.study import open_study, parameters_of

NEAR = 1.02  # times the best loss: near enough


def record(folder):
    """Return the curves of a finished sweep, the baseline first."""
    trials = []
    for trial in open_study(folder).get_trials(states=[TrialState.COMPLETE]):
        rows = list(csv.DictReader((folder / f"trials/{trial.number:04}/history.csv").open()))
        seconds = min(float(row["seconds"]) for row in rows)
        losses = [round(float(row["val_loss"]), 5) for row in rows]
        trials.append({"parameters": parameters_of(trial), "seconds": round(seconds, 3), "val_loss": losses})
    return trials


def pruners(epochs):
    """Return the pruners to compare, by name."""
    yield "none", NopPruner
    for fewest, factor in dict.fromkeys([(1, 3), (1, 2), (2, 2), (2, 3), (3, 2), (3, 3), (4, 2), (-(-epochs // 3), 2)]):
        if fewest < epochs:
            halving = partial(SuccessiveHalvingPruner, min_resource=fewest, reduction_factor=factor)
            yield f"asynchronous halving from {fewest}, 1/{factor}", halving
            hyperband = partial(HyperbandPruner, fewest, epochs, factor)
            yield f"hyperband from {fewest}, 1/{factor}", hyperband
    for warm_up in range(min(4, epochs - 1)):
        yield f"median after {warm_up}", partial(MedianPruner, n_startup_trials=5, n_warmup_steps=warm_up)
    for warm_up in (1, 2):
        yield f"best quarter after {warm_up}", partial(PercentilePruner, 25.0, 5, warm_up)


def replay(curves, seconds, make_pruner, num_workers, name):
    """Play one sweep through; return of all epochs when they ended and the best loss so far, and who completed."""
    costs = [Cost(0.0, each, curves.shape[1]) for each in seconds]
    epochs = list(play(name, make_pruner(), costs, lambda trial, epoch: curves[trial, epoch - 1], num_workers))
    when = np.array([epoch.seconds for epoch in epochs])
    value = np.array([curves[epoch.trial, epoch.number - 1] for epoch in epochs])
    return when, value, [epoch.trial for epoch in epochs if epoch.state == TrialState.COMPLETE]


def figures(curves, seconds, make_pruner, num_workers, orders):
    """Return one row of figures for each order; times in seconds."""
    rows = []
    for number, order in enumerate(orders):
        part, costs = curves[order], seconds[order]
        best = part[:, -1].min()
        when, value, complete = replay(part, costs, make_pruner, num_workers, f"sweep {number}")
        whole = replay(part, costs, NopPruner, num_workers, "")[0][-1]
        near = when[value <= NEAR * best]
        half = value[when <= whole / 2].min() - best
        regret = part[complete, -1].min() - best
        rows.append((when[-1] / whole, near[0] / whole if len(near) else np.inf, half, regret, regret > 0))
    return np.array(rows)


def compare(path, options):
    trials = json.loads(path.read_text())["trials"]
    curves = np.minimum.accumulate([trial["val_loss"] for trial in trials], axis=1)  # as the pruner sees them
    seconds = np.array([trial["seconds"] for trial in trials])
    random = np.random.default_rng(0)
    num = min(options.trials, len(trials)) - 1
    orders = [[0, *random.choice(np.arange(1, len(trials)), num, replace=False)] for _ in range(options.orders)]
    print(f"\n{path.name}: {len(trials)} trials of {curves.shape[1]} epochs, final losses", end=" ")
    print(
        f"{curves[:, -1].min():.3f} to {curves[:, -1].max():.3f}, baseline {curves[0, -1]:.3f}; an epoch takes", end=" "
    )
    print(f"{seconds[1:].min():.1f} to {seconds[1:].max():.1f} s, the baseline's {seconds[0]:.1f} s")
    ranks = curves.argsort(axis=0).argsort(axis=0)
    print("rank correlation of the loss after each epoch with the last:", end=" ")
    print(*(f"{np.corrcoef(ranks[:, n], ranks[:, -1])[0, 1]:.2f}" for n in range(curves.shape[1])))
    print(f"{'':38}{'time':>6}{'to best':>9}{'found':>8}{'half':>8}{'regret':>16}{'lost':>8}")
    for name, make_pruner in pruners(curves.shape[1]):
        time, near, half, regret, lost = figures(curves, seconds, make_pruner, options.workers, orders).T
        print(f"{name:38}{time.mean():6.2f}{np.median(near):9.2f}{np.isfinite(near).mean():8.0%}", end="")
        print(f"{half.mean():8.4f}{regret.mean():8.4f} {np.quantile(regret, 0.95):7.4f}{lost.mean():8.0%}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="*", type=Path)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--orders", type=int, default=300)
    parser.add_argument("--record", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--about", default="", help="what was recorded: pictures, size, machine")
    options = parser.parse_args()
    if options.record:
        lines = ",\n".join(json.dumps(trial) for trial in record(options.record))
        options.output.write_text(f'{{"about": {json.dumps(options.about)}, "trials": [\n{lines}\n]}}\n')
        return
    print(f"{options.orders} orders of {options.trials} trials, {options.workers} workers;", end=" ")
    print(f"{os.cpu_count()} cores, {platform.machine()}, optuna {optuna.__version__}")
    for path in options.curves or sorted((ROOT / "benchmarks").glob("curves_*.json")):
        compare(path, options)


if __name__ == "__main__":
    main()
