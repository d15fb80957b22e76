"""Worker processes on a Ray cluster, which chooses machine and GPU for each.

Each worker is an actor. Ray's joblib backend does not fit: its pool never replaces dead actors, fails as a whole when
one of them dies, and runs a single worker in this process.
"""

import math
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import ray
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from search.formatting import count
from search.task import WorkerSlot
from search.workers.backend import Job, Process, WorkerDiedError
from shell.redact import redact

PORT = 6379  # of a head node, if the user names none
CONNECT_SECONDS = 5.0
DEATH_SECONDS = 2.0  # limit of the wait for Ray to find out how a process died
END_SECONDS = 10.0  # limit of the wait for Ray to end a process
# Prefixes of the environment variables that the command passes on to its workers.
PASSED_ON = ("AWS_", "CATDOG_CACHE", "COMET_", "PGHOST", "PGPASS", "PGPORT", "PGSSL", "PGUSER")


@dataclass(frozen=True)
class Home:
    """Requirements on a worker's machine, taken from the command's."""

    folder: str  # the command's working directory
    versions: Mapping[str, str]  # of "python" and of packages
    single: bool  # only the command's host may work: the study is a file there
    host: str = socket.gethostname()
    code: str = str(Path(__file__).parents[2])  # the folder of search/


@dataclass(frozen=True)
class Share:
    """The resources that Ray reserves for each worker."""

    num_workers: int
    num_cpus: float
    num_gpus: float

    def __str__(self) -> str:
        gpus = f"{count(self.num_gpus, 'GPU')} and " if self.num_gpus else ""
        return f"{count(self.num_workers, 'worker')} with {gpus}{count(self.num_cpus, 'CPU')} each"

    def worker_slots(self) -> list[WorkerSlot]:
        """Return one slot per worker. Ray chooses the device later."""
        device = "a GPU of the cluster" if self.num_gpus else "a CPU of the cluster"
        threads = max(1, int(self.num_cpus))
        return [WorkerSlot(slot, device, threads, alone=True) for slot in range(self.num_workers)]


