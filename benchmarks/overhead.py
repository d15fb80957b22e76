"""What a trial costs that trains nothing: this harness beside plain Optuna and Ray Tune, on the same cores, in turn.

    python benchmarks/overhead.py [--trials 100,1000,3000] [--workers 2,8] [--storages sqlite,postgresql] ...

Each trial draws one parameter at random and reports three made-up losses at once, the same in every trial, so that the
pruner (successive halving) is asked and never stops one. The first trial of each worker waits until
every worker has one; the clock starts there, and stops where the last trial starts. The cost of a trial is the time
between, divided by the trials that started in it: with W workers on enough cores, one worker's cost divided by W. All
else is `start and end`: processes, imports, closing.

harness     run_sweep with its lock files, histories, live view (plain lines), and the pruner of a real sweep
optuna      that many processes with study.optimize, one RDBStorage, MaxTrialsCallback: as Optuna documents it; SQLite
            with the journal (WAL) and the patience that the harness has, which Optuna leaves to its user
ray         tune.Tuner, random search, AsyncHyperBand, as it comes: a process for each trial; at most 50 trials. Its
            storage is a folder, where it writes what it knows from time to time, not at each report
ray-reuse   the same with reuse_actors=True, for trainables that can be reset; at most 1,000 trials

`first` and `last` are the cost over the first and the last 100 trials, by the times in the ledger; `parent` is the
resident memory of the parent process as trial 100 starts, and at its end. PostgreSQL: --postgresql names a server on
which databases may be made (postgresql://user@host/postgres); without it one is started for the while, with the
settings it comes with, where `initdb` is found.
"""

import argparse
import contextlib
import getpass
import json
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import optuna
from optuna.pruners import HyperbandPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, make_url, text

EPOCHS, SPAN = 3, 100  # reports of a trial; trials at either end that are compared
SECONDS = 900  # that one run may take
RSS_SECONDS = 0.1  # between two looks at the parent's memory


@dataclass(frozen=True)
class Setting:
    library: str  # harness, optuna, ray or ray-reuse
    storage: str  # sqlite or postgresql; ray's is a folder of files
    num_trials: int
    num_workers: int
    algorithm: str  # random or bayes


@dataclass(frozen=True)
class Cost:
    num_run: int  # trials that were run; plain Optuna and Ray may stop late
    each: float  # seconds per trial
    first: float  # seconds per trial over the first 100
    last: float  # seconds per trial over the last 100
    outside: float  # seconds before the clock starts and after it stops
    rss: tuple[int, int]  # bytes: the parent, as trial 100 starts and at the end


def losses(folder, num_workers):
    """Yield what a trial reports; the first trial of each process waits for the other processes."""
    if not (mine := folder / f"ready/{os.getpid()}").exists():
        mine.touch()
        while sum(1 for _ in (folder / "ready").iterdir()) < num_workers:
            time.sleep(0.002)
    with (folder / "starts.log").open("a") as log:
        log.write(f"{time.time()}\n")
    for epoch in range(1, EPOCHS + 1):
        yield 1 / epoch


def run_harness(setting, folder, url):
    from search.ledger import create_ledger
    from search.live import live_view
    from search.sweep import places, run_sweep, sole_owner
    from tests.counting_sweep import make_sweep

    sweep = make_sweep(folder / "runs/sweep", setting.num_trials, algorithm=setting.algorithm)
    sweep = replace(sweep, epochs=EPOCHS, **({"storage": url} if setting.storage == "postgresql" else {}))
    with sole_owner(sweep.folder), (folder / "lines.log").open("w") as lines:
        ledger = create_ledger(sweep, {"goal": "loss"})
        where = places(["cpu"], setting.num_workers, os.cpu_count() or 1)
        with live_view(ledger, Console(file=lines)) as show:
            run_sweep(ledger, partial(epochs_of_task, folder, setting.num_workers), where, show)


def epochs_of_task(folder, num_workers, _):
    for epoch, loss in enumerate(losses(folder, num_workers), 1):
        yield {"epoch": epoch, "loss": loss, "seconds": 0.0}


