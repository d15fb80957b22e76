"""The command line and the search space -> a Plan, or one sentence about what is wrong with them."""

import argparse
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import sqlalchemy

from catdog.data.dataset import Data
from catdog.device import find_devices
from catdog.model import MAX_IMAGE_SIZE
from pipeline.task import DEFAULTS, METRICS, SEARCHABLE, cast, configure, environment_info, first_device
from search.comet.client import has_api_key, wait_for_comet
from search.comet.optimizer import read_search
from search.formatting import count
from search.space.schema import known_keys
from search.space.space import Parameters, Space, load_space
from search.study.storage import noted_storage, validated_storage, without_password
from search.study.sweep import Sweep
from search.study.warm_start import PriorSweep, noted_prior_sweep, read_prior_sweep
from search.task import WorkerSlot
from search.workers.artifacts import validated_artifacts
from search.workers.backend import Backend
from search.workers.loky_backend import LokyBackend
from search.workers.supervisor import Limits, worker_slots

__all__ = ["Plan", "command", "count_cores", "exit_with_error", "make_plan", "parse", "settings"]

Engine = Literal["optuna", "comet"]

RUNS = Path("runs")
AUTO = "auto"
NAME = r"[\w][\w.-]*"  # of a sweep
LENIENT = {"image_size": MAX_IMAGE_SIZE, "body_repeats": 1}  # with which every other value makes a network, if any does
FIXED = ("epochs", "image_size")  # of every trial, where they are not searched
SEARCH_ID = r"[0-9a-f]{32}"  # how Comet names a search


@dataclass(frozen=True)
class Plan:
    """Everything the command line and the search space decide."""

    sweep: Sweep  # its search_id is set where the search exists at Comet already
    source: str  # of pictures
    fixed: Parameters  # of every trial: epochs, image_size
    slots: list[WorkerSlot]
    is_dealt: bool  # whether the number of workers on each device is settled; else it is to be tried
    backend: Backend  # what starts workers there
    device: str  # of this machine, where the winner is judged
    engine: Engine
    tracking: Literal["online", "offline", "off"]
    notify: bool
    confirm: int  # configurations; 0: none
    confirm_seeds: int  # runs of each
    promote: Literal["if-better", "always", "never"]
    limits: Limits
    earlier: PriorSweep | None  # the sweep that the search starts from


def make_plan(options: argparse.Namespace, say: Callable[[str], None]) -> Plan:
    """Validate everything the user wrote, before anything is created. Raises ValueError, one sentence."""
    began = time.monotonic()
    given = {name: getattr(options, name) for name in FIXED}
    fixed = {name: DEFAULTS[name] if value is None else value for name, value in given.items()}
    _require_usable(fixed, options.baseline)
    search_id = _search_id(options)
    engine: Engine = "comet" if search_id else options.engine
    tracking = _tracking(options.tracking, engine)
    space = _space(options, search_id, fixed, say)
    devices = find_devices(options.devices)
    epochs = max(cast("epochs", n) for n in [fixed["epochs"], *space.values_of("epochs")])
    name = _name(options, space, search_id)
    if options.keep < max(1, options.confirm):
        raise ValueError(
            f"--keep is {options.keep}; the best {max(1, options.confirm)} are needed for the confirmation"
        )
    sweep = Sweep(
        RUNS / name,
        space,
        epochs,
        _budget(options, space, search_id),
        options.pruner,
        search_id,
        storage=_storage(RUNS / name, options.storage),
        artifacts=validated_artifacts(options.artifacts),
        keep=options.keep,
        task="pipeline.promotion",
    )
    earlier = _earlier(options.warm_start, sweep, engine) if options.warm_start is not None else None
    where, backend = (_on_ray if options.backend == "ray" else _here)(options, devices, sweep, say)
    return Plan(
        sweep,
        options.data,
        fixed,
        where,
        options.workers_per_device != AUTO,
        backend,
        devices[0],
        engine,
        tracking,
        notify=options.notify,
        confirm=options.confirm,
        confirm_seeds=options.confirm_seeds,
        promote=options.promote,
        limits=Limits(options.timeout and began + options.timeout, options.trial_timeout),
        earlier=earlier,
    )


