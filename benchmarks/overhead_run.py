"""One run of what overhead.py compares: trials that train nothing, by this harness, by plain Optuna or by Ray Tune.

python benchmarks/overhead_run.py LIBRARY STORAGE NUM_TRIALS NUM_WORKERS ALGORITHM FOLDER [DATABASE]
"""

import contextlib
import json
import multiprocessing
import os
import sqlite3
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import optuna
from optuna.pruners import HyperbandPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from rich.console import Console

EPOCHS = 3  # reports of a trial


@dataclass(frozen=True)
class Setting:
    library: str  # harness, optuna, ray or ray-reuse
    storage: str  # sqlite or postgresql; ray's is a folder of files
    num_trials: int
    num_workers: int
    algorithm: str  # random or bayes


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
    from search.report.live_table import live_view
    from search.study.create import create_study
    from search.workers.supervisor import run_sweep, sole_owner, worker_slots
    from tests.servers.counting_sweep import make_sweep

    sweep = make_sweep(folder / "runs/sweep", setting.num_trials, algorithm=setting.algorithm)
    sweep = replace(sweep, epochs=EPOCHS, **({"storage": url} if setting.storage == "postgresql" else {}))
    weights = []
    with sole_owner(sweep.folder), (folder / "lines.log").open("w") as lines:
        study = create_study(sweep, {"goal": "loss"})
        where = worker_slots(["cpu"], setting.num_workers, os.cpu_count() or 1)
        with live_view(study, Console(file=lines)) as view:

            def show():
                view()
                weights.append((time.time(), resident_bytes()))

            run_sweep(study, partial(epochs_of_task, folder, setting.num_workers), where, show)
    (folder / "weights.json").write_text(json.dumps(weights))


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
    def task(trial):
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
    pruner = HyperbandPruner(min_resource=2, max_resource=EPOCHS - 1, reduction_factor=3)  # as in search/study/sweep.py
    study = optuna.load_study(study_name="sweep", storage=open_peer(url), sampler=sampler, pruner=pruner)
    until = MaxTrialsCallback(setting.num_trials, states=(TrialState.COMPLETE, TrialState.PRUNED))
    study.optimize(task, callbacks=[until])


def run_ray(setting, folder, _):
    import ray
    from ray import tune

    def trainable(_):
        for loss in losses(folder, setting.num_workers):
            tune.report({"loss": loss})

    ray.init(num_cpus=setting.num_workers, include_dashboard=False, configure_logging=False)
    scheduler = tune.schedulers.AsyncHyperBandScheduler(max_t=EPOCHS, grace_period=2, reduction_factor=3)
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


def main():
    library, storage, num_trials, num_workers, algorithm, folder, url = sys.argv[1:]
    RUNS[library](Setting(library, storage, int(num_trials), int(num_workers), algorithm), Path(folder), url)


if __name__ == "__main__":
    main()
