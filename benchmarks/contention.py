"""Many workers, one SQLite study: does anybody ever hear that the database is locked, and how long does a report take?

    python benchmarks/contention.py [--workers 16] [--seconds 120]

Real workers of a real sweep; each reports once a second, from when all of them have begun. A report is the time from
handing over an epoch to being asked for the next one: study, pruner and history. SQLite's errors are counted where
they are raised, in the workers and the parent, whether or not somebody would have tried again. Ends with status 1 where
one was raised, a notice was left, or the study lacks a report.
"""

import argparse
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console

from search.report.live_table import live_view
from search.study.create import create_study
from search.workers.supervisor import TimeUpError, run_sweep, worker_slots
from tests.servers.counting_sweep import EPOCHS, make_sweep

SECONDS_OF_AN_EPOCH = 1.0


def watch_errors(folder):
    """Write down every error that a database raises in this process from now on."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def note(context):
        with (folder / "errors.log").open("a") as log:
            log.write(f"{os.getpid()} {context.original_exception}\n")

    if not getattr(Engine, "is_watched", False):
        Engine.is_watched = True
        event.listen(Engine, "handle_error", note)


def epochs(folder, context):
    """Report once a second; write down who reported, when, and how long that took."""
    watch_errors(folder)
    for epoch in range(1, EPOCHS + 1):
        time.sleep(SECONDS_OF_AN_EPOCH)
        began = time.perf_counter()
        yield {"epoch": epoch, "loss": 1 / (context.number + epoch), "seconds": SECONDS_OF_AN_EPOCH}
        took = time.perf_counter() - began
        with (folder / "reports.log").open("a") as log:
            log.write(f"{os.getpid()} {time.time()} {took}\n")


def reports_in(folder):
    path = folder / "reports.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), float(when), float(took)) for pid, when, took in map(str.split, lines)]


def contend(folder, num_workers, seconds):
    """Run the sweep; return its study, when all workers had begun, and what was waited for."""
    waits, all_in = [], []
    sweep = replace(make_sweep(folder / "runs/sweep", 100_000, algorithm="random"), pruner="none")
    study = create_study(sweep, {"goal": "loss"}, waits.append)
    with (folder / "lines.log").open("w") as lines, live_view(study, Console(file=lines)) as view:

        def show():
            view()
            if not all_in and len({pid for pid, _, _ in reports_in(folder)}) == num_workers:
                all_in.append(time.time())
            if all_in and time.time() > all_in[0] + seconds:
                raise TimeUpError

        try:
            run_sweep(study, partial(epochs, folder), worker_slots(["cpu"], num_workers, os.cpu_count()), show)
        except TimeUpError:
            return study, all_in[0], waits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        watch_errors(folder)
        study, all_in, waits = contend(folder, options.workers, options.seconds)
        reports = reports_in(folder)
        took = sorted(took for _, when, took in reports if when > all_in)
        kept = sum(len(trial.intermediate_values) for trial in study.trials())
        errors = (folder / "errors.log").read_text().splitlines() if (folder / "errors.log").exists() else []
        notices = [*waits, *filter(None, [study.notice()])]
        study.close()
    print(f"{options.workers} workers, {options.seconds:g} s, {os.cpu_count()} cores, {platform.machine()}, ", end="")
    print(f"python {platform.python_version()}, sqlite {sqlite3.sqlite_version}")
    print(f"{len(took)} reports: median {1000 * statistics.median(took):.0f} ms, ", end="")
    print(f"99 % within {1000 * took[int(0.99 * len(took))]:.0f} ms, slowest {1000 * took[-1]:.0f} ms")
    print(f"reports that the study lacks: {max(0, len(reports) - kept)}")
    print("\n".join([f"errors of the database: {len(errors)}", *errors]))
    print("\n".join([f"notices: {len(notices)}", *notices]))
    return int(bool(errors or notices or kept < len(reports)))


if __name__ == "__main__":
    sys.exit(main())
