"""The sweeps that faults are injected into: how each is started, observed and evaluated."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import TrialState

from catdog.checkpoint import load_model
from catdog.data.synthetic import draw
from search.study.deaths import MAX_DEATHS
from search.study.sweep import CHOSEN, load_confirmation, load_study
from search.study.trials import counted
from tests.search.workers.test_supervisor import workers_of
from tests.servers import processes

HERE = Path(__file__).parent
STOPPED_SECONDS = 2.0  # how long a worker may be stopped in these sweeps
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
SPACE = {
    "algorithm": "bayes",
    "parameters": {
        "stem_width": {"type": "discrete", "values": [8, 16]},
        "body_width": {"type": "discrete", "values": [16, 32]},
        "learning_rate": {"type": "float", "min": 0.001, "max": 0.01, "scalingType": "loguniform"},
    },
    "spec": {"maxCombo": 40, "metric": "best_val_loss", "objective": "minimize", "seed": 1},
}
# Root may write to read-only files; without that right it is refused as everybody is.
AS_A_USER = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.getuid() == 0 else []


@dataclass
class Program:
    """A sweep of `num_trials` trials in `folder`, started again and again until it says that it has ended."""

    home: Path  # where it runs
    num_trials: int
    num_workers: int
    process: subprocess.Popen | None = None
    statuses: Counter = field(default_factory=Counter)  # with which it ended early
    deaths: Counter = field(default_factory=Counter)  # of workers, at most, by the trial or run and epoch they were at

    name = ""
    patience = 900.0  # seconds that it may take from the last fault to its end

    @property
    def folder(self):
        return self.home / "runs/soak"

    def command(self):
        raise NotImplementedError

    def environment(self):
        return {}

    def start(self):
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "log.txt").open("a") as log:
            self.process = processes.start(
                self.command(), start_new_session=True, stdout=log, stderr=log, cwd=self.home, env=self._environment()
            )

    def again(self):
        """Start the same command beside the first; return its exit status and what it said."""
        done = subprocess.run(
            self.command(), capture_output=True, text=True, check=False, cwd=self.home, env=self._environment()
        )
        return done.returncode, done.stderr

    def _environment(self):
        return {**os.environ, "COMET_API_KEY": "", "OMP_NUM_THREADS": "1", **self.environment()}

    def workers(self):
        return workers_of(self.process.pid)

    def began(self):
        """Say whether there is anything to lose."""
        return (self.folder / "epochs.log").exists()

    def look(self):
        """Read what anybody may read at any moment."""

    def bears_a_death(self):
        """Say whether a worker may die by chance without its trial being rightly given up; then it is to die."""
        return True

    def said(self):
        """Return the last that it said."""
        return (self.home / "log.txt").read_text()[-2000:]

    def outcome(self):
        """Return how many trials finished, and how many epochs were begun again."""
        raise NotImplementedError


class Ours(Program):
    """What the two programs of ours have in common."""

    def bears_a_death(self):
        parts = [load_study(self.folder), load_confirmation(self.folder)]
        trials = [(part.study_name, trial) for part in parts if part for trial in part.get_trials(deepcopy=False)]
        running = {(part, trial.number, trial.last_step) for part, trial in trials if trial.state == TrialState.RUNNING}
        if any(self.deaths[at] >= MAX_DEATHS - 1 for at in running):
            return False
        self.deaths.update(running)  # whose worker it will be is not known
        return True

    def look(self):
        trials = load_study(self.folder).get_trials(deepcopy=False)
        assert len(trials) <= self.num_trials, f"{len(trials)} trials"

    def outcome(self):
        trials = load_study(self.folder).get_trials(deepcopy=False)
        states = Counter(trial.state.name for trial in trials)
        assert [trial.number for trial in trials] == list(range(self.num_trials)), states
        left = [trial.user_attrs.get("reason") for trial in trials if trial.state not in ENDED]
        assert not left, left
        lines = (self.folder / "epochs.log").read_text().splitlines()
        told = {}
        for line in lines:
            number, _, *proposal = line.split()[:4]
            assert told.setdefault(number, proposal) == proposal, f"trial {number} changed: {told[number]}, {proposal}"
        return {"finished": len(trials), "again": num_again(self.folder / "epochs.log")}


class RealSweep(Ours):
    """run_sweep.py, which trains small networks on drawn images, confirms the best and promotes the winner."""

    name = "run_sweep.py"

    def command(self):
        self._prepare()
        sizes = ("--image-size", "64", "--epochs", "5", "--trials", self.num_trials, "--workers", self.num_workers)
        confirmed = ("--no-baseline", "--confirm", "1", "--confirm-seeds", "2", "--promote", "always")
        options = ("--data", "../photographs", "--name", "soak", "--tracking", "off", *sizes, *confirmed)
        program = [*AS_A_USER, sys.executable, HERE / "real_sweep.py", "optimizer.json", *options]
        return list(map(str, program))

    def environment(self):
        variables = {"STOPPED_SECONDS": str(STOPPED_SECONDS), "CATDOG_CACHE": str(self.home / "cache")}
        if library := clock_library():
            variables |= {"LD_PRELOAD": library, "CLOCK_OFFSET": str(self.home / "clock")}
        return variables

    def _prepare(self):
        (self.home / "optimizer.json").write_text(json.dumps(SPACE))
        for label, name in enumerate(("cats", "dogs")):
            for index in range(64):
                part = "training_set" if index < 60 else "test_set"
                path = self.home.parent / "photographs" / part / name / f"{index}.jpg"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    draw(label, 64, 1000 * label + index).save(path)

    def look(self):
        super().look()
        champion = self.home / "best_model/model.safetensors"
        if champion.exists():
            load_model(champion)

    def outcome(self):
        outcome = super().outcome()
        study = load_confirmation(self.folder)
        runs = counted(study.get_trials(deepcopy=False), study.user_attrs[CHOSEN])
        assert [run.state for run in runs] == [TrialState.COMPLETE] * 2, [run.state for run in runs]
        assert not list(self.folder.glob("**/checkpoint*")), "checkpoints were left"
        for trial in load_study(self.folder).get_trials(deepcopy=False):
            rows = (self.folder / f"trials/{trial.number:04}/history.csv").read_text().splitlines()
            assert len(rows) == 1 + trial.last_step, f"trial {trial.number}: {len(rows)} rows"
        _, header = load_model(self.home / "best_model/model.safetensors")
        assert header["provenance"]["run"] == "soak"
        assert (self.folder / "report.html").exists()
        return {**outcome, "again": outcome["again"] + num_again(self.folder / "confirmation.log")}


class CountingSweep(Ours):
    """Our study, workers, locks and processes, whose training is counting."""

    name = "ours"

    def command(self):
        sizes = (self.folder, self.num_trials, self.num_workers)
        options = ("--pruner", "none", "--stopped", STOPPED_SECONDS)
        return [*AS_A_USER, *map(str, (sys.executable, HERE.parent / "servers/counting_sweep.py", *sizes, *options))]


@dataclass
class Peer(Program):
    """Another program, which says at its end in a line of JSON what came of it."""

    python: str = sys.executable  # one that has what the program needs

    script = ""
    patience = 150.0

    def command(self):
        sizes = (self.folder, self.num_trials, self.num_workers)
        return list(map(str, (self.python, HERE / self.script, *sizes)))

    def outcome(self):
        lines = [line for line in (self.home / "log.txt").read_text().splitlines() if line.startswith('{"finished"')]
        if not lines:
            return {"finished": "?", "again": "?"}
        told = json.loads(lines[-1])
        return {**told, "again": told["epochs_run"] - told["epochs_needed"]}


class OptunaSweep(Peer):
    name, script = "Optuna", "optuna_peer.py"

    def workers(self):
        return _children(self.process.pid, "spawn_main")


class RaySweep(Peer):
    name, script = "Ray Tune", "ray_peer.py"

    def workers(self):
        """Return the processes of trials, which are children of Ray's own."""
        listing = subprocess.run(["ps", "-ww", "-e", "-o", "pid=,args="], capture_output=True, text=True, check=False)
        return [int(line.split()[0]) for line in listing.stdout.splitlines() if "ray::ImplicitFunc" in line]


@functools.cache
def clock_library():
    """Compile the clock that can be set; return the library's path, empty where there is no compiler."""
    path = Path(tempfile.mkdtemp()) / "clock.so"
    if not shutil.which("cc"):
        return ""
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", path, HERE / "clock.c"], check=True)
    return str(path)


def num_again(log):
    """Count the epochs that were begun more than once."""
    epochs = Counter(tuple(line.split()[:2]) for line in log.read_text().splitlines())
    return sum(count - 1 for count in epochs.values())


def _children(pid, word):
    listing = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in listing.stdout.splitlines() if word in line]
