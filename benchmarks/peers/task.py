"""What every peer of sweep.py is given, and the line that it writes for each epoch that has ended."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Task:
    data: str  # a folder with train/, validation/ and test/, each with cats/ and dogs/
    space: str  # a file in Comet's schema
    log: str  # a file of lines of JSON
    epochs: int  # at most, for each trial
    trials: int
    image_size: int  # pixels


def read_task():
    """Read what sweep.py wrote; its path is the first argument of every peer."""
    return Task(**json.loads(Path(sys.argv[1]).read_text()))


def note(task, trial, epoch, val_loss):
    """Write down that an epoch has ended."""
    line = json.dumps({"time": time.time(), "trial": str(trial), "epoch": epoch, "val_loss": val_loss})
    with Path(task.log).open("a") as log:
        log.write(f"{line}\n")


def suggest(task, trial):
    """Have Optuna propose all parameters of the space; return them."""
    for name, parameter in json.loads(Path(task.space).read_text())["parameters"].items():
        if "values" in parameter:
            trial.suggest_categorical(name, parameter["values"])
        elif parameter["type"] == "integer":
            trial.suggest_int(name, parameter["min"], parameter["max"])
        else:
            log = parameter["scalingType"] == "loguniform"
            trial.suggest_float(name, parameter["min"], parameter["max"], log=log)
    return trial.params
