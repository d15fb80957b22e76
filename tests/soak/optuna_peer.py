"""A sweep of counted epochs, made crash-safe as Optuna's documentation says: for comparison, under the same faults.

    python tests/soak/optuna_peer.py FOLDER NUM_TRIALS NUM_WORKERS [--seconds S]

Heartbeats find trials that were left behind, RetryHeartbeatStaleTrialCallback puts each into the queue again as a
trial of its own, which goes on from the checkpoint of the first; MaxTrialsCallback ends the sweep. A line of JSON at
the end says what the study and FOLDER/epochs.log hold.
"""

import argparse
import json
import os
import signal
import sys
import time
import warnings
from multiprocessing import get_context
from pathlib import Path

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

EPOCHS = 4
HEARTBEAT_SECONDS, GRACE_SECONDS, MAX_RETRIES = 1, 3, 3  # the shortest heartbeat; the documentation has 60 and 120
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)

warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats are experimental


def open_storage(folder):
    return RDBStorage(
        f"sqlite:///{folder}/study.db",
        engine_kwargs={"connect_args": {"timeout": 60.0}},
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES),
    )


def load_study(folder):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.NopPruner()  # every trial has all its epochs
    return optuna.create_study(
        study_name="sweep", storage=open_storage(folder), pruner=pruner, direction="minimize", load_if_exists=True
    )


def original_of(trial):
    """Return the number of the trial that this one tries again; its own where it is the first."""
    number = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if number is None else number


def work(folder, num_trials, seconds):
    def train(trial):
        x = trial.suggest_float("x", 0, 1)
        number = original_of(trial.study.get_trials(deepcopy=False)[trial.number])  # a Trial lacks what it reads
        checkpoint = folder / f"checkpoints/{number:04}.json"
        losses = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
        for epoch in range(1, EPOCHS + 1):
            if epoch > len(losses):
                with (folder / "epochs.log").open("a") as log:
                    log.write(f"{number} {epoch}\n")
                time.sleep(seconds)
                losses.append(abs(x - 0.3) + 1 / epoch)
                partial = checkpoint.with_suffix(f".{os.getpid()}")
                partial.write_text(json.dumps(losses))
                partial.replace(checkpoint)
            trial.report(losses[epoch - 1], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return losses[-1]

    load_study(folder).optimize(train, callbacks=[MaxTrialsCallback(num_trials, states=ENDED)])


def outcome(folder, num_trials):
    """Say what came of it."""
    ended = load_study(folder).get_trials(deepcopy=False, states=ENDED)
    log = folder / "epochs.log"
    return {
        "finished": len(ended),
        "asked": num_trials,
        "epochs_run": len(log.read_text().splitlines()) if log.exists() else 0,
        "epochs_needed": num_trials * EPOCHS,
    }


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("num_trials", type=int)
    parser.add_argument("num_workers", type=int)
    parser.add_argument("--seconds", type=float, default=0.15, help="of an epoch")
    return parser.parse_args()


def main():
    options = parse()
    (options.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    status, study = 0, load_study(options.folder)
    if len(study.get_trials(deepcopy=False, states=ENDED)) < options.num_trials:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the workers: they are daemons
        arguments = (options.folder, options.num_trials, options.seconds)
        context = get_context("spawn")
        workers = [context.Process(target=work, args=arguments, daemon=True) for _ in range(options.num_workers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        status = int(any(worker.exitcode for worker in workers))
    print(json.dumps(outcome(options.folder, options.num_trials)))
    return status


if __name__ == "__main__":
    sys.exit(main())
