"""What --dry-run predicts beside what the sweep then takes: seconds, and the peak of memory.

    python benchmarks/forecast.py [--rounds 3] [OPTIONS OF run_sweep.py]

In each round one dry run and then the sweep, `make sweep`'s (12 trials of 4 epochs at 64 px on drawn images, 6 runs
to confirm) where no other options are given; give paths in full, it runs in an empty folder. Seconds are those of the
whole command. Memory is anonymous pages (RssAnon in /proc) of the command and all that it started, the workers'
Comet writers included, summed every 0.05 seconds: what cannot be dropped when memory runs short. Other programs disturb
both; so the cores that they had are printed too.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from catdog.data.dataset import load_data
from pipeline.cli import parse
from pipeline.console import NUM_SHOWN
from pipeline.forecast import forecast
from pipeline.plan import make_plan
from pipeline.profiling import peak_memory_of

QUICK = [str(ROOT / "configs/quick.json"), "--image-size", "64", "--epochs", "4", "--no-baseline"]


def busy_seconds():
    """CPU seconds of the whole machine; those of the processes that we waited for."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    everybody = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # idle, and waiting for the disk
    ours = os.times()
    return everybody, ours.user + ours.system + ours.children_user + ours.children_system


def watched(command):
    """Run a command; return its output, its seconds, its peak of memory, the cores that others had meanwhile."""
    (everybody, ours), began = busy_seconds(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        with peak_memory_of(process.pid) as peak:
            said = process.communicate()[0]
    finally:
        process.terminate()
    seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(said)
    now = busy_seconds()
    return said, seconds, peak(), ((now[0] - everybody) - (now[1] - ours)) / seconds


def predict(options):
    """The process of a dry run: print seconds and bytes."""
    plan = make_plan(parse([*options, "--dry-run"]), print)
    data = load_data(plan.source, plan.fixed["image_size"])
    outlook = forecast(plan, data, plan.proposals(NUM_SHOWN), lambda _: None)
    print(outlook.seconds, outlook.low, outlook.high, outlook.memory, outlook.search, outlook.confirmation)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--predict", action="store_true", help=argparse.SUPPRESS)
    chosen, options = parser.parse_known_args()
    if chosen.predict:
        return predict(options)
    options = options or QUICK
    print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}; {' '.join(options[1:])}")
    print(f"{'':8}{'dry run':>9}{'predicted':>11}{'range':>11}{'actual':>9}{'ratio':>7}{'':4}", end="")
    print(f"{'memory predicted':>17}{'actual':>9}{'ratio':>7}{'':4}cores of others")
    ratios = []
    for number in range(1, chosen.rounds + 1):
        said, dry_seconds, _, dry_others = watched([sys.executable, __file__, "--predict", *options])
        seconds, low, high, memory, *_ = map(float, said.split("\n")[-2].split())
        with tempfile.TemporaryDirectory() as folder:
            before = Path.cwd()
            os.chdir(folder)
            _, actual, peak, others = watched([sys.executable, str(ROOT / "run_sweep.py"), *options])
            os.chdir(before)
        ratios.append((seconds / actual, memory / peak))
        print(
            f"round {number:2}{dry_seconds:7.0f} s{seconds:9.0f} s{f'{low:.0f}-{high:.0f} s':>11}{actual:7.0f} s",
            end="",
        )
        print(
            f"{ratios[-1][0]:7.2f}{'':4}{memory / 1e9:14.2f} GB{peak / 1e9:6.2f} GB{ratios[-1][1]:7.2f}{'':4}", end=""
        )
        print(f"{dry_others:.2f}, {others:.2f}", flush=True)
    medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
    print(f"median ratios: time {medians[0]:.2f}, memory {medians[1]:.2f}")
    return None


if __name__ == "__main__":
    main()
