"""A sweep in miniature, with the real workers: what networks cost, and how many workers a device is worth.

The miniature trains each of a few networks for a few seconds, in a temporary folder, with as many workers at once as
the sweep has: they share cores and memory as the real ones will.
"""

import hashlib
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from threading import Event, Thread

import psutil
import torch
from filelock import FileLock
from optuna.trial import FrozenTrial

from catdog.data.cache import cache_folder
from catdog.data.dataset import Data, ImageSubset, load_data
from catdog.device import describe_device, gpu_memory, peak_memory
from catdog.evaluate import BATCH_PIXELS
from catdog.files import write_file
from pipeline.plan import Plan, count_cores
from pipeline.task import TrainTrial, configure
from search.space.space import Parameters
from search.study.create import create_study
from search.study.deaths import LAST_WORDS
from search.task import EpochMetrics, TrialContext
from search.workers.history import read_history
from search.workers.supervisor import run_sweep, worker_slots
from search.workers.tracking import Tracking

__all__ = [
    "Network",
    "Profile",
    "deal",
    "network_of",
    "num_judged",
    "peak_memory_of",
    "private_memory",
    "probe",
    "rate_of",
]

Network = tuple[tuple[str, object], ...]
"""The parameters that decide what an epoch costs."""

SECONDS = 4.0  # that a probe lasts at least
NUM_EPOCHS = 3  # that it has at least: the first prepares kernels, and one more is too few where an epoch takes seconds
NUM_STEPS = {"cpu": 1, "cuda": 16}  # of an epoch of the largest batches; a GPU is at its pace after a few
NO_COST = {"learning_rate", "weight_decay", "label_smoothing", "schedule", "dropout", "seed", "epochs"}  # of a step

STEPS_SHARED = {"cpu": 1, "cuda": 256}  # of an epoch where workers share a GPU: what is between epochs must not count
LOOK_SECONDS = 0.05  # between looks at memory, which comes and goes within a step
SHARING = (1, 2, 4, 8)  # workers that are tried on one GPU
WORTH = 1.05  # more workers are worth their memory where together they are so much faster


@dataclass(frozen=True)
class Profile:
    """What a sweep in miniature came to."""

    began: float  # time.time()
    seconds: float  # from there to its end
    num_trained: int  # pictures of an epoch
    networks: Sequence[Network]  # one for each trial
    trials: Sequence[FrozenTrial]
    rows: Sequence[Sequence[EpochMetrics]]  # the epochs of each
    memory: int  # bytes, the peak of `private_memory`

    @property
    def faults(self) -> dict[Network, str]:
        """Say which networks could not be probed, or not beside others for want of memory, and why."""
        faults = {}
        for network, trial, rows in zip(self.networks, self.trials, self.rows, strict=True):
            _, words, starved = trial.user_attrs.get(LAST_WORDS, ("", "", False))
            if starved or len(rows) < 2:
                faults[network] = str(words if starved else trial.user_attrs["reason"])
        return faults

    @property
    def leaves_room(self) -> bool:
        """Say whether as many workers again would find memory."""
        rows = [row for rows in self.rows for row in rows]
        has_host = 2 * self.memory < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return has_host and all(row["device_free"] >= row["device_total"] / 2 for row in rows)


@dataclass(frozen=True)
class _Brief(TrainTrial):
    """The task on so few pictures that an epoch is over at once, until its time is over."""

    num_pictures: int = 64

    def __call__(self, context: TrialContext) -> Iterator[EpochMetrics]:
        began = time.time()
        for row in super().__call__(context):
            now = time.time()
            free, total = gpu_memory(context.device)
            memory = {"device_memory": peak_memory(context.device), "device_free": free, "device_total": total}
            yield {**row, "ended": now, **memory}
            if row["epoch"] >= NUM_EPOCHS and now - began > SECONDS:
                return

    def load(self, image_size: int) -> Data:
        data = super().load(image_size)
        training, validation = _first(data.training, self.num_pictures), _first(data.validation, num_judged(image_size))
        return replace(data, training=training, validation=validation)


def probe(
    plan: Plan,
    data: Data,
    networks: Sequence[Network],
    show: Callable[[str], None],
    num_steps: Mapping[str, int] = NUM_STEPS,
) -> Profile:
    """Train each network for a few seconds; leave nothing. Raises what a sweep raises."""
    batch = max(configure(dict(network), plan.fixed)[1].batch_size for network in networks)
    num_pictures = batch * num_steps[plan.slots[0].device.split(":")[0]]
    with tempfile.TemporaryDirectory() as folder:
        sweep = replace(plan.sweep, folder=Path(folder) / "probe", num_trials=len(networks), pruner="none")
        sweep = replace(sweep, search_id="", storage="", artifacts="")
        study = create_study(sweep, {})
        for network in networks:
            study.optuna.enqueue_trial({}, user_attrs={"parameters": dict(network)})
        task = _Brief(sweep, plan.source, {**plan.fixed, "epochs": 10**6}, data.fingerprint, {}, num_pictures)
        tracking = None if plan.tracking == "off" else Tracking("offline", sweep, study.uid(), {})

        def tell() -> None:
            show(f"probing networks: {len(networks) - study.num_unfinished()} of {len(networks)}")

        began = time.time()
        with peak_memory_of(os.getpid()) as peak:
            run_sweep(study, task, plan.slots, tell, tracking, plan.limits)
        seconds, trials = time.time() - began, study.trials()
        rows = [list(read_history(study.sweep.trial_folder(trial.number))) for trial in trials]
    return Profile(began, seconds, min(len(data.training), num_pictures), networks, trials, rows, peak())


