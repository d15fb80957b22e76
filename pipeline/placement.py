"""Place workers on the devices of this machine or on a Ray cluster, or measure their best number per device."""

import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import joblib
from filelock import FileLock

from catdog.data.cache import cache_folder
from catdog.data.files import write_file
from catdog.device import describe_device, find_devices
from pipeline.profiling import Network, Profile, Say, profile_networks, rate_of
from pipeline.task import TrainTrial, library_versions
from search.formatting import count
from search.task import WorkerSlot
from search.workers.backend import Backend
from search.workers.supervisor import Limits, worker_slots

AUTO = "auto"  # workers per device: to be measured
STEPS_SHARED = {"cpu": 1, "cuda": 256}  # of an epoch when workers share a GPU: time between epochs must not count
NUM_SHARING = (1, 2, 4, 8)  # numbers of workers that are measured on one GPU
WORTH = 1.05  # more workers are worth their memory if their joint rate is higher by this factor


def count_cores() -> int:
    """Return the number of cores that this process may use, within its affinity and its cgroup's limit."""
    return int(joblib.cpu_count())


def first_device() -> str:
    """Return the first GPU that this process may use, else the CPU."""
    return find_devices(AUTO)[0]


def place_here(devices: Sequence[str], num_workers: int | None, per_device: int | str | None) -> list[WorkerSlot]:
    """Assign workers to the devices of this machine. Raises ValueError for options that do not go together."""
    num_cores = count_cores()
    if per_device == AUTO:
        if num_workers and "COMET_OPTIMIZER_PROCESS_JOBS" not in os.environ:  # comet optimize has a -j of its own
            raise ValueError("--workers-per-device auto finds the number of workers; leave out --workers")
        if len({device.split(":")[0] for device in devices}) > 1:
            raise ValueError("--workers-per-device auto is for devices of one kind; leave the CPU out of --devices")
        return worker_slots(devices, len(devices), num_cores)
    if per_device and devices == ["cpu"]:
        raise ValueError("--workers-per-device with a number is for GPUs; for the CPU give --workers")
    room = num_cores if devices == ["cpu"] else len(devices) * int(per_device or 1)
    if num_workers and per_device and num_workers > room:
        raise ValueError(f"--workers is {num_workers}; with this --workers-per-device there is room for {room}")
    return worker_slots(devices, num_workers or room, num_cores)


def place_on_ray(
    address: str, num_workers: int | None, per_device: int | None, *, single: bool, say: Say
) -> tuple[list[WorkerSlot], Backend]:
    """Divide a Ray cluster among workers. A `single` cluster is one of this machine alone."""
    try:
        from search.workers.ray_backend import Home, RayBackend, connect, share_out  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ValueError("--backend ray needs Ray; pip install 'ray>=2.50' (extra cluster)") from error
    nodes = connect(address, single=single)
    share = share_out(nodes, num_workers, per_device)
    say(f"Ray: {share}, on a cluster of {count(len(nodes), 'node')}")
    home = Home(str(Path.cwd()), library_versions(), single=single)
    return share.worker_slots(), RayBackend(home, share, first_device)


def measure_workers(
    task: TrainTrial, devices: Sequence[str], networks: Sequence[Network], limits: Limits, say: Say, show: Say
) -> list[WorkerSlot]:
    """Give each device the fewest workers that train these networks within 5 % of the best measured rate.

    The number is cached beside the decoded images, for this machine, its devices, the networks and the image size.
    Raises the errors of a sweep.
    """
    kinds = [describe_device(device).split(" ", 1)[-1] for device in devices]  # without a GPU's index
    key = (platform.node(), kinds, count_cores(), library_versions()["torch"], task.fixed["image_size"], networks)
    file = cache_folder() / f"workers-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
    is_writable = os.access(file.parent, os.W_OK)
    with FileLock(f"{file}.lock") if is_writable else nullcontext():  # two measurements would disturb each other
        cached = 0
        with suppress(OSError, ValueError):  # not measured before
            cached = int(file.read_text(encoding="utf-8"))
        if not cached:
            say("workers: measuring how many to run on a device, which takes a while")
        profile = partial(profile_networks, task, show=show, limits=limits, num_steps=STEPS_SHARED)
        number = cached or _best_number(profile, devices, networks, say)
        if is_writable and not cached:
            write_file(file, str(number).encode())
    source = f", as measured before; delete {file} to measure again" if cached else ""
    each = "each of " if len(devices) > 1 else ""
    say(f"workers: {number} on {each}{', '.join(map(describe_device, devices))}{source}")
    return worker_slots(devices, number * len(devices), count_cores())


def _best_number(profile: Callable[..., Profile], devices: Sequence[str], networks: Sequence[Network], say: Say) -> int:
    """Measure increasing numbers of workers per device while memory suffices; return the best number."""
    num_cores, rates = count_cores(), {}
    divisors = [number for number in range(1, num_cores + 1) if num_cores % number == 0]
    for number in divisors if devices == ["cpu"] else NUM_SHARING:
        slots = worker_slots(devices, number * len(devices), num_cores)
        measured = profile(slots, [network for network in networks for _ in slots])
        fault = next(iter(measured.faults.values()), "")
        if number == 1:
            networks = [network for network in networks if network not in measured.faults]
        elif fault:
            say(f"workers: {number} per device are too many: {fault}")
            break
        if not networks:
            say(f"note: the number of workers per device could not be measured: {fault}")
            return 1
        rates[number] = rate_of(measured, networks)
        say(f"workers: {number} per device train {rates[number] / rates[1]:.2f}x as fast together as one")
        if not measured.leaves_room:
            break
    return min(number for number, rate in rates.items() if WORTH * rate >= max(rates.values()))