def run_optuna(setting, folder, url):
    """Make the study, start the processes, wait for them."""
    if setting.storage == "sqlite":
        url = f"sqlite:///{folder}/study.db"
        with contextlib.closing(sqlite3.connect(folder / "study.db")) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    optuna.create_study(study_name="sweep", storage=open_peer(url))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=optimize, args=(setting, folder, url)) for _ in range(setting.num_workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def open_peer(url):
    patience = {"connect_args": {"timeout": 60.0}} if url.startswith("sqlite") else {}
    return RDBStorage(url, engine_kwargs=patience)


def optimize(setting, folder, url):
    def objective(trial):
        trial.suggest_float("x", 0, 1)
        best = None
        for step, loss in enumerate(losses(folder, setting.num_workers), 1):
            best = loss
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = RandomSampler() if setting.algorithm == "random" else TPESampler()
    pruner = HyperbandPruner(min_resource=1, max_resource=EPOCHS, reduction_factor=2)  # as in search/study.py
    study = optuna.load_study(study_name="sweep", storage=open_peer(url), sampler=sampler, pruner=pruner)
    until = MaxTrialsCallback(setting.num_trials, states=(TrialState.COMPLETE, TrialState.PRUNED))
    study.optimize(objective, callbacks=[until])


def run_ray(setting, folder, _):
    import ray
    from ray import tune

    def trainable(_):
        for loss in losses(folder, setting.num_workers):
            tune.report({"loss": loss})

    ray.init(num_cpus=setting.num_workers, include_dashboard=False, configure_logging=False)
    scheduler = tune.schedulers.AsyncHyperBandScheduler(max_t=EPOCHS, grace_period=1, reduction_factor=2)
    tuner = tune.Tuner(
        trainable,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=setting.num_trials,
            max_concurrent_trials=setting.num_workers,
            reuse_actors=setting.library == "ray-reuse",
            scheduler=scheduler,
        ),
        run_config=tune.RunConfig(name="sweep", storage_path=str(folder / "ray")),
    )
    assert not tuner.fit().errors
    ray.shutdown()


RUNS = {"harness": run_harness, "optuna": run_optuna, "ray": run_ray, "ray-reuse": run_ray}
AT_MOST = {"ray": 50, "ray-reuse": 1000}  # trials; Ray takes long


@contextlib.contextmanager
def watched_memory(samples):
    """Append (time, resident bytes) of this process to `samples` in the background."""
    done = Event()

    def watch():
        while not done.wait(RSS_SECONDS):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            samples.append((time.time(), pages * os.sysconf("SC_PAGE_SIZE")))

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run_one(setting, folder, url):
    """Be the parent process of one run; leave what it weighed in the folder."""
    samples = []
    with watched_memory(samples):
        RUNS[setting.library](setting, folder, url)
    (folder / "memory.json").write_text(json.dumps(samples))


def measure(setting, server):
    """Run one setting in a process and a database of its own; read what it cost."""
    with tempfile.TemporaryDirectory() as home, new_database(setting, server) as url:
        folder = Path(home)
        (folder / "ready").mkdir()
        command = [sys.executable, __file__, "--one", *map(str, vars(setting).values()), home, url]
        began = time.time()
        with (folder / "output.log").open("w") as output:
            done = subprocess.run(command, stdout=output, stderr=output, timeout=SECONDS, check=False)
        seconds = time.time() - began
        assert done.returncode == 0, (folder / "output.log").read_text()[-4000:]
        ready = sorted(path.stat().st_mtime for path in (folder / "ready").iterdir())
        opened = ready[setting.num_workers - 1]  # Ray starts more processes later on
        begun = starts(setting, folder, url)
        after = [when for when in begun if when > opened]
        span = min(SPAN, len(after) - 1)
        samples = json.loads((folder / "memory.json").read_text())
        at_100 = next((rss for when, rss in samples if when >= begun[min(SPAN, len(begun)) - 1]), samples[-1][1])
        return Cost(
            num_run=len(begun),
            each=(after[-1] - opened) / len(after),
            first=(after[span] - after[0]) / span,
            last=(after[-1] - after[-1 - span]) / span,
            outside=seconds - (after[-1] - opened),
            rss=(at_100, samples[-1][1]),
        )


def starts(setting, folder, url):
    """Return when each trial started, in order: by the ledger, or by its own word where there is none."""
    if setting.library.startswith("ray"):
        return sorted(map(float, (folder / "starts.log").read_text().split()))
    files = {"harness": folder / "runs/sweep/ledger.db", "optuna": folder / "study.db"}
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
    with contextlib.closing(create_engine(server, isolation_level="AUTOCOMMIT").connect()) as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            yield make_url(server).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextlib.contextmanager
