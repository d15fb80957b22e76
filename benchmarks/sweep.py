"""A whole sweep beside what people would use instead: time to finish, time to the loss that every one of them reaches.

    python benchmarks/sweep.py --data FOLDER [--rounds 3] [--peers a,b,c,d,e,f] [--images N] [--epochs N] [--small]

Six commands search the same space (peers/space.json) with the same number of trials, epochs at most, photographs,
split, pixels and two cores, two trials at a time, a thread each, one command after another, round by round:

a  ours: run_sweep.py, Hyperband, no confirmation, no promotion, no tracking, --no-baseline
b  the tutorial: study.optimize in two processes on one SQLite file, with Optuna's defaults (peers/optuna_study.py)
c  Ray Tune with ASHA and its Optuna search, and the tutorial's training (peers/ray_tune.py)
d  the same with our training generator
e  `comet optimize -j 2` with the tutorial's training (peers/comet_script.py); Comet stands on loopback, where its
   bayes is random search
f  ours, but with the baseline network as trial 0, as it comes; the space does not hold it

The tutorial's training (peers/tutorial.py) is ImageFolder, DataLoader and float32 on our network with our recipe.
Time runs from the start of the command, imports and decoding included; nothing is decoded before. In each round the
loss to reach is the best validation loss of the peer that ends with the worst one. For each epoch that has ended there
is a line with its time: the peers write it, ours is seen in history.csv within a tenth of a second. The number of the
round is the seed of (a), (e) and (f); the others draw theirs, as they do by default. Figures are medians over rounds,
ratios medians of the rounds' ratios to (a). Needs the extra `bench`.
"""

import argparse
import contextlib
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers.measure import measure
from benchmarks.peers.task import Task
from tests.servers.comet_server import CometServer

PEERS = {
    "a": "ours",
    "b": "tutorial",
    "c": "Ray, tutorial's training",
    "d": "Ray, our training",
    "e": "comet optimize",
    "f": "ours, baseline network 1st",
}
NUM_CORES = 2
IMAGE_SIZE = 64  # pixels
QUIET = {  # no connection but those to loopback
    "RAY_USAGE_STATS_ENABLED": "0",
    "COMET_AUTO_LOG_ENV_DETAILS": "false",
    "COMET_ERROR_TRACKING_ENABLE": "false",
}