def _here(
    options: argparse.Namespace, devices: list[str], _: Sweep, __: Callable[[str], None]
) -> tuple[list[WorkerSlot], Backend]:
    """Deal workers onto the devices of this machine."""
    if options.ray_address:
        raise ValueError("--ray-address is for --backend ray; give both or neither")
    if options.workers_per_device == AUTO:
        return _to_be_tried(options, devices), LokyBackend()
    if options.workers_per_device and devices == ["cpu"]:
        raise ValueError("--workers-per-device is about GPUs, but for auto; for the CPU give --workers")
    num_cores = count_cores()
    room = num_cores if devices == ["cpu"] else len(devices) * (options.workers_per_device or 1)
    if options.workers and options.workers_per_device and options.workers > room:
        raise ValueError(f"--workers is {options.workers}; with this --workers-per-device there is room for {room}")
    return worker_slots(devices, options.workers or room, num_cores), LokyBackend()


def _to_be_tried(options: argparse.Namespace, devices: list[str]) -> list[WorkerSlot]:
    """Put a worker on each device, until it is known how many these are worth."""
    if options.workers and "COMET_OPTIMIZER_PROCESS_JOBS" not in os.environ:  # comet optimize has a -j of its own
        raise ValueError("--workers-per-device auto finds the number of workers; leave out --workers")
    if len({device.split(":")[0] for device in devices}) > 1:
        raise ValueError("--workers-per-device auto is for devices of one kind; leave the CPU out of --devices")
    return worker_slots(devices, len(devices), count_cores())


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_ray(
    options: argparse.Namespace, _: list[str], sweep: Sweep, say: Callable[[str], None]
) -> tuple[list[WorkerSlot], Backend]:
    """Share out a Ray cluster."""
    if options.devices != "auto":
        raise ValueError("--devices is for --backend loky; on a cluster Ray deals out the GPUs")
    if options.dry_run:
        raise ValueError("--dry-run tries networks on this machine; leave out --backend ray")
    if options.workers_per_device == AUTO:
        raise ValueError("--workers-per-device auto tries networks on this machine; with --backend ray give a number")
    try:
        from search.workers.ray_backend import Home, RayBackend, connect, share_out  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ValueError("--backend ray needs Ray; pip install 'ray>=2.50' (extra cluster)") from error
    nodes = connect(options.ray_address, single=not sweep.storage)
    share = share_out(nodes, options.workers, options.workers_per_device)
    say(f"Ray: {share}, on a cluster of {count(len(nodes), 'node')}")
    home = Home(str(Path.cwd()), environment_info()["versions"], single=not sweep.storage)
    return share.worker_slots(), RayBackend(home, share, first_device)


def settings(plan: Plan, data: Data) -> dict[str, Any]:
    """Say what must be the same when a sweep is resumed; the budget, devices, workers and tracking may change."""
    space = plan.sweep.space
    return {
        "data": data.fingerprint,
        **plan.fixed,
        "seed": space.seed,
        "pruner": "hyperband, once" if plan.sweep.pruner == "hyperband" else plan.sweep.pruner,  # its rule too
        "goal": asdict(space.goal),
        "engine": plan.engine,
        "algorithm": space.algorithm,
        "baseline": space.baseline is not None,
        "parameters": space.content["parameters"],
        # Machines that share a sweep must come to the same numbers.
        **({"versions": environment_info()["versions"]} if plan.sweep.storage else {}),
    }


def _storage(folder: Path, wanted: str) -> str:
    """Return the address of the study's server; empty for a file. An existing sweep's stays where it is."""
    url, noted = validated_storage(wanted), noted_storage(folder)
    if url and _address(noted) != _address(url) and (noted or (folder / "study.db").exists()):
        where = without_password(noted) if noted else "a file in that folder"
        raise ValueError(f"--storage: the study of {folder} is {where}; leave --storage out, or give another --name")
    return url or noted


def _address(url: str) -> Any:
    """Return what tells servers apart: a password may change."""
    return sqlalchemy.make_url(url).set(password="") if url else ""


def _earlier(name: str, sweep: Sweep, engine: Engine) -> PriorSweep | None:
    """Return the sweep to start from: as it was when ours was begun, else as it is."""
    if engine == "comet":
        raise ValueError("--warm-start is for --engine optuna; a search at Comet takes no results of another")
    if not re.fullmatch(NAME, name) or name == sweep.name:
        raise ValueError(f"--warm-start is {name!r}; give the name of another sweep, that of its folder in {RUNS}/")
    noted = noted_prior_sweep(sweep)
    return noted if noted and noted.name == name else read_prior_sweep(RUNS / name, sweep.space)


