"""What the command's own process takes of a core while its workers train: the whole of overhead.py --parent-only.

Two sweeps run side by side, one with the live table and one with plain lines, each with two workers whose epochs are
two seconds of sleep, and with the report written as in production. CPU time is the process's own (utime and stime in
/proc), from the start of the first trial to the end of the last: neither start-up nor workers are in it.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console

from search.report.live_table import live_view
from search.report.page import kept_up_to_date
from search.study.create import create_study
from search.study.sweep import load_study
from search.workers.supervisor import run_sweep, sole_owner, worker_slots
from tests.servers.counting_sweep import make_sweep

VIEWS = {"table": True, "lines": False}  # whether it is a terminal's
EPOCHS, EPOCH_SECONDS = 6, 2.0
NUM_TRIALS, NUM_WORKERS = 28, 2  # about 130 seconds, in which a page of the report is written
LOOK_SECONDS = 0.2  # how often the CPU time is read


def sleep(context):
    for epoch in range(1, EPOCHS + 1):
        time.sleep(EPOCH_SECONDS)
        yield {"epoch": epoch, "loss": abs(context.parameters["x"] - 0.3) + 1 / epoch, "seconds": EPOCH_SECONDS}


def drive(view, folder):
    """Be the command."""
    sweep = replace(make_sweep(folder / "runs/sweep", NUM_TRIALS), epochs=EPOCHS)
    with sole_owner(sweep.folder), (folder / "output.txt").open("w") as output:
        goal = {"metric": sweep.space.goal.metric, "direction": sweep.space.goal.direction}
        study = create_study(sweep, {"goal": goal})
        console = Console(file=output, force_terminal=VIEWS[view], width=160)
        where = worker_slots(["cpu"], NUM_WORKERS, NUM_WORKERS)
        with kept_up_to_date(sweep.folder), live_view(study, console) as show:
            run_sweep(study, sleep, where, show)


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_parent():
    """Print a line for each view."""
    with tempfile.TemporaryDirectory() as home:
        folders = {view: Path(home) / view for view in VIEWS}
        commands = {view: [sys.executable, __file__, view, str(folder)] for view, folder in folders.items()}
        processes = {view: subprocess.Popen(command) for view, command in commands.items()}
        read = {view: [] for view in VIEWS}
        while any(process.poll() is None for process in processes.values()):
            for view, process in processes.items():
                if process.poll() is None:
                    read[view].append((time.time(), cpu_seconds(process.pid)))
            time.sleep(LOOK_SECONDS)
        for view, folder in folders.items():
            assert processes[view].returncode == 0, view
            seconds, share = share_of(read[view], load_study(folder / "runs/sweep").get_trials())
            title = f"{view}, {NUM_WORKERS} workers, {seconds:.0f} s"
            print(f"the command's own process: {100 * share:.1f} % of a core ({title})", flush=True)


def share_of(read, trials):
    """Return the seconds from the first start to the last end, and the share of them that was CPU time."""
    begin = min(trial.datetime_start for trial in trials).timestamp()
    end = max(trial.datetime_complete for trial in trials).timestamp()
    within = [(when, cpu) for when, cpu in read if begin <= when <= end]
    return end - begin, (within[-1][1] - within[0][1]) / (within[-1][0] - within[0][0])


if __name__ == "__main__":
    view, home = sys.argv[1:]
    drive(view, Path(home))
