"""How often is a model promoted that is no better, and how often is a better one found?

    python benchmarks/promotion.py

Simulated sweeps over equal configurations. Each takes the best few of its trials by validation images, confirms them
with fresh seeds and compares the winner with a champion on held-out test images, all with the project's own functions;
beside it stands what is usual: take the best trial, believe its validation accuracy, replace the champion, which was
chosen in the same way, if that is higher.

Every image's outcome is drawn from what networks did on real photographs that differ in their seed alone:
real_outcomes.npz holds the winner's mean logit margin of each validation image, and its deviation between the seeds
of the same configuration. `--record runs/NAME` writes it anew from a sweep that was confirmed.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from search.analysis.statistics import (
    Outcomes,
    accuracy_interval,
    compare,
    configuration_difference,
    configuration_interval,
    mean_interval,
    seed_noise,
)
from search.study.sweep import CANDIDATES, load_study

NUM_TRIALS, NUM_CONFIRMED, NUM_SEEDS = 20, 3, 2
NUM_VALIDATION, NUM_TEST = 1200, 2000
RESAMPLES = 2000  # of the bootstrap: a fifth of the project's own, for the time's sake
REAL = Path(__file__).with_name("real_outcomes.npz")


@dataclass(frozen=True)
class World:
    """Images, and networks of which each answers in its own way."""

    margins: np.ndarray  # of each real image: mean logit of the true class less the other's
    deviation: np.ndarray  # of it between networks

    def images(self, num, random):
        return random.integers(0, len(self.margins), num)

    def ask(self, images, random, shift=0.0):
        """Outcomes of a fresh network: its margin on each image is drawn anew, `shift` makes it a better one."""
        margin = self.margins[images] + shift + self.deviation[images] * random.standard_normal(len(images))
        return Outcomes(np.logaddexp(0, -margin), margin > 0)

    def truth(self, shift=0.0):
        """Accuracy and loss of such a network over all images there could be: exactly, and by quadrature."""
        margins = self.margins + shift
        accuracy = np.mean([NormalDist().cdf(m / d) for m, d in zip(margins, self.deviation, strict=True)])
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        losses = np.logaddexp(0, -(margins[:, None] + self.deviation[:, None] * nodes))
        return float(accuracy), float((losses @ (weights / weights.sum())).mean())

    def shift_for(self, gain):
        """Find the shift that makes a network's accuracy better by `gain`."""
        low, high = 0.0, 5.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.truth(middle)[0] - self.truth()[0] < gain else (low, middle)
        return high


def sweep(world, random, gain):
    """One sweep of equal configurations, all better than the champion by `gain`; what was claimed and done."""
    validation, test = world.images(NUM_VALIDATION, random), world.images(NUM_TEST, random)
    trials = [world.ask(validation, random, gain) for _ in range(NUM_TRIALS)]
    champion = world.ask(test, random)
    champions_best = max(world.ask(validation, random).correct.mean() for _ in range(NUM_TRIALS))
    best = max(range(NUM_TRIALS), key=lambda number: trials[number].correct.mean())
    runs = np.stack(
        [[world.ask(validation, random, gain).loss for _ in range(NUM_SEEDS)] for _ in range(NUM_CONFIRMED)]
    )
    noise = seed_noise(list(runs))
    challenger = world.ask(test, random, gain)
    compared = compare(challenger, champion, RESAMPLES)
    return {
        "promoted as better": compared.verdict == "better",
        "naive": trials[best].correct.mean() > champions_best,
        "accuracy gap": compared.accuracy_interval,
        "loss gap": compared.loss_interval,
        "test accuracy": accuracy_interval(challenger.correct.mean(), NUM_TEST),
        "mean over seeds": configuration_interval(runs[0], noise),
        "gap between configurations": configuration_difference(runs[0], runs[1], noise),
        "naive accuracy": mean_interval(trials[best].correct),
        "naive value": trials[best].correct.mean(),
        "value": challenger.correct.mean(),
    }


def record(folder):
    """Keep of a confirmed sweep what the simulation needs."""
    candidates = load_study(folder).user_attrs[CANDIDATES]
    margins = []  # of each configuration: (seeds, images)
    for candidate in candidates:
        losses = [np.load(folder / f"confirmation/{run:04}/outcomes.npz")["val_loss"] for run in candidate["runs"]]
        likely = np.clip(np.exp(-np.array(losses, dtype=np.float64)), 1e-7, 1 - 1e-7)  # what the true class was given
        margins.append(np.log(likely / (1 - likely)))
    variance = np.mean([found.var(0, ddof=1) for found in margins], axis=0)
    np.savez(REAL, margins=margins[0].mean(0).astype(np.float32), deviation=np.sqrt(variance).astype(np.float32))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    if options.record:
        record(options.record)
    num = options.sweeps
    real = np.load(REAL)
    world = World(real["margins"], real["deviation"])
    (accuracy, loss), shift = world.truth(), world.shift_for(0.01)
    better_accuracy, better_loss = world.truth(shift)
    random = np.random.default_rng(1)
    equal = [sweep(world, random, 0.0) for _ in range(num)]
    gained = [sweep(world, random, shift) for _ in range(num)]

    def share(sweeps, name):
        return np.mean([entry[name] for entry in sweeps])

    def coverage(sweeps, name, truth):
        return np.mean([entry[name][0] <= truth <= entry[name][1] for entry in sweeps])

    console = Console(width=110)
    console.print(
        f"{num} sweeps of {NUM_TRIALS} trials; true accuracy {accuracy:.2%}, one point more {better_accuracy:.2%}; "
        f"{NUM_VALIDATION} validation and {NUM_TEST} test images"
    )
    table = Table("", "this project", "take the best")
    table.add_row(
        "no better, promoted as better", f"{share(equal, 'promoted as better'):.1%}", f"{share(equal, 'naive'):.1%}"
    )
    table.add_row(
        "one point better, found", f"{share(gained, 'promoted as better'):.1%}", f"{share(gained, 'naive'):.1%}"
    )
    claims = [
        ("accuracy of the winner", "test accuracy", accuracy, coverage(equal, "naive accuracy", accuracy)),
        ("its gap to the champion, accuracy", "accuracy gap", 0.0, None),
        ("its gap to the champion, loss", "loss gap", 0.0, None),
        ("a configuration's mean loss", "mean over seeds", loss, None),
        ("the gap between two", "gap between configurations", 0.0, None),
    ]
    for title, name, truth, naive in claims:
        shown = "" if naive is None else f"{naive:.1%}"
        table.add_row(f"95 % interval covers {title}", f"{coverage(equal, name, truth):.1%}", shown)
    gaps = [("accuracy", better_accuracy - accuracy), ("loss", better_loss - loss)]
    for title, truth in gaps:
        table.add_row(f"the same, one point better: {title}", f"{coverage(gained, f'{title} gap', truth):.1%}", "")
    flattery = [f"{100 * (share(equal, name) - accuracy):+.2f} points" for name in ("value", "naive value")]
    table.add_row("accuracy claimed beyond the true one, mean", *flattery)
    console.print(table)


if __name__ == "__main__":
    main()
