"""What a trial costs that trains nothing: this harness beside plain Optuna and Ray Tune, on the same cores, in turn.

    python benchmarks/overhead.py [--trials 100,1000,3000] [--workers 2,8] [--storages sqlite postgresql] ...

Each trial draws one parameter at random and reports three made-up losses at once, the same in every trial, so that the
pruner (successive halving) is asked and never stops one. The first trial of each worker waits until
every worker has one; the clock starts there, and stops where the last trial starts. The cost of a trial is the time
between, divided by the trials that started in it: with W workers on enough cores, one worker's cost divided by W.

harness     run_sweep with its lock files, histories, live view (plain lines), and the pruner of a real sweep
optuna      that many processes with study.optimize, one RDBStorage, MaxTrialsCallback: as Optuna documents it; SQLite
            with the journal (WAL) and the patience that the harness has, which Optuna leaves to its user
ray         tune.Tuner, random search, AsyncHyperBand, as it comes: a process for each trial; at most 20 trials. Its
            storage is a folder, where it writes what it knows from time to time, not at each report
ray-reuse   the same with reuse_actors=True, for trainables that can be reset; at most 1,000 trials

`last/first` is the cost over the last 100 trials divided by that over the first 100, by the times in the study;
`parent` what the harness's parent process weighs at its end, and how much more that is than as trial 100 started.
Beside each row stands Ray's longest run of at most as many trials and as many workers. PostgreSQL is a server on
loopback with the settings it comes with, where `initdb` is found.

At the end, or alone with --parent-only (two and a half minutes), what the command's own process takes of a core while
two workers train, as parent.py says.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import optuna
from optuna.storages import RDBStorage
from rich.console import Console
from rich.table import Table

import tests.servers.postgres
from benchmarks.overhead_run import EPOCHS, RUNS, Setting
from benchmarks.parent import measure_parent
from search.study.storage import validated_storage

RUN = ROOT / "benchmarks/overhead_run.py"
SPAN = 100  # trials at either end that are compared
SECONDS = 900  # that one run may take
STORAGES = ["sqlite", "postgresql"]
AT_MOST = {"ray": 20, "ray-reuse": 1000}  # trials; Ray takes long


@dataclass(frozen=True)
class Cost:
    each: float  # seconds per trial
    growth: float  # seconds per trial over the last 100, divided by those over the first 100
    num_bytes: tuple[int, int]  # what the harness's parent weighs at the end; how much more than as trial 100 started


def measure(setting, server):
    """Run one setting in a process and a database of its own; read what it cost."""
    with tempfile.TemporaryDirectory() as home, new_database(setting, server) as url:
        folder = Path(home)
        (folder / "ready").mkdir()
        command = [sys.executable, str(RUN), *map(str, vars(setting).values()), home, url]
        with (folder / "output.log").open("w") as output:
            done = subprocess.run(command, stdout=output, stderr=output, timeout=SECONDS, check=False)
        assert done.returncode == 0, (folder / "output.log").read_text()[-4000:]
        ready = sorted(path.stat().st_mtime for path in (folder / "ready").iterdir())
        opened = ready[setting.num_workers - 1]  # Ray starts more processes later on
        begun = starts(setting, folder, url)
        after = [when for when in begun if when > opened]
        span = min(SPAN, len(after) - 1)
        num_bytes = (0, 0)
        if setting.library == "harness":
            weights = json.loads((folder / "weights.json").read_text())
            at_100 = next((rss for when, rss in weights if when >= begun[min(SPAN, len(begun)) - 1]), weights[-1][1])
            num_bytes = (weights[-1][1], weights[-1][1] - at_100)
        return Cost(
            each=(after[-1] - opened) / len(after),
            growth=(after[-1] - after[-1 - span]) / (after[span] - after[0]),
            num_bytes=num_bytes,
        )


def starts(setting, folder, url):
    """Return when each trial started, in order: by the study, or by its own word where there is none."""
    if setting.library.startswith("ray"):
        return sorted(map(float, (folder / "starts.log").read_text().split()))
    files = {"harness": folder / "runs/sweep/study.db", "optuna": folder / "study.db"}
    storage = RDBStorage(url or f"sqlite:///{files[setting.library]}")
    trials = optuna.load_study(study_name="sweep", storage=storage).get_trials(deepcopy=False)
    assert all(len(trial.intermediate_values) == EPOCHS for trial in trials)
    return sorted(trial.datetime_start.timestamp() for trial in trials)


@contextlib.contextmanager
def new_database(setting, server):
    """Make a database for one run on the server; yield its address, or nothing where none is wanted."""
    if setting.storage != "postgresql":
        yield ""
        return
    name = f"overhead_{os.getpid()}"
    server.ask(f"CREATE DATABASE {name}")
    try:
        yield validated_storage(server.url.replace("/postgres", f"/{name}"))
    finally:
        server.ask(f"DROP DATABASE {name} WITH (FORCE)")


def postgresql_server():
    tests.servers.postgres.SETTINGS = {}
    return tests.servers.postgres.postgres_server()


def numbers(words):
    return [int(word) for word in words.split(",") if word]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=numbers, default=[100, 1000, 3000], help="numbers of trials")
    parser.add_argument("--bayes-trials", type=numbers, default=[100], help="the same with TPE ('': none)")
    parser.add_argument("--workers", type=numbers, default=[2, 8])
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=STORAGES)
    parser.add_argument("--libraries", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--rounds", type=int, default=3, help="of short runs; of 1,000 trials or more, TPE and Ray one")
    parser.add_argument("--parent-only", action="store_true", help="only what the command's own process takes")
    return parser.parse_args()


def of_ray(setting, name):
    return replace(setting, library=name, storage="files", num_trials=min(setting.num_trials, AT_MOST[name]))


def settings_of(options):
    """Return every setting that is to be measured, those to be compared side by side."""
    kinds = [("random", num_trials) for num_trials in options.trials]
    kinds += [("bayes", num_trials) for num_trials in options.bayes_trials]
    settings = []
    for algorithm, num_trials in kinds:
        for num_workers in options.workers:
            for storage in options.storages:
                settings += [
                    Setting(name, storage, num_trials, num_workers, algorithm) for name in ("harness", "optuna")
                ]
            if find_spec("ray") and algorithm == "random":
                settings += [of_ray(settings[-1], name) for name in AT_MOST]
    return [setting for setting in dict.fromkeys(settings) if setting.library in options.libraries]


def is_short(setting):
    return setting.num_trials < 1000 and setting.algorithm == "random" and setting.library in ("harness", "optuna")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the server ends too
    options = parse()
    if options.parent_only:
        return measure_parent()
    if not tests.servers.postgres.is_installed():
        options.storages = [storage for storage in options.storages if storage != "postgresql"]
    settings = settings_of(options)
    costs = {setting: [] for setting in settings}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgresql_server()) if "postgresql" in options.storages else None
        for each_round in range(options.rounds):
            for setting in settings:
                if each_round == 0 or is_short(setting):
                    costs[setting].append(measure(setting, server))
                    print(*vars(setting).values(), milliseconds(costs[setting][-1:]), "ms", file=sys.stderr, flush=True)
    show(costs)
    return measure_parent()


def show(costs):
    names = [name for name in ("optuna", "sqlalchemy", "psycopg", "ray") if find_spec(name)]
    versions = " ".join(f"{name} {version(name)}" for name in names)
    print(f"{os.cpu_count()} cores, {platform.machine()}, python {platform.python_version()}, {versions}, ", end="")
    print(f"sqlite {sqlite3.sqlite_version}; milliseconds per trial, medians of n runs (Ray: one)")
    titles = ["trials", "workers", "sampler", "storage", "n", "harness", "optuna", "ratio", "ray", "ray-reuse"]
    table = Table(*titles, "last/first", "optuna's", "parent", box=None)
    for column in table.columns:
        column.justify = "right"
    for setting in dict.fromkeys(replace(setting, library="harness") for setting in costs):
        if setting.storage != "files":
            table.add_row(*cells(setting, costs))
    Console(width=200).print(table)


def cells(setting, costs):
    ours, plain = (costs.get(replace(setting, library=name), []) for name in ("harness", "optuna"))
    ratios = [one.each / other.each for one, other in zip(ours, plain, strict=False)]  # neighbours in time
    enough = setting.num_trials >= 3 * SPAN
    num_bytes = [statistics.median(cost.num_bytes[index] for cost in ours) / 2**20 if ours else 0 for index in (0, 1)]
    return (
        f"{setting.num_trials:,}",
        str(setting.num_workers),
        setting.algorithm,
        setting.storage,
        str(len(ours or plain)),
        milliseconds(ours),
        milliseconds(plain),
        f"{statistics.median(ratios):.2f}x" if ratios else "",
        *(milliseconds(costs.get(of_ray(setting, name), [])) for name in AT_MOST),
        f"{median(ours, 'growth'):.2f}x" if ours and enough else "",
        f"{median(plain, 'growth'):.2f}x" if plain and enough else "",
        f"{num_bytes[0]:.0f} MB ({num_bytes[1]:+.0f})" if ours else "",
    )


def median(costs, name):
    return statistics.median(getattr(cost, name) for cost in costs)


def milliseconds(costs):
    return f"{1000 * median(costs, 'each'):.1f}" if costs else ""


if __name__ == "__main__":
    main()
