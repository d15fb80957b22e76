"""A real sweep, its study, workers, locks and Comet, whose training is counting: for tests that kill it.

    python tests/servers/counting_sweep.py FOLDER NUM_TRIALS NUM_WORKERS [--deadly N] [--failing N] [--diverging N] ...

Each epoch takes EPOCH_SECONDS and is written to FOLDER/epochs.log as it begins. A deadly trial ends its worker
each time it starts.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import search.workers.liveness
from search.comet.client import wait_for_comet
from search.comet.optimizer import create_search
from search.space.space import load_space
from search.study.confirmation import choose, create_confirmation
from search.study.create import create_study
from search.study.shared_study import SharedStudy
from search.study.storage import validated_storage
from search.study.sweep import Sweep
from search.task import OutOfMemoryError
from search.workers.loky_backend import LokyBackend
from search.workers.supervisor import Limits, run_sweep, sole_owner, worker_pool, worker_slots
from search.workers.tracking import Model, Tracking, how_to_upload, settle
from tests.servers.processes import wait_until

EPOCHS, EPOCH_SECONDS = 4, 0.15
SPACE = {
    "algorithm": "bayes",
    "parameters": {"x": {"type": "float", "min": 0, "max": 1}},
    "spec": {"metric": "best_loss", "seed": 5, "maxCombo": 12},
}
GRID = {"algorithm": "grid", "parameters": {"x": {"type": "float", "min": 0, "max": 1, "gridSize": 8}}}


def begin_confirmation(study, num_configurations, num_repeats):
    """Open the confirmation of a search that has ended, its runs chosen."""
    runs = create_confirmation(study, num_configurations, num_repeats)
    choose(runs)
    return runs


def make_sweep(folder, num_trials, pruner="hyperband", **changes):
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({**SPACE, **changes}))
    space = load_space(path, {**dict.fromkeys("xyzu", 2.0), "seed": 3}, {"loss": "minimize"}, lambda _: None)
    return Sweep(folder, space, EPOCHS, num_trials, pruner)


def count(context):
    checkpoint = context.checkpoint
    (context.folder / "network.txt").write_text("a table of layers")
    (context.folder / "confusion.json").write_text(json.dumps({"labels": ["cat", "dog"], "matrix": [[9, 1], [2, 8]]}))
    (context.folder / "model.safetensors").write_text("weights")
    if options.backend == "ray":
        note_place(context)
    rows = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    yield from rows
    for epoch in range(len(rows) + 1, EPOCHS + 1):
        log = "epochs.log" if context.confirms is None else "confirmation.log"
        with (context.folder.parents[1] / log).open("a") as log:
            log.write(f"{context.number} {epoch} {context.seed} {context.parameters['x']} {time.time()}\n")
        length = options.lengths[context.number] if context.confirms is None and options.lengths else 1.0
        time.sleep(length * options.seconds)
        if context.number == options.stuck:
            time.sleep(1000)
        if context.number == options.waiting:
            wait_for_next(context)
        if options.held and context.number >= options.held[0] and epoch == options.held[1]:
            wait_until((context.folder.parents[1] / "go").exists)
        context.check()
        if context.number == options.deadly:
            os._exit(9)
        if context.number == options.hungry:
            raise OutOfMemoryError("out of memory, 1 GiB wanted")
        if context.number == options.crowded and others_train(context):
            raise OutOfMemoryError("out of memory, 1 GiB wanted")
        if context.number == options.failing:
            raise RuntimeError(os.environ.get("WORDS", "it does not work"))
        loss = abs(context.parameters["x"] - 0.3) + 1 / epoch
        if context.number == options.diverging and epoch == 2:
            loss = float("nan")
        rows.append({"epoch": epoch, "loss": loss, "seconds": options.seconds})
        partial = checkpoint.with_suffix(".partial")
        partial.write_text(json.dumps(rows))
        partial.replace(checkpoint)
        yield rows[-1]


def wait_for_next(context):
    """Wait until another worker has begun the trial after this one."""
    log = context.folder.parents[1] / "epochs.log"
    wait_until(lambda: f"\n{context.number + 1} " in log.read_text())


def others_train(context):
    """Say whether another worker of this sweep lives."""
    children = subprocess.run(["pgrep", "-f", "-P", str(os.getppid()), "popen_loky"], capture_output=True, check=False)
    return len(children.stdout.split()) > 1


def note_place(context):
    import ray

    node, (gpu,) = ray.get_runtime_context().get_node_id(), ray.get_gpu_ids() or (None,)
    with (context.folder.parents[1] / "worker_slots.log").open("a") as log:
        log.write(f"{os.getpid()} {node} {gpu} {context.number} {time.time()}\n")


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("num_trials", type=int)
    parser.add_argument("num_workers", type=int)
    parser.add_argument("--confirm", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--no-ahead", dest="ahead", action="store_false", help="confirm after the search alone")
    for name in ("deadly", "failing", "diverging", "promoted"):
        parser.add_argument(f"--{name}", type=int, default=-1, help="number of the trial")
    parser.add_argument("--seconds", type=float, default=EPOCH_SECONDS)
    text = "how long the epochs of each trial of the search are, in --seconds: 1,1,4"
    parser.add_argument("--lengths", type=lambda text: [float(part) for part in text.split(",")], help=text)
    parser.add_argument("--pruner", default="hyperband")
    parser.add_argument("--tracking", default="off")
    parser.add_argument("--engine", default="optuna")
    parser.add_argument("--algorithm", default="bayes")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--patience", type=float, default=600.0)
    parser.add_argument("--finish", type=float, default=600.0)
    parser.add_argument("--notify", action="store_true")
    parser.add_argument("--storage", default="")
    parser.add_argument("--artifacts", default="")
    parser.add_argument("--stuck", type=int, default=-1, help="number of a trial that goes on for ever")
    text = "number of a trial that goes on when the next one has begun"
    parser.add_argument("--waiting", type=int, default=-1, help=text)
    text = "N,EPOCH: trial N and those after it wait in this epoch for the file FOLDER/go"
    parser.add_argument("--held", type=lambda text: [int(part) for part in text.split(",")], help=text)
    parser.add_argument("--hungry", type=int, default=-1, help="number of a trial for which there is no memory")
    text = "number of a trial for which there is no memory while other workers live"
    parser.add_argument("--crowded", type=int, default=-1, help=text)
    parser.add_argument("--trial-timeout", type=float)
    parser.add_argument("--keep", type=int, default=10)
    parser.add_argument("--backend", default="loky")
    parser.add_argument("--ray-address", default="")
    parser.add_argument("--needs", default="", help="NAME=VERSION of a package, on every machine")
    parser.add_argument("--stopped", type=float, default=search.workers.liveness.STOPPED_SECONDS)
    return parser.parse_args()


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as run_sweep.py, whatever a shell in the background says
    changes = GRID if options.algorithm == "grid" else {"algorithm": options.algorithm}
    sweep = make_sweep(options.folder, options.num_trials, options.pruner, **changes)
    if options.no_baseline:
        sweep = replace(sweep, space=replace(sweep.space, baseline=None))
    storage = validated_storage(options.storage)
    sweep = replace(sweep, patience=options.patience, storage=storage, artifacts=options.artifacts, keep=options.keep)
    search.workers.liveness.STOPPED_SECONDS = options.stopped
    with sole_owner(sweep.folder, shared=bool(sweep.storage)):
        study = create_study(sweep, {"goal": "loss"})
        if options.engine == "comet":
            if not study.search_id():
                ask = lambda: create_search(sweep.space.content, 2 * sweep.num_trials)  # noqa: E731
                study.note_search(wait_for_comet(ask, sweep.patience, print))
            study = SharedStudy(replace(sweep, search_id=study.search_id()))
        where, backend = placed()
        runs = create_confirmation(study, options.confirm, options.repeats) if options.confirm else None
        parts = [(part, tracking_of(part)) for part in (study, runs) if part]
        limits = Limits(trial=options.trial_timeout)
        with worker_pool(parts if options.ahead else parts[:1], count, where, limits, backend) as pool:
            pool.complete(study, lambda: None)
            if runs and options.ahead:
                choose(runs)
                pool.complete(runs, lambda: None)
        if runs and not options.ahead:
            choose(runs)
            run_sweep(runs, count, where, lambda: None, parts[1][1], limits, backend)
        for (part, tracking), model in zip(parts, (model_of(sweep), None), strict=False):
            part.report_left()
            if tracking:
                print(settle(tracking, part.trials(), model, print), how_to_upload(part.sweep))


def placed():
    if options.backend == "loky":
        return worker_slots(["cpu"], options.num_workers, options.num_workers), LokyBackend()
    from search.workers.ray_backend import Home, RayBackend, connect, share_out

    share = share_out(connect(options.ray_address, single=True), options.num_workers or None, None)
    versions = dict([options.needs.split("=")]) if options.needs else {}
    return share.worker_slots(), RayBackend(Home(str(Path.cwd()), versions, single=True), share, lambda: "cpu")


def tracking_of(study):
    if options.tracking == "off":
        return None
    facts = {"cores": os.cpu_count(), "commit": "0123456789abcdef"}
    return Tracking(options.tracking, study.sweep, study.uid(), facts, options.notify, options.finish)


def model_of(sweep):
    if options.promoted < 0:
        return None
    file = sweep.folder / "model.safetensors"
    file.write_bytes(b"weights")
    return Model(options.promoted, file, "catdog", "2026.1123.144512")


options = (
    parse()
    if __name__ == "__main__"
    else argparse.Namespace(
        deadly=-1,
        hungry=-1,
        crowded=-1,
        failing=-1,
        diverging=-1,
        stuck=-1,
        waiting=-1,
        held=None,
        seconds=0.15,
        lengths=None,
        backend="loky",
    )
)

if __name__ == "__main__":
    main()
