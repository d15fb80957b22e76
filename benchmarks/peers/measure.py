"""One peer of sweep.py, started in an empty folder and watched until it ends: what it came to."""

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.task import note

ROOT = Path(__file__).parents[2]

NUM_WORKERS = 2
SMALL = {"stem_width": [2, 4], "body_width": [4, 8]}
SECONDS = 3600  # that one command may take
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Run:
    """What one command came to."""

    seconds: float  # until it ended
    losses: tuple[tuple[float, float], ...]  # of each epoch: seconds since the command began, validation loss
    num_trials: int

    @property
    def best(self):
        return min(loss for _, loss in self.losses)

    def seconds_to(self, target):
        """Return when the validation loss was first as low as `target`."""
        return min(seconds for seconds, loss in self.losses if loss <= target)


def measure(peer, task, seed, environment, *, small):
    """Run one command in an empty folder; return what it came to. Raises RuntimeError where it fails."""
    with tempfile.TemporaryDirectory(prefix="sweep") as name:
        folder = Path(name)
        task = replace(task, space=f"{name}/space.json", log=f"{name}/epochs.log")
        write_space(Path(task.space), task, peer, seed, small=small)
        (folder / "task.json").write_text(json.dumps(vars(task)))
        surroundings = {**environment, "CATDOG_CACHE": f"{name}/cache", "PYTHONPATH": str(ROOT)}
        with (folder / "output.log").open("w") as output, watching(folder / "runs/sweep/trials", task):
            began, clock = time.time(), time.perf_counter()
            status = run(list(map(str, command_of(peer, task, folder, seed))), folder, surroundings, output)
            seconds = time.perf_counter() - clock
        if status != 0:
            raise RuntimeError(f"exit status {status}: {(folder / 'output.log').read_text()[-5000:]}")
        return run_of(Path(task.log).read_text(), began, seconds)


def command_of(peer, task, folder, seed):
    python = [sys.executable, "-m"]
    match peer:
        case "a" | "f":
            options = {"data": task.data, "image-size": task.image_size, "epochs": task.epochs, "trials": task.trials}
            options |= {"seed": seed, "workers": NUM_WORKERS, "name": "sweep", "confirm": 0, "promote": "never"}
            words = [f"--{name}={value}" for name, value in {**options, "tracking": "off"}.items()]
            words += ["--no-baseline"] if peer == "a" else []
            return [sys.executable, ROOT / "run_sweep.py", task.space, *words]
        case "b":
            return [*python, "benchmarks.peers.optuna_study", folder / "task.json"]
        case "c" | "d":
            kind = "tutorial" if peer == "c" else "ours"
            return [*python, "benchmarks.peers.ray_tune", folder / "task.json", kind]
        case "e":
            comet, script = Path(sys.executable).with_name("comet"), ROOT / "benchmarks/peers/comet_script.py"
            return [comet, "optimize", "-j", str(NUM_WORKERS), script, task.space, "--", folder / "task.json"]
    raise AssertionError(peer)


def write_space(path, task, peer, seed, *, small):
    """Write the space for one peer. Comet takes the least value of the metric that its script logs: val_loss."""
    space = json.loads((ROOT / "benchmarks/peers/space.json").read_text())
    space["spec"] |= {"maxCombo": task.trials, "seed": seed}
    if peer == "e":
        space["spec"]["metric"] = "val_loss"
    for name, values in SMALL.items() if small else ():
        space["parameters"][name]["values"] = values
    path.write_text(json.dumps(space))


def run(command, folder, environment, output):
    """Run a command to its end; end whatever it started with it, also where this program is interrupted."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
    )
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {SECONDS} s") from error
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(10)


@contextlib.contextmanager
def watching(trials, task):
    """Write a line for each epoch that appears in a history.csv of ours, as the peers do for theirs."""
    done = threading.Event()

    def watch():
        num_seen = {}
        while not done.wait(POLL_SECONDS):
            note_new_epochs(trials, task, num_seen)
        note_new_epochs(trials, task, num_seen)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def note_new_epochs(trials, task, num_seen):
    for path in trials.glob("*/history.csv"):
        whole_lines = path.read_text().rpartition("\n")[0]  # it may just be written
        for row in list(csv.DictReader(whole_lines.splitlines()))[num_seen.get(path, 0) :]:
            note(task, path.parent.name, int(row["epoch"]), float(row["val_loss"]))
            num_seen[path] = int(row["epoch"])


def run_of(log, began, seconds):
    """Make a Run of the lines of a log."""
    records = [json.loads(line) for line in log.splitlines()]
    finite = [record for record in records if math.isfinite(record["val_loss"])]
    losses = tuple((record["time"] - began, record["val_loss"]) for record in finite)
    return Run(seconds, losses, len({record["trial"] for record in records}))