def deal(plan: Plan, networks: Sequence[Network], say: Callable[[str], None], show: Callable[[str], None]) -> Plan:
    """Give each device the fewest workers that train these networks within 5 % of the best rate that was seen.

    What is found is kept beside the decoded pictures: on this machine, the same networks are not tried again on the
    same devices and pictures of the same size. Raises what a sweep raises.
    """
    data = load_data(plan.source, plan.fixed["image_size"])
    devices = [slot.device for slot in plan.slots]
    kinds = [torch.cuda.get_device_name(device) if device.startswith("cuda") else device for device in devices]
    tried = (platform.node(), kinds, count_cores(), torch.__version__, plan.fixed["image_size"], networks)
    file = cache_folder() / f"workers-{hashlib.sha256(repr(tried).encode()).hexdigest()[:16]}"
    is_kept = os.access(file.parent, os.W_OK)
    with FileLock(f"{file}.lock") if is_kept else nullcontext():  # two that try at once would measure each other
        noted = _noted_number(file)
        if not noted:
            say("workers: trying how many a device is worth, which takes a while")
        number = noted or _best_number(plan, data, networks, say, show)
        if is_kept and not noted:
            write_file(file, str(number).encode())
    found = f", as was found before; without {file} it is tried again" if noted else ""
    each = "each of " if len(devices) > 1 else ""
    say(f"workers: {number} on {each}{', '.join(map(describe_device, devices))}{found}")
    return replace(plan, slots=worker_slots(devices, number * len(devices), count_cores()), is_dealt=True)


def _noted_number(file: Path) -> int:
    """Return what was found before; 0 where there is nothing."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def _best_number(
    plan: Plan, data: Data, networks: Sequence[Network], say: Callable[[str], None], show: Callable[[str], None]
) -> int:
    """Try more and more workers on each device for as long as there is memory for them; return the best number."""
    devices, num_cores, rates = [slot.device for slot in plan.slots], count_cores(), {}
    divisors = [number for number in range(1, num_cores + 1) if num_cores % number == 0]
    for number in divisors if devices == ["cpu"] else SHARING:
        where = worker_slots(devices, number * len(devices), num_cores)
        copies = [network for network in networks for _ in where]
        tried = probe(replace(plan, slots=where, tracking="off"), data, copies, show, STEPS_SHARED)
        fault = next(iter(tried.faults.values()), "")
        if number == 1:
            networks = [network for network in networks if network not in tried.faults]
        elif fault:
            say(f"workers: {number} to a device are too many: {fault}")
            break
        if not networks:
            say(f"note: how many workers a device is worth could not be tried: {fault}")
            return 1
        rates[number] = rate_of(tried, networks)
        say(f"workers: {number} to a device train {rates[number] / rates[1]:.2f}x as fast together as one")
        if not tried.leaves_room:
            break
    return min(number for number, rate in rates.items() if WORTH * rate >= max(rates.values()))


def rate_of(tried: Profile, networks: Sequence[Network]) -> float:
    """Return how fast all workers together are: epochs per second, the geometric mean over networks."""
    together = []
    for network in networks:
        copies = [rows for other, rows in zip(tried.networks, tried.rows, strict=True) if other == network]
        begin, end = max(rows[0]["ended"] for rows in copies), min(rows[-1]["ended"] for rows in copies)
        shared = [[row for row in rows[1:] if begin <= row["ended"] <= end] or rows[1:] for rows in copies]
        together.append(sum(1 / fmean(row["seconds"] for row in rows) for rows in shared))
    return math.exp(fmean(map(math.log, together)))


def network_of(parameters: Parameters) -> Network:
    return tuple(sorted((name, value) for name, value in parameters.items() if name not in NO_COST))


def num_judged(image_size: int) -> int:
    """Return how many pictures are judged at once."""
    return max(1, BATCH_PIXELS // image_size**2)


@contextmanager
def peak_memory_of(process: int) -> Iterator[Callable[[], int]]:
    """Watch the private memory of a process in a thread; yield what tells the peak so far, in bytes."""
    peak, over = 0, Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(LOOK_SECONDS):
            peak = max(peak, private_memory(process))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak
    finally:
        over.set()
        thread.join()


def private_memory(process: int) -> int:
    """Return the bytes of private pages of a process and all that it started; 0 where it has ended.

    That is what cannot be dropped when memory runs short: code of libraries and mapped images are not in it.
    """
    total = 0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        for one in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory = one.memory_info()
                total += memory.rss - getattr(memory, "shared", 0)
    return total


def _first(subset: ImageSubset, number: int) -> ImageSubset:
    return replace(subset, rows=subset.rows[:number])
