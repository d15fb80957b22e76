"""Profile networks: train each for a few seconds in a miniature sweep with the real workers.

The miniature runs in a temporary folder, with as many workers at once as the sweep: they share cores and memory in the
same way.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from threading import Event, Thread

import psutil
from optuna.trial import FrozenTrial

from catdog.data.dataset import Data
from catdog.device import gpu_memory, peak_memory
from catdog.evaluate import BATCH_PIXELS
from pipeline.task import TrainTrial, configure
from search.space.space import Parameters
from search.study.create import create_study
from search.study.deaths import LAST_WORDS
from search.task import EpochMetrics, TrialContext, WorkerSlot
from search.workers.history import read_history
from search.workers.supervisor import Limits, run_sweep
from search.workers.tracking import Tracking

Say = Callable[[str], None]
"""Prints a sentence, or shows it as the status."""

Network = tuple[tuple[str, object], ...]
"""The parameters that decide the cost of an epoch."""

MIN_SECONDS = 4.0  # of a profile
MIN_EPOCHS = 3  # likewise: the first one prepares kernels; one more is too few if epochs are long
NUM_STEPS = {"cpu": 1, "cuda": 16}  # of an epoch of the largest batches; a GPU reaches its pace after a few
# Parameters that do not change the cost of a step. start_scale does, but a profile is of the full size.
NO_COST = {"learning_rate", "weight_decay", "label_smoothing", "schedule", "dropout", "ema", "start_scale"}
NO_COST |= {"seed", "epochs"}
SAMPLING_SECONDS = 0.05  # between samples of memory, which comes and goes within a step


@dataclass(frozen=True)
class Profile:
    """The measurements of a miniature sweep."""

    began: float  # Unix seconds
    ended: float  # Unix seconds
    num_images: int  # of a training epoch, if the data has so many
    networks: Sequence[Network]  # one for each trial
    trials: Sequence[FrozenTrial]
    epochs: Sequence[Sequence[EpochMetrics]]  # of each trial
    memory: int  # bytes, the peak of `private_memory`

    @property
    def faults(self) -> dict[Network, str]:
        """Return the networks that failed, or ran out of memory beside others, with the reason."""
        faults = {}
        for network, trial, epochs in zip(self.networks, self.trials, self.epochs, strict=True):
            _, words, starved = trial.user_attrs.get(LAST_WORDS, ("", "", False))
            if starved or len(epochs) < 2:
                faults[network] = str(words if starved else trial.user_attrs["reason"])
        return faults

    @property
    def leaves_room(self) -> bool:
        """Say whether free memory is at least as large as the memory in use."""
        has_host = 2 * self.memory < psutil.virtual_memory().total
        return has_host and all(e["device_free"] >= e["device_total"] / 2 for epochs in self.epochs for e in epochs)


@dataclass(frozen=True)
class _Miniature(TrainTrial):
    """The task on a few images, for a few seconds."""

    num_images: int = 64

    def __call__(self, context: TrialContext) -> Iterator[EpochMetrics]:
        began = time.time()
        for metrics in super().__call__(context):
            ended = time.time()
            free, total = gpu_memory(context.device)
            memory = {"device_memory": peak_memory(context.device), "device_free": free, "device_total": total}
            yield {**metrics, "ended": ended, **memory}
            if metrics["epoch"] >= MIN_EPOCHS and ended - began > MIN_SECONDS:
                return

    def load(self, image_size: int) -> Data:
        data = super().load(image_size)
        training = replace(data.training, rows=data.training.rows[: self.num_images])
        validation = replace(data.validation, rows=data.validation.rows[: evaluation_batch(image_size)])
        return replace(data, training=training, validation=validation)


def profile_networks(
    task: TrainTrial,
    slots: Sequence[WorkerSlot],
    networks: Sequence[Network],
    show: Say,
    limits: Limits,
    num_steps: Mapping[str, int] = NUM_STEPS,
    *,
    is_tracked: bool = False,
) -> Profile:
    """Train each network for a few seconds and keep nothing. Raises the errors of a sweep."""
    batch = max(configure(dict(network), task.fixed)[1].batch_size for network in networks)
    num_images = batch * num_steps[slots[0].device.split(":")[0]]
    with tempfile.TemporaryDirectory() as folder:
        sweep = replace(task.sweep, folder=Path(folder) / "profile", num_trials=len(networks), pruner="none")
        sweep = replace(sweep, search_id="", storage="", artifacts="")
        study = create_study(sweep, {})
        for network in networks:
            study.optuna.enqueue_trial({}, user_attrs={"parameters": dict(network)})
        fixed = {**task.fixed, "epochs": 10**6}
        miniature = _Miniature(sweep, task.source, fixed, task.fingerprint, {}, num_images)
        tracking = Tracking("offline", sweep, study.uid(), {}) if is_tracked else None

        def show_progress() -> None:
            show(f"profiling networks: {len(networks) - study.num_unfinished()} of {len(networks)}")

        began = time.time()
        with peak_memory_of(os.getpid()) as peak:
            run_sweep(study, miniature, slots, show_progress, tracking, limits)
        ended, trials = time.time(), study.trials()
        epochs = [list(read_history(sweep.trial_folder(trial.number))) for trial in trials]
    return Profile(began, ended, num_images, networks, trials, epochs, peak())


def rate_of(profile: Profile, networks: Sequence[Network]) -> float:
    """Return the joint rate of all workers: epochs per second, the geometric mean over networks."""
    together = []
    for network in networks:
        copies = [epochs for other, epochs in zip(profile.networks, profile.epochs, strict=True) if other == network]
        begin, end = max(epochs[0]["ended"] for epochs in copies), min(epochs[-1]["ended"] for epochs in copies)
        shared = [[e for e in epochs[1:] if begin <= e["ended"] <= end] or epochs[1:] for epochs in copies]
        together.append(sum(1 / fmean(epoch["seconds"] for epoch in epochs) for epochs in shared))
    return math.exp(fmean(map(math.log, together)))


def network_of(parameters: Parameters) -> Network:
    """Return the parameters that decide the cost of an epoch."""
    return tuple(sorted((name, value) for name, value in parameters.items() if name not in NO_COST))


def evaluation_batch(image_size: int) -> int:
    """Return the number of images in a batch of an evaluation."""
    return max(1, BATCH_PIXELS // image_size**2)


@contextmanager
def peak_memory_of(process: int) -> Iterator[Callable[[], int]]:
    """Sample the private memory of a process in a thread; yield a function that returns the peak so far, in bytes."""
    peak, over = 0, Event()

    def sample() -> None:
        nonlocal peak
        while not over.wait(SAMPLING_SECONDS):
            peak = max(peak, private_memory(process))

    thread = Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: peak
    finally:
        over.set()
        thread.join()


def private_memory(process: int) -> int:
    """Return the bytes of private pages of a process and its descendants, 0 if it has ended.

    Private pages cannot be dropped when memory runs short. Code of libraries and mapped images are not among them.
    """
    total = 0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        for member in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory = member.memory_info()
                total += memory.rss - getattr(memory, "shared", 0)
    return total
