"""Which pruner finds the best model soonest: recorded learning curves, replayed under many.

    python run_sweep.py space.json --name curves --pruner none --confirm 0 --promote never --tracking off ...
    python benchmarks/replay.py --record runs/curves --output benchmarks/curves.json    # numbers alone, no images
    python benchmarks/replay.py benchmarks/curves_*.json [--trials 16] [--workers 2] [--orders 300]

Every trial of a recorded sweep was trained to its end. A replay draws some of them in a random order, the baseline
first, has simulated workers train them, and shows a real Optuna pruner what run_sweep.py would: after each epoch the
best loss so far. An epoch of a trial costs the seconds that it took or, in older records, that the trial's fastest one
took. Columns, over all orders:

    time      until the last trial ended, as a share of what it takes without a pruner
    to best   until some trial came within 2 % of the best loss that is to be found, likewise (median; never counts as
              longer than any)
    found     sweeps in which that happened
    regret    of the best complete trial in the end: its loss less the best that was to be found; mean and 95 % bound
    lost      sweeps in which the pruner stopped the trial that would have been the best
    as long   regret where the time that the pruner saves goes into more trials: of the best complete trial at the time
              that the sweep takes without a pruner, beside the best of all that are recorded; mean, and its standard
              error beside no pruner
"""

import argparse
import csv
import json
import os
import platform
import sys
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import optuna
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from search.schedule.simulator import TrialCost, simulate_search
from search.study.sweep import Sweep, load_study
from search.study.trials import parameters_of

NEAR = 1.02  # times the best loss: near enough


def record(folder):
    """Return the curves of a finished sweep, the baseline first."""
    trials = []
    for trial in load_study(folder).get_trials(states=[TrialState.COMPLETE]):
        rows = list(csv.DictReader((folder / f"trials/{trial.number:04}/history.csv").open()))
        seconds = [round(float(row["seconds"]), 3) for row in rows]
        losses = [round(float(row["val_loss"]), 5) for row in rows]
        trials.append({"parameters": parameters_of(trial), "seconds": seconds, "val_loss": losses})
    return trials


def pruners(epochs):
    """Return the pruners to compare, by name."""
    yield "none", NopPruner
    yield "hyperband as run_sweep.py has it", Sweep(ROOT, None, epochs, 1, "hyperband").make_pruner
    for fewest, factor in product(range(1, min(5, epochs)), (2, 3, 4)):
        halving = partial(SuccessiveHalvingPruner, min_resource=fewest, reduction_factor=factor)
        yield f"asynchronous halving from {fewest}, 1/{factor}", halving
        hyperband = partial(HyperbandPruner, fewest, epochs, factor)
        if epochs / fewest >= factor:  # else there is one bracket, which is halving
            yield f"hyperband from {fewest}, 1/{factor}", hyperband
    for warm_up in range(min(4, epochs - 1)):
        yield f"median after {warm_up}", partial(MedianPruner, n_startup_trials=5, n_warmup_steps=warm_up)
    for warm_up in (1, 2):
        yield f"best quarter after {warm_up}", partial(PercentilePruner, 25.0, 5, warm_up)


def replay(curves, seconds, pruner, num_workers, name):
    """Play a sweep through; return of each epoch when it ended, the trial's best loss so far, whether it completed."""
    costs = [TrialCost(0.0, 1.0, curves.shape[1], each.tolist()) for each in seconds]
    epochs = list(simulate_search(name, pruner, costs, lambda trial, epoch: curves[trial, epoch - 1], num_workers))
    value = np.array([curves[epoch.trial, epoch.number - 1] for epoch in epochs])
    complete = np.array([epoch.state == TrialState.COMPLETE for epoch in epochs])
    return np.array([epoch.seconds for epoch in epochs]), value, complete


def figures(curves, seconds, make_pruner, order, options):
    """Return what becomes of the sweep whose trials are the first of `order`."""
    part = order[: options.trials]
    play_through = partial(replay, num_workers=options.workers, name=f"sweep {order}")
    whole = play_through(curves[part], seconds[part], NopPruner())[0][-1]
    when, value, complete = play_through(curves[part], seconds[part], make_pruner())
    best = curves[part, -1].min()
    near = when[value <= NEAR * best]
    regret = value[complete].min() - best
    when_all, value_all, complete_all = play_through(curves[order], seconds[order], make_pruner())
    as_long = value_all[complete_all & (when_all <= whole)].min() - curves[:, -1].min()
    return when[-1] / whole, near[0] / whole if len(near) else np.inf, regret, regret > 0, as_long


def compare(path, options):
    trials = json.loads(path.read_text())["trials"]
    curves = np.minimum.accumulate([trial["val_loss"] for trial in trials], axis=1)  # as the pruner sees them
    seconds = np.array([np.broadcast_to(trial["seconds"], curves.shape[1]) for trial in trials])
    random = np.random.default_rng(0)
    orders = [[0, *random.permutation(np.arange(1, len(trials)))] for _ in range(options.orders)]
    losses = curves[:, -1]
    print(f"\n{path.name}: {len(trials)} trials of {curves.shape[1]} epochs, final losses", end=" ")
    print(
        f"{losses.min():.3f} to {losses.max():.3f}, mean {losses.mean():.3f}, the first trial's {losses[0]:.3f};",
        end=" ",
    )
    means = seconds.mean(axis=1)
    print(f"an epoch takes {means[1:].min():.1f} to {means[1:].max():.1f} s, the first trial's {means[0]:.1f} s")
    ranks = curves.argsort(axis=0).argsort(axis=0)
    print("rank correlation of the loss after each epoch with the last:", end=" ")
    print(*(f"{np.corrcoef(ranks[:, n], ranks[:, -1])[0, 1]:.2f}" for n in range(curves.shape[1])))
    print(f"{'':38}{'time':>6}{'to best':>9}{'found':>7}{'regret':>9}{'95 %':>8}{'lost':>6}{'as long':>17}")
    unpruned = None
    for name, make_pruner in pruners(curves.shape[1]):
        rows = [figures(curves, seconds, make_pruner, order, options) for order in orders]
        time, near, regret, lost, as_long = np.array(rows).T
        unpruned = as_long if unpruned is None else unpruned
        error = (as_long - unpruned).std() / len(orders) ** 0.5
        print(
            f"{name:38}{time.mean():6.2f}{np.median(near):9.2f}{np.isfinite(near).mean():7.0%}{regret.mean():9.4f}",
            end="",
        )
        print(f"{np.quantile(regret, 0.95):8.4f}{lost.mean():6.0%}{as_long.mean():9.4f} ±{error:.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="*", type=Path)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--orders", type=int, default=300)
    parser.add_argument("--record", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--about", default="", help="what was recorded: images, size, machine")
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
