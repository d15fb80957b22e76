"""Random faults over real sweeps: every one must end with exactly the trials that were asked for.

    python tests/soak.py [--faults 200] [--trials 40] [--workers 4] [--seed N] [--folder FOLDER]

Each sweep is tests/counting_sweep.py: the real ledger, workers, locks and processes; its training is counting. Faults
come at random moments; after each the ledger is read. The table at the end says what was done and what came of it.
"""

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from optuna.trial import TrialState

from search.study import open_study
from tests.test_sweep import epochs_in, workers_of

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
SECONDS_STOPPED = 2.0  # the grace of the sweeps here


@dataclass
class Soak:
    """One sweep, and what happens to it."""

    folder: Path
    num_trials: int
    num_workers: int
    rng: random.Random
    process: subprocess.Popen | None = None
    faults: Counter = field(default_factory=Counter)
    allowed: int = 0  # epochs that may be trained again
    statuses: Counter = field(default_factory=Counter)

    def command(self):
        sizes = (str(self.num_trials), str(self.num_workers))
        options = ("--pruner", "none", "--stopped", str(SECONDS_STOPPED), "--seconds", "0.1")
        return [sys.executable, str(Path(__file__).with_name("counting_sweep.py")), str(self.folder), *sizes, *options]

    def start(self):
        log = (self.folder.parent / "log.txt").open("a")
        self.process = subprocess.Popen(self.command(), start_new_session=True, stdout=log, stderr=log)
        log.close()

    def run(self, num_faults):
        """Run the sweep to its end, with at most so many faults; return how many there were."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.start()
        while True:
            try:
                status = self.process.wait(self.rng.uniform(0.2, 1.5))
            except subprocess.TimeoutExpired:
                status = None
            if status == 0:
                return self.faults.total()
            if status is not None:
                self.statuses[status] += 1
                self.start()
            elif self.faults.total() < num_faults and self.begun():
                name = self.rng.choice(list(FAULTS))
                if FAULTS[name](self):
                    self.faults[name] += 1
                    self.look()

    def begun(self):
        return (self.folder / "epochs.log").exists()

    def look(self):
        """Read the ledger, as anybody may at any moment."""
        trials = open_study(self.folder).get_trials(deepcopy=False)
        assert len(trials) <= self.num_trials, f"{len(trials)} trials"

    def outcome(self):
        """Say what the sweep came to. Raises AssertionError where that is not what was asked for."""
        trials = open_study(self.folder).get_trials(deepcopy=False)
        states = Counter(trial.state.name for trial in trials)
        assert [trial.number for trial in trials] == list(range(self.num_trials)), states
        assert all(trial.state in ENDED for trial in trials), states
        repeated = sum(count - 1 for count in Counter(epochs_in(self.folder)).values())
        assert repeated <= self.allowed, f"{repeated} epochs trained again, {self.allowed} allowed"
        return repeated

    def kill_worker(self):
        return self.signal_worker(signal.SIGKILL)

    def signal_worker(self, number):
        workers = workers_of(self.process.pid)
        if not workers:
            return False
        os.kill(self.rng.choice(workers), number)
        self.allowed += 1
        return True

    def kill_parent(self):
        self.process.kill()
        self.allowed += self.num_workers
        return True

    def kill_group(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.allowed += self.num_workers
        return True

    def interrupt(self):
        return self.signal_parent(self.rng.choice((signal.SIGINT, signal.SIGTERM)), self.rng.choice((1, 2)))

    def signal_parent(self, number, times):
        for _ in range(times):
            self.process.send_signal(number)
            time.sleep(self.rng.uniform(0, 0.3))
        self.allowed += self.num_workers
        return True

    def stop_worker(self):
        """Stop a worker for longer than the grace, then wake it: it was given up, and must not do anything."""
        workers = workers_of(self.process.pid)
        if not workers:
            return False
        victim = self.rng.choice(workers)
        os.kill(victim, signal.SIGSTOP)
        self.allowed += 1
        time.sleep(SECONDS_STOPPED * self.rng.uniform(0.5, 2.5))
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
        return True

    def stop_all(self):
        """Stop everything for longer than the grace, and go on: nobody was there to miss anybody."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        time.sleep(SECONDS_STOPPED * 1.5)
        os.killpg(self.process.pid, signal.SIGCONT)
        return True

    def lock_ledger(self):
        """Keep everybody from writing for a while."""
        connection = sqlite3.connect(self.folder / "ledger.db", timeout=60, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(self.rng.uniform(0.5, 3))
        connection.execute("ROLLBACK")
        connection.close()
        return True

    def second_command(self):
        """Start the same command beside it, as a colleague would."""
        status = subprocess.run(self.command(), capture_output=True, text=True, check=False)
        assert status.returncode == 0 or "is being swept by another process" in status.stderr, status.stderr[-500:]
        return True


FAULTS = {
    "a worker killed (-9)": Soak.kill_worker,
    "the parent killed (-9)": Soak.kill_parent,
    "the whole process group killed (-9)": Soak.kill_group,
    "SIGINT or SIGTERM, once or twice": Soak.interrupt,
    "a worker stopped, then woken": Soak.stop_worker,
    "everything stopped, then woken": Soak.stop_all,
    "the ledger locked for up to 3 s": Soak.lock_ledger,
    "the same command started beside it": Soak.second_command,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("faults", 200), ("trials", 40), ("workers", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--folder", type=Path, help="where the sweeps are kept (default: nowhere)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        soak(options, options.folder or Path(temporary))


def soak(options, folder):
    began, faults, repeated, number = time.monotonic(), Counter(), 0, 0
    while faults.total() < options.faults:
        rng = random.Random(f"{options.seed}/{number}")
        sweep = Soak(folder / f"{number}/runs/soak", options.trials, options.workers, rng)
        sweep.run(options.faults - faults.total())
        again = sweep.outcome()
        faults, repeated, number = faults + sweep.faults, repeated + again, number + 1
        print(
            f"sweep {number}: {sweep.faults.total()} faults, {options.trials} trials, {again} epochs again", flush=True
        )
    print(f"\n{number} sweeps of {options.trials} trials, {options.workers} workers; {time.monotonic() - began:.0f} s")
    for name in FAULTS:
        print(f"| {name} | {faults[name]} |")
    print(f"every sweep ended with exactly {options.trials} trials; {repeated} epochs were trained again")


if __name__ == "__main__":
    main()
