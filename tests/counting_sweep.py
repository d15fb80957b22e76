"""A real sweep, its ledger, workers and locks, whose training is counting: for tests that kill it.

    python tests/counting_sweep.py FOLDER NUM_TRIALS NUM_WORKERS [deadly]

Each epoch takes EPOCH_SECONDS and is written to FOLDER/epochs.log before its checkpoint. A deadly trial 1 ends its
worker each time it starts.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from search.ledger import Sweep, create_ledger
from search.space import load_space
from search.sweep import places, run_sweep, sole_owner

EPOCHS, EPOCH_SECONDS = 4, 0.15
SPACE = {
    "algorithm": "bayes",
    "parameters": {"x": {"type": "float", "min": 0, "max": 1}},
    "spec": {"metric": "best_loss", "seed": 5, "maxCombo": 12},
}


def make_sweep(folder, num_trials, **changes):
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({**SPACE, **changes}))
    space = load_space(path, {"x": 2.0}, {"loss": "minimize"}, lambda _: None)
    return Sweep(folder, space, EPOCHS, num_trials, "hyperband")


def count(task):
    checkpoint = task.folder / "checkpoint.pt"
    rows = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    yield from rows
    for epoch in range(len(rows) + 1, EPOCHS + 1):
        time.sleep(EPOCH_SECONDS)
        if task.number == 1 and "deadly" in sys.argv:
            os._exit(9)
        with (task.folder.parents[1] / "epochs.log").open("a") as log:
            log.write(f"{task.number} {epoch} {task.seed} {task.parameters['x']}\n")
        rows.append({"loss": abs(task.parameters["x"] - 0.3) + 1 / epoch, "seconds": EPOCH_SECONDS})
        partial = checkpoint.with_suffix(".partial")
        partial.write_text(json.dumps(rows))
        partial.replace(checkpoint)
        yield rows[-1]


def main():
    folder, num_trials, num_workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    sweep = make_sweep(folder, num_trials)
    with sole_owner(folder):
        run_sweep(
            create_ledger(sweep, {"goal": "loss"}), count, places(["cpu"], num_workers, num_workers), lambda: None
        )


if __name__ == "__main__":
    main()