def connect(address: str, *, single: bool) -> list[tuple[float, float]]:
    """Join the cluster at HOST[:PORT], else the one that Ray finds, else start one here.

    Return CPUs and GPUs of each node. Raises ValueError if no cluster can be joined, or if a `single` machine is
    required and the cluster has more.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here sends no statistics
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "auto", "local"):
        address = _answering(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or None, logging_level="critical", log_to_driver=False)
    except (OSError, RuntimeError, ValueError, SystemExit) as error:  # Ray exits the process if there is no answer
        where = f"at {address}" if address else "here"
        raise ValueError(f"--ray-address: no Ray cluster can be joined {where} ({_first_line(error)})") from error
    finally:
        signal.signal(signal.SIGTERM, before)
    # Ray would print pages about every death into the live table, which shows one sentence about it.
    vars(sys.modules["ray._private.worker"])["print_to_stdstream"] = lambda *_, **__: None
    nodes = [node for node in ray.nodes() if node["Alive"]]
    num_machines = len({ray.util.get_node_ip_address(), *(node["NodeManagerAddress"] for node in nodes)})
    if single and num_machines > 1:
        raise ValueError(f"--backend ray over {num_machines} machines needs --storage postgresql://USER@HOST/DATABASE")
    return [(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes]


def share_out(nodes: Sequence[tuple[float, float]], wanted: int | None, per_gpu: int | None) -> Share:
    """Divide nodes, given as (CPUs, GPUs), among `wanted` workers, by default as many as fit.

    `per_gpu` workers fit on each GPU; without GPUs, one on each CPU. Workers that do not fit wait for machines to join.
    Raises ValueError for a cluster without CPUs, and for `per_gpu` without GPUs.
    """
    num_gpus = int(sum(gpus for _, gpus in nodes))
    if num_gpus:
        per_gpu = per_gpu or 1
        cpus = min(cpus / (gpus * per_gpu) for cpus, gpus in nodes if gpus >= 1)
        return Share(wanted or num_gpus * per_gpu, math.floor(cpus) or _rounded(cpus), _rounded(1 / per_gpu))
    if per_gpu:
        raise ValueError("--workers-per-device is about GPUs, and this Ray cluster has none; give --workers")
    num_cpus = int(sum(cpus for cpus, _ in nodes))
    if not num_cpus:
        raise ValueError("this Ray cluster has neither GPUs nor CPUs; start its nodes with --num-cpus or --num-gpus")
    num_workers = wanted or num_cpus
    sizes = (cpus for cpus in range(num_cpus, 0, -1) if sum(node // cpus for node, _ in nodes) >= num_workers)
    return Share(num_workers, next(sizes, 1), 0.0)


@dataclass(frozen=True)
class RayBackend:
    """Processes on the cluster that `connect` joined."""

    home: Home
    share: Share
    find_device: Callable[[], str]  # called in each worker with a GPU: its name there

    def start(self, job: Job, slot: WorkerSlot) -> Process:
        try:
            return _RayProcess(self, job, slot)
        except RayError as error:
            raise RuntimeError(f"Ray failed ({_first_line(error)})") from error


class _RayProcess:
    def __init__(self, backend: RayBackend, job: Job, slot: WorkerSlot) -> None:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a machine has our code only after `_join`
        share = backend.share
        member = ray.remote(_Member).options(num_cpus=share.num_cpus, num_gpus=share.num_gpus, max_restarts=0)
        settings = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        settings |= {name: str(slot.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.actor = member.remote()
        self.where = self.actor.where.remote()
        context = cloudpickle.dumps((job, slot, backend.find_device))
        self.future: Future[None] = self.actor.work.remote(backend.home, settings, context).future()

    def result(self) -> None:
        try:
            self.future.result()
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise RuntimeError(redact(error).strip().splitlines()[-1]) from error
        except RayActorError as error:
            death = error if isinstance(error, ActorDiedError) else self._death()
            how = " for want of memory" if "low on memory" in str(death) else ""
            only_worker = death and "node has died" not in str(death)  # Ray has no field for it
            raise WorkerDiedError(how, "" if only_worker else f"the Ray node on {self._whereabouts()[0]}") from error
        except RayError as error:
            raise RuntimeError(f"Ray failed ({_first_line(error)})") from error

    def is_waiting(self) -> bool:
        return not ray.wait([self.where], timeout=0)[0]

    def pids(self) -> list[int]:
        host, pid = self._whereabouts()
        return [pid] if host == socket.gethostname() else []

    def end(self) -> None:
        pids = self.pids()
        with suppress(RayError):
            ray.kill(self.actor)
        deadline = time.monotonic() + END_SECONDS
        wait([self.future], END_SECONDS)
        while time.monotonic() < deadline and any(map(psutil.pid_exists, pids)):
            time.sleep(0.02)

    def _death(self) -> ActorDiedError | None:
        """Ask Ray again how an unreachable process died. Return None if it still does not know."""
        try:
            ray.get(self.actor.where.remote(), timeout=DEATH_SECONDS)
        except RayError as error:
            return error if isinstance(error, ActorDiedError) else None
        return None

    def _whereabouts(self) -> tuple[str, int]:
        """Return host and process id; 0 if it has not started."""
        with suppress(RayError):
            if not self.is_waiting():
                host, pid = ray.get(self.where)
                return host, pid
        return "a machine of the cluster", 0


class _Member:
    """The actor that runs a worker on its machine. It and `Home` are pickled by value."""

    def where(self) -> tuple[str, int]:
        return socket.gethostname(), os.getpid()

    def work(self, home: Home, settings: Mapping[str, str], context: bytes) -> None:
        """Prepare this machine and do the job. Raises OSError, naming this host, for faults of the machine."""
        _join(home)
        os.environ.update(settings)
        job, slot, find_device = cloudpickle.loads(context)
        gpus = ray.get_gpu_ids()
        device = find_device() if gpus else "cpu"
        host = socket.gethostname()
        label = f"{host} cuda:{gpus[0]}" if gpus else f"{host} {device}"
        try:
            job(replace(slot, device=device, label=label))
        except OSError as error:
            raise OSError(f"{label}: {error}") from error


def _join(home: Home) -> None:
    """Enter the command's folder and import its code. Raises OSError if this machine does not meet `home`."""
    host = socket.gethostname()
    if home.single and host != home.host:
        remedy = "many machines need --storage postgresql://..."
        raise OSError(f"{host} has joined the Ray cluster of {home.host}; {remedy}")
    for folder in (home.folder, home.code):
        if not Path(folder).is_dir():
            raise OSError(f"{host} cannot work for {home.host}: it has no folder {folder}")
    for name, wanted in home.versions.items():
        try:
            found = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            found = "missing"
        if found != wanted:
            raise OSError(f"{host} cannot work for {home.host}: its {name} is {found}, not {wanted}")
    os.chdir(home.folder)
    sys.path.insert(0, home.code)


def _answering(address: str) -> str:
    """Return HOST:PORT. Raises ValueError if it does not answer; Ray itself would wait for two minutes."""
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(PORT))
    if not host or "/" in address or not port.isdecimal():
        raise ValueError(f"--ray-address is {address!r}; it takes HOST or HOST:PORT of the cluster's head node")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"--ray-address: no answer from {host}:{port} ({error})") from error
    return f"{host}:{port}"


def _rounded(part: float) -> float:
    """Round down to ten-thousandths, the finest resource that Ray counts."""
    return math.floor(part * 10_000) / 10_000


def _first_line(error: BaseException) -> str:
    return next(iter(redact(error).strip().splitlines()), type(error).__name__)
