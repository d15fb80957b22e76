"""Optuna as its PyTorch examples use it: study.optimize with every default, in two processes on one SQLite file.

The defaults are TPESampler and MedianPruner, which the examples ask after each epoch. Each process has its share of
the trials, so that there are exactly as many as were asked for.
"""

import multiprocessing
from functools import partial

import optuna

from benchmarks.peers.task import note, read_task, suggest

STORAGE = "sqlite:///study.db"
NUM_PROCESSES = 2


def objective(task, trial):
    from benchmarks.peers.tutorial import losses

    best = float("inf")
    for epoch, loss in enumerate(losses(suggest(task, trial), task), 1):
        note(task, trial.number, epoch, loss)
        best = min(best, loss)
        trial.report(loss, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return best


def optimize(task, num_trials):
    study = optuna.load_study(study_name="sweep", storage=STORAGE)
    study.optimize(partial(objective, task), n_trials=num_trials)


def main():
    task = read_task()
    optuna.create_study(study_name="sweep", storage=STORAGE, direction="minimize")
    context = multiprocessing.get_context("spawn")
    shares = [len(range(task.trials)[index::NUM_PROCESSES]) for index in range(NUM_PROCESSES)]
    processes = [context.Process(target=optimize, args=(task, share)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode) for process in processes)


if __name__ == "__main__":
    raise SystemExit(main())