def postgresql_server():
    """Start a PostgreSQL server on loopback, with the settings it comes with; yield its address."""
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()  # it does not run as root
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, user=user if os.geteuid() == 0 else None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        shutil.chown(home, user)
        run(["initdb", "-D", f"{home}/data", "-U", user, "-A", "trust"], cwd=home)
        options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1"
        run(["pg_ctl", "-D", f"{home}/data", "-w", "-l", f"{home}/log", "-o", options, "start"], cwd=home)
        try:
            yield f"postgresql+psycopg://{user}@127.0.0.1:{port}/postgres"
        finally:
            run(["pg_ctl", "-D", f"{home}/data", "-w", "-m", "immediate", "stop"], cwd=home)


def numbers(words):
    return [int(word) for word in words.split(",") if word]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=numbers, default=[100, 1000, 3000], help="numbers of trials")
    parser.add_argument("--bayes-trials", type=numbers, default=[100], help="the same with TPE ('': none)")
    parser.add_argument("--workers", type=numbers, default=[2, 8])
    parser.add_argument("--storages", type=lambda words: words.split(","), default=["sqlite", "postgresql"])
    parser.add_argument("--libraries", type=lambda words: words.split(","), default=list(RUNS))
    parser.add_argument("--rounds", type=int, default=3, help="of short runs; of 1,000 trials or more, TPE and Ray one")
    parser.add_argument("--postgresql", default="", help="a server's address")
    return parser.parse_args()


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
                settings += [
                    Setting(name, "files", min(num_trials, most), num_workers, algorithm)
                    for name, most in AT_MOST.items()
                ]
    return [setting for setting in dict.fromkeys(settings) if setting.library in options.libraries]


def is_short(setting):
    return setting.num_trials < 1000 and setting.algorithm == "random" and setting.library in ("harness", "optuna")


def main():
    if sys.argv[1:2] == ["--one"]:
        library, storage, num_trials, num_workers, algorithm, folder, url = sys.argv[2:]
        return run_one(Setting(library, storage, int(num_trials), int(num_workers), algorithm), Path(folder), url)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the server ends too
    options = parse()
    settings = settings_of(options)
    costs = {setting: [] for setting in settings}
    with contextlib.ExitStack() as stack:
        server = options.postgresql.replace("postgresql://", "postgresql+psycopg://")
        if "postgresql" in options.storages and not server:
            server = stack.enter_context(postgresql_server())
        for each_round in range(options.rounds):
            for setting in settings:
                if each_round == 0 or is_short(setting):
                    costs[setting].append(measure(setting, server))
                    milliseconds = 1000 * costs[setting][-1].each
                    print(*vars(setting).values(), f"{milliseconds:.1f} ms", file=sys.stderr, flush=True)
    return show(costs, options)


def show(costs, options):
    versions = " ".join(
        f"{name} {version(name)}" for name in ("optuna", "sqlalchemy", "psycopg", "ray") if find_spec(name)
    )
    print(f"{os.cpu_count()} cores, {platform.machine()}, python {platform.python_version()}, {versions}, ", end="")
    print(f"sqlite {sqlite3.sqlite_version}; medians of n runs")
    table = Table(box=None)
    for title in ("trials", "workers", "sampler", "storage", "library", "run", "n", "ms a trial", "beside optuna"):
        table.add_column(title, justify="right")
    for title in ("first", "last", "ratio", "start and end", "parent"):
        table.add_column(title, justify="right")
    for setting, measured in costs.items():
        plain = costs.get(replace(setting, library="optuna"), [])
        table.add_row(*cells(setting, measured, plain))
    Console(width=200).print(table)
    if {"ray", "ray-reuse"} & {*options.libraries} and not find_spec("ray"):
        print("ray: not installed")


def cells(setting, measured, plain):
    def median(name, of=measured):
        return statistics.median(getattr(cost, name) for cost in of)

    first, last = median("first"), median("last")
    weights = [statistics.median(cost.rss[index] for cost in measured) / 2**20 for index in (0, 1)]
    enough = measured[0].num_run >= 3 * SPAN
    return (
        f"{setting.num_trials:,}",
        str(setting.num_workers),
        setting.algorithm,
        setting.storage,
        setting.library,
        f"{median('num_run'):,.0f}",
        str(len(measured)),
        f"{1000 * median('each'):.1f}",
        f"{median('each') / median('each', plain):.2f}x" if plain else "",
        f"{1000 * first:.1f} ms" if enough else "",
        f"{1000 * last:.1f} ms" if enough else "",
        f"{last / first:.2f}x" if enough else "",
        f"{median('outside'):.1f} s",
        f"{weights[0]:.0f}, {weights[1]:.0f} MB",
    )


if __name__ == "__main__":
    sys.exit(main())