def _search_id(options: argparse.Namespace) -> str:
    """Return the id of a search that exists at Comet: given instead of a file, or by `comet optimize`."""
    if re.fullmatch(SEARCH_ID, str(options.config)):
        return str(options.config)
    return os.environ.get("COMET_OPTIMIZER_ID", "")


def _tracking(wanted: str, engine: str) -> Literal["online", "offline", "off"]:
    if engine == "comet" and not has_api_key():
        raise ValueError("the Comet Optimizer needs an API key; set COMET_API_KEY, or use --engine optuna")
    if wanted == "online" and not has_api_key():
        raise ValueError("--tracking online needs an API key; set COMET_API_KEY, or use --tracking offline")
    if wanted == "auto":
        return "online" if has_api_key() else "offline"
    return wanted  # type: ignore[return-value]  # argparse has checked it


def _require_usable(fixed: Parameters, baseline: bool) -> None:
    """Raise ValueError where the README network, or without it even the most modest one, cannot be made."""
    configure({"body_repeats": 1}, fixed)
    if baseline:
        try:
            configure({}, fixed)
        except ValueError as error:
            raise ValueError(f"{error}; the README network is trial 0: --no-baseline leaves it out") from error


def _name(options: argparse.Namespace, space: Space, search_id: str) -> str:
    name = options.name if options.name is not None else (f"{space.name}-{search_id[:8]}" if search_id else space.name)
    if not re.fullmatch(NAME, name):
        raise ValueError(f"--name is {name!r}; use letters, digits, '.', '_' and '-'")
    return str(name)


def _space(options: argparse.Namespace, search_id: str, fixed: Parameters, say: Callable[[str], None]) -> Space:
    content: Mapping[str, Any] | None = None
    if search_id:
        content = known_keys(wait_for_comet(partial(read_search, search_id), Sweep.patience, say))
    elif (RUNS / options.config).is_dir() and not options.config.exists():
        again = f"give its command again, with --name {options.config}"
        raise ValueError(f"{options.config} is a sweep, no search space; {again}")
    check = lambda values: configure({**LENIENT, **values}, {})  # noqa: E731 - each value by itself
    space = load_space(options.config, SEARCHABLE, METRICS, check, content)
    for name in FIXED:
        if name in space.parameters and getattr(options, name) is not None:
            raise ValueError(f"{options.config}: {name} is searched; leave out --{name.replace('_', '-')}")
    smallest = min(space.values_of("image_size") or [fixed["image_size"]])
    for depth in space.values_of("body_repeats") or [DEFAULTS["body_repeats"]]:
        try:
            configure({"image_size": smallest, "body_repeats": depth}, fixed)
        except ValueError as error:
            raise ValueError(f"{options.config}: {error}") from error
    if not options.baseline:
        space = replace(space, baseline=None)
    return space if options.seed is None else replace(space, seed=options.seed)


