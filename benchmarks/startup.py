"""Where the time goes from the command to the first training steps of two workers, with images decoded before.

    python benchmarks/startup.py [--rounds 5] [OPTIONS OF run_sweep.py]

The command is the real one, at 64 px on drawn images with two workers where no other options are given. A
sitecustomize.py, which every one of its Python processes reads, notes when chosen functions begin and end: nothing of
the product knows of it. When both workers have taken a step the command is ended. The table has the median over rounds
of the seconds since the command was given; a line is the moment at which what it names was over. Other programs
disturb, so the last column has the CPU seconds that the process itself had used by then, and the cores that others
had meanwhile are printed too.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPTIONS = ["--image-size", "64", "--workers", "2", "--devices", "cpu"]
SECONDS = 120.0  # that a round may take

# Functions by the module in which they are defined.
WATCHED = {
    "pipeline.plan": ["make_plan"],
    "catdog.data.dataset": ["load_data"],
    "search.study.create": ["create_study", "open_shared_study"],
    "search.workers.supervisor": ["run_sweep", "WorkerPool._start"],
    "search.workers.worker": ["work"],
    "search.study.queue": ["acquire"],
    "catdog.model": ["build_model", "layer_table"],
    "catdog.train": ["_Trainer.__init__", "_Trainer._step"],
}
LINES = {  # of the table: whose note, of what
    "command: interpreter": ("command", "python", 0),
    "command: imports": ("command", "make_plan", 0),
    "command: plan": ("command", "make_plan", 1),
    "command: images, from the cache": ("command", "load_data", 1),
    "command: study": ("command", "create_study", 1),
    "command: both workers asked for": ("command", "WorkerPool._start", 1),
    "worker: interpreter": ("worker", "python", 0),
    "worker: imports": ("worker", "work", 0),
    "worker: study": ("worker", "open_shared_study", 1),
    "worker: trial taken": ("worker", "acquire", 1),
    "worker: images": ("worker", "load_data", 1),
    "worker: network": ("worker", "layer_table", 1),
    "worker: first step begins": ("worker", "_Trainer._step", 0),
    "worker: first step done": ("worker", "_Trainer._step", 1),
}

HOOK = """
import functools, importlib.abc, importlib.machinery, json, os, sys, time

watched, notes = json.loads(os.environ["WATCHED"]), os.environ["NOTES"]
seen = set()

def note(what, moment):
    if (what, moment) not in seen:
        seen.add((what, moment))
        with open(os.path.join(notes, str(os.getpid())), "a") as file:
            file.write(json.dumps([what, moment, time.time(), time.process_time()]) + "\\n")

def noted(name, function):
    @functools.wraps(function)
    def call(*arguments, **named):
        note(name, 0)
        try:
            return function(*arguments, **named)
        finally:
            if name == "WorkerPool._start":
                seen.discard((name, 1))  # the last one counts
            note(name, 1)
    return call

class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        for name in watched[module.__name__]:
            *outer, last = name.split(".")
            owner = functools.reduce(getattr, outer, module)
            setattr(owner, last, noted(name, getattr(owner, last)))

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in watched:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec:
            spec.loader = Loader(name, spec.origin)
        return spec

note("python", 0)
sys.meta_path.insert(0, Finder())
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    chosen, options = parser.parse_known_args()
    options = options or OPTIONS
    print(f"{os.cpu_count()} cores, {platform.machine()}, python {platform.python_version()}, ", end="")
    print(f"torch {version('torch')}, optuna {version('optuna')}; {' '.join(options)}; {chosen.rounds} rounds")
    started(options)  # images are decoded, files read from the disk
    rounds, others = zip(*(started(options) for _ in range(chosen.rounds)), strict=True)
    print(f"{'seconds since the command':36}{'first worker':>14}{'last worker':>14}{'slowest round':>15}{'CPU':>8}")
    for line in LINES:
        first, last = ([of_round[line][index][0] for of_round in rounds] for index in (0, -1))
        cpu = [of_round[line][-1][1] for of_round in rounds]
        print(f"{line:36}{statistics.median(first):14.2f}{statistics.median(last):14.2f}{max(last):15.2f}", end="")
        print(f"{statistics.median(cpu):8.2f}")
    print(f"cores that other programs had, median: {statistics.median(others):.2f}")


def started(options):
    """Give the command and end it when both workers have taken a step; return moments by line, and others' cores."""
    with tempfile.TemporaryDirectory() as folder:
        notes, place = Path(folder, "notes"), Path(folder, "place")
        notes.mkdir()
        place.mkdir()
        Path(folder, "sitecustomize.py").write_text(HOOK)
        environment = {**os.environ, "PYTHONPATH": folder, "NOTES": str(notes), "WATCHED": json.dumps(WATCHED)}
        command = [sys.executable, str(ROOT / "run_sweep.py"), str(ROOT / "configs/optimizer.json"), *options]
        with Path(folder, "output").open("w+") as output:
            before, began = busy_seconds(), time.time()
            process = subprocess.Popen(
                command, cwd=place, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                while len(stepped(notes)) < 2:
                    if process.poll() is not None or time.time() - began > SECONDS:
                        sys.exit(Path(folder, "output").read_text())
                    time.sleep(0.05)
                seconds, after = time.time() - began, busy_seconds()
                ours = sum(cpu_seconds(pid) for pid in members(process.pid))
            finally:
                process.send_signal(signal.SIGINT)
                process.wait()
        return moments(notes, process.pid, began), (after - before - ours) / seconds


def stepped(notes):
    """Return the files of processes that have taken a training step."""
    return [path for path in notes.iterdir() if '"_Trainer._step", 1' in path.read_text()]


def moments(notes, command, began):
    """Return for each line the seconds at which it was over, and CPU seconds until then, of each process, sorted."""
    read = {int(path.name): [json.loads(line) for line in path.read_text().splitlines()] for path in notes.iterdir()}
    workers = {int(path.name) for path in stepped(notes)}
    return {
        line: sorted(
            (time_of - began, cpu)
            for pid in (workers if who == "worker" else {command})
            for name, moment, time_of, cpu in read[pid]
            if (name, moment) == (what, which)
        )
        for line, (who, what, which) in LINES.items()
    }


def busy_seconds():
    """CPU seconds of the whole machine."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for the disk


def members(session):
    """Return the processes of a session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session:
            yield fields


def cpu_seconds(fields):
    """CPU seconds of a process, from what follows its name in /proc/PID/stat, and of its children that have ended."""
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