def lay_out(source, folder, num_images):
    """Link a stratified part of the photographs into train/, validation/ and test/, split as ours splits.

    The test part is there because ours would else take validation/ for it; nobody opens its images.
    """
    from catdog.data.dataset import load_data
    from catdog.data.sources import list_images

    listing, subset = list_images(Path(source)), folder / "subset"
    link(subset / "train", [p for label in (0, 1) for p in some_of(listing.training, label, num_images // 2)])
    link(subset / "test", [p for label in (0, 1) for p in some_of(listing.test or listing.training, label, 4)])
    data, paths = load_data(str(subset), IMAGE_SIZE), list_images(subset).training
    link(folder / "data/train", [paths[row] for row in data.training.rows])
    link(folder / "data/validation", [paths[row] for row in data.validation.rows])
    (subset / "test").rename(folder / "data/test")
    return len(data.training), len(data.validation)


def some_of(photographs, label, count):
    of_class = [photograph for photograph in photographs if photograph.label == label]
    return random.Random(0).sample(of_class, min(count, len(of_class)))


def link(folder, photographs):
    for photograph in photographs:
        file = Path(photograph.path).resolve()
        path = folder / ("cats", "dogs")[photograph.label] / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file)


def show(rounds):
    """Print a row per peer: medians over the rounds in which it ended."""
    print(f"{'':26}{'n':>3}{'trials':>8}{'epochs':>8}{'to finish':>11}{'/ ours':>8}", end="")
    print(f"{'to the loss':>13}{'/ ours':>8}{'best loss':>11}")
    for peer, name in PEERS.items():
        if mine := [runs for runs in rounds if peer in runs]:
            print(f"{peer}  {name:23}{row_of(peer, mine)}")


def row_of(peer, rounds):
    runs = [runs[peer] for runs in rounds]
    reached = [runs[peer].seconds_to(target_of(runs)) for runs in rounds]
    with_ours = [(runs[peer], runs["a"], target_of(runs)) for runs in rounds if "a" in runs]
    finish = [it.seconds / ours.seconds for it, ours, _ in with_ours]
    loss = [it.seconds_to(target) / ours.seconds_to(target) for it, ours, target in with_ours]
    return (
        f"{len(runs):3}{median(run.num_trials for run in runs):8.0f}{median(len(run.losses) for run in runs):8.0f}"
        f"{median(run.seconds for run in runs):9.1f} s{ratio(finish):>8}"
        f"{median(reached):11.1f} s{ratio(loss):>8}{median(run.best for run in runs):11.4f}"
    )


def target_of(runs):
    """Return the loss that all peers of a round reach."""
    return max(run.best for run in runs.values())


def median(values):
    return statistics.median(values)


def ratio(values):
    return f"{median(values):.2f}x" if values else ""


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=lambda words: words.split(","), default=list(PEERS), help="default: all")
    parser.add_argument("--images", type=int, default=1500, help="of the training part (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="at most, for each trial (default: %(default)s)")
    parser.add_argument(
        "--small", action="store_true", help="4 trials of 2 epochs, networks of a few channels: a check"
    )
    options = parser.parse_args()
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"--peers knows {','.join(PEERS)}, not {','.join(sorted(unknown))}")
    return options


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = parse()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])
    rounds = []
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sweep")))
        os.environ["CATDOG_CACHE"] = str(home / "cache")
        sizes = lay_out(options.data, home, options.images)
        epochs, trials = (2, 4) if options.small else (options.epochs, 16)
        task = Task(str(home / "data"), "", "", epochs, trials, IMAGE_SIZE)
        print(describe(task, sizes, len(os.sched_getaffinity(0))))
        server = stack.enter_context(CometServer())
        try:
            for number in range(1, options.rounds + 1):
                rounds.append({})
                measure_round(rounds[-1], options, task, number, environments(server, home))
        except KeyboardInterrupt:
            print("interrupted; what was measured:")
            return 130
        finally:
            show(rounds)
    return 0 if all(peer in runs for runs in rounds for peer in options.peers) else 1


def measure_round(runs, options, task, number, environment_of):
    """Measure all peers in turn; put what each came to into `runs` and print it."""
    for peer in options.peers:
        try:
            runs[peer] = run = measure(peer, task, number, environment_of(peer), small=options.small)
        except Exception as error:  # noqa: BLE001 - whatever one of them does wrong, the others have their rows
            print(f"round {number}: {peer} failed: {error}", flush=True)
            continue
        print(f"round {number}: {peer} {run.num_trials} trials, {len(run.losses)} epochs, ", end="")
        print(f"{run.seconds:.1f} s, best loss {run.best:.4f} after {run.seconds_to(run.best):.1f} s", flush=True)
    for peer, run in runs.items():
        target = target_of(runs)
        print(f"round {number}: {peer} reaches {target:.4f} after {run.seconds_to(target):.1f} s", flush=True)


def environments(server, home):
    """Return what says in which environment a peer runs."""
    common = {name: value for name, value in os.environ.items() if not name.startswith("COMET_")} | QUIET
    alone = {"OMP_NUM_THREADS": "1"}  # as ours and Ray have it by themselves
    particular = {"b": alone, "e": alone | server.environment(home)}
    return lambda peer: {**common, "COMET_API_KEY": "", **particular.get(peer, {})}


def describe(task, sizes, num_cores):
    packages = ("torch", "torchvision", "optuna", "ray", "comet-ml")
    return (
        f"{num_cores} cores, {platform.machine()}, python {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in packages)}\n"
        f"{sizes[0]} photographs to train, {sizes[1]} to validate, {task.image_size} px, "
        f"{task.trials} trials of at most {task.epochs} epochs, two at a time"
    )


if __name__ == "__main__":
    sys.exit(main())