def _budget(options: argparse.Namespace, space: Space, search_id: str) -> int:
    trials = options.trials
    if "COMET_OPTIMIZER_PROCESS_JOBS" in os.environ and trials is not None:  # comet optimize --trials
        if trials != 1:
            raise ValueError(f"--trials of comet optimize is {trials}; leave it out: repeats of parameters are not run")
        trials = None
    if trials is None:
        # A search that exists at Comet is carried out whole, and the baseline is none of its proposals.
        trials = space.num_trials + (space.first_proposed if search_id and space.max_combo else 0)
    if trials < 1:
        raise ValueError(f"{options.config}: spec.maxCombo is 0; set it, or give --trials with 1 or more")
    return int(trials)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="run_sweep.py",
        description="Launch or resume a sweep, rank its trials, promote the winner.",
    )
    whole = partial(_number_from, 0)
    positive = partial(_number_from, 1)
    add = parser.add_argument
    text = "search space, goal and budget; or the id of a search at Comet"
    add("config", nargs="?", type=Path, default=Path("configs/optimizer.json"), help=f"{text} (default: %(default)s)")
    add("--data", default="synthetic", help="synthetic, kaggle or a folder of photographs (default: synthetic)")
    add("--engine", choices=("optuna", "comet"), default="optuna", help="who proposes parameters (default: optuna)")
    add("--name", help="the run's folder below runs/; an existing one is resumed (default: the config's name)")
    add("--trials", type=positive, help="budget, the baseline included (default: spec.maxCombo)")
    add("--no-baseline", dest="baseline", action="store_false", help="do not begin with the README network")
    add("--epochs", type=positive, help=f"at most, for each trial (default: {DEFAULTS['epochs']})")
    add("--image-size", type=positive, help=f"pixels (default: {DEFAULTS['image_size']})")
    add("--seed", type=whole, help="of proposals, weights and order (default: spec.seed)")
    add("--devices", default="auto", help="auto, cpu or cuda:0,cuda:1,... (default: every GPU, else the CPU)")
    jobs = os.environ.get("COMET_OPTIMIZER_PROCESS_JOBS")  # comet optimize -j
    add("--workers", type=positive, default=jobs, help="processes (default: one per GPU, else one per core)")
    text = "on each GPU (default: 1); auto: as many as are worth it, which is tried once, on the CPU too"
    add("--workers-per-device", type=_number_or_auto, metavar="K", help=text)
    text = "ray: over the machines of a Ray cluster; loky: on this one (default: loky)"
    add("--backend", choices=("loky", "ray"), default="loky", help=text)
    text = "of the Ray cluster's head node (default: what Ray finds, else a cluster of this machine alone)"
    add("--ray-address", default="", metavar="HOST[:PORT]", help=text)
    text = "postgresql://USER@HOST/DATABASE, for many machines (default: a file in the run's folder)"
    add("--storage", default="", metavar="URL", help=text)
    text = "s3://BUCKET or a folder, where machines whose runs/ is not shared exchange checkpoints and weights"
    add("--artifacts", default="", metavar="STORE", help=text)
    text = "an earlier sweep of the same space: what it found informs the search, its winner is tried again"
    add("--warm-start", metavar="NAME", help=text)
    add("--timeout", type=_seconds, metavar="SECONDS", help="stop then; the same command goes on")
    text = "fail a trial none of whose epochs ends for so long"
    add("--trial-timeout", type=_seconds, metavar="SECONDS", help=text)
    add("--keep", type=positive, default=10, metavar="K", help="trials whose weights are kept (default: 10)")
    text = "what stops poor trials early (default: hyperband)"
    add("--pruner", choices=("hyperband", "median", "none"), default="hyperband", help=text)
    text = "experiments at Comet (default: auto, which is online with an API key, else offline)"
    add("--tracking", choices=("auto", "online", "offline", "off"), default="auto", help=text)
    add("--notify", action="store_true", help="have Comet send you a message on a new best and at the end")
    text = "train the best K configurations again with fresh seeds; 0: do not (default: 3)"
    add("--confirm", type=whole, default=3, metavar="K", help=text)
    add("--confirm-seeds", type=positive, default=2, metavar="M", help="runs of each of them (default: 2)")
    text = (
        "if-better: compare the winner with the champion; always: do not; never: promote nothing (default: if-better)"
    )
    add("--promote", choices=("if-better", "always", "never"), default="if-better", help=text)
    add("--dry-run", action="store_true", help="print the plan and what it will cost; keep nothing")
    return parser.parse_args(arguments)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(exit_with_error(2, f"{message}; --help lists the options"))


def command(options: argparse.Namespace) -> str:
    """Return the command that goes on with this one: by the search's id, where `comet optimize` gave it to us."""
    search_id = os.environ.get("COMET_OPTIMIZER_ID")
    arguments = [argument for argument in sys.argv if not search_id or argument != str(options.config)]
    if options.storage:
        shown = without_password(options.storage)
        arguments = [argument.replace(options.storage, shown) for argument in arguments]
    return shlex.join(["python", *arguments, *([search_id] if search_id else [])])


def exit_with_error(status: int, message: str) -> int:
    print(f"run_sweep.py: {' '.join(message.split())}", file=sys.stderr)
    return status


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _number_or_auto(text: str) -> int | str:
    if text != AUTO and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number from 1 on")
    return text if text == AUTO else int(text)


def _number_from(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)
