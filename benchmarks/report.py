"""How long does the report of a sweep take, and how large is it?

    python benchmarks/report.py

A made-up sweep of 500 trials (no network is trained), whole process, median of 3; beside it six figures that Optuna
draws of the same study by itself, each written to a page of its own.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.servers.finished_sweep import make_finished_sweep

NUM_TRIALS, ROUNDS = 500, 3
PEER = """
import optuna, sys
from optuna import visualization as draw
optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.load_study(study_name="sweep", storage="sqlite:///runs/sweep/study.db")
for name in "optimization_history intermediate_values parallel_coordinate param_importances slice timeline".split():
    getattr(draw, f"plot_{name}")(study).write_html(f"peer-{name}.html")
"""


def seconds(command, home):
    began = time.perf_counter()
    subprocess.run(command, cwd=home, check=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main():
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "runs/sweep"
        make_finished_sweep(folder, NUM_TRIALS)
        commands = {
            "this project: report.html": [sys.executable, "-m", "search.report", "sweep"],
            "Optuna's six figures": [sys.executable, "-c", PEER],
        }
        times = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                times[name].append(seconds(command, home))
        sizes = [(folder / "report.html").stat().st_size, sum(p.stat().st_size for p in Path(home).glob("peer-*.html"))]
        table = Table(f"{NUM_TRIALS} trials", "seconds", "MB")
        for (name, found), size in zip(times.items(), sizes, strict=True):
            table.add_row(name, f"{statistics.median(found):.1f}", f"{size / 1e6:.1f}")
        Console().print(table)


if __name__ == "__main__":
    main()
