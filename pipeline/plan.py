"""Make a Plan from the command-line options and the search space, or raise one sentence about a mistake in them."""

import argparse
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import sqlalchemy

from catdog.data.dataset import Data, describe_change
from catdog.device import find_devices
from catdog.model import ModelConfig
from pipeline.placement import AUTO, place_here, place_on_ray
from pipeline.profiling import Say
from pipeline.space import FIXED, as_folder, how_to_name, make_space, sweep_name
from pipeline.task import DEFAULTS, cast, configure, library_versions
from search.comet.client import RefusedError, ServiceDownError, check_comet, has_api_key
from search.space.space import Parameters, Space
from search.study.create import load_begun_study
from search.study.storage import noted_storage, validated_storage
from search.study.sweep import RUNS, Sweep, settings_of
from search.study.warm_start import PriorSweep, first_proposals, noted_prior_sweep, read_prior_sweep
from search.task import WorkerSlot
from search.workers.artifacts import validated_artifacts
from search.workers.backend import Backend
from search.workers.loky_backend import LokyBackend
from search.workers.supervisor import Limits
from shell.comet_settings import UNREADABLE
from shell.redact import without_password

Engine = Literal["optuna", "comet"]
TrackingMode = Literal["online", "offline", "off"]

IMAGES = "images.csv.gz"  # in the folder of a sweep: those that it began with
MAX_TRIALS = 1_000_000  # of a sweep
SEARCH_ID = r"[0-9a-f]{32}"  # Comet's id of a search


@dataclass(frozen=True)
class Plan:
    """Every decision of the command line and the search space."""

    sweep: Sweep  # its search_id is set if the search already exists at Comet
    source: str  # of images
    fixed: Parameters  # of every trial: epochs, image_size
    slots: list[WorkerSlot]
    must_measure: bool  # whether the number of workers per device is to be measured first
    backend: Backend
    device: str  # of this machine, where the winner is tested
    engine: Engine
    tracking: TrackingMode
    notify: bool
    confirm: int  # configurations; 0: none
    confirm_seeds: int  # runs of each
    promote: Literal["if-better", "always", "never"]
    limits: Limits
    prior: PriorSweep | None  # the sweep that the search starts from

    def proposals(self, number: int) -> list[Parameters]:
        """Return the sweep's first trials. Random ones stand for Comet's, which are not known in advance."""
        space = replace(self.sweep.space, algorithm="random") if self.engine == "comet" else self.sweep.space
        return first_proposals(space, min(number, self.sweep.num_trials), self.prior)


def make_plan(options: argparse.Namespace, say: Say) -> Plan:
    """Validate everything the user wrote, before anything is created. Raises ValueError, one sentence."""
    began = time.monotonic()
    fixed = {name: DEFAULTS[name] if getattr(options, name) is None else getattr(options, name) for name in FIXED}
    search_id = _search_id(options.config)
    engine: Engine = "comet" if search_id else options.engine
    tracking = _tracking(options, engine, say)
    space = _space(options, search_id, fixed, say)
    devices = find_devices(options.devices)
    sweep = _sweep(options, space, fixed, search_id)
    prior = None if options.warm_start is None else _prior(options.warm_start, sweep, engine)
    slots, backend = _place(options, devices, sweep, say)
    return Plan(
        sweep=sweep,
        source=options.data,
        fixed=fixed,
        slots=slots,
        must_measure=options.workers_per_device == AUTO,
        backend=backend,
        device=devices[0],
        engine=engine,
        tracking=tracking,
        notify=options.notify,
        confirm=options.confirm,
        confirm_seeds=options.confirm_seeds,
        promote=options.promote,
        limits=Limits(options.timeout and began + options.timeout, options.trial_timeout),
        prior=prior,
    )


def settings(plan: Plan, data: Data) -> dict[str, Any]:
    """Return the settings that must not change when a sweep is resumed."""
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
        # Machines that share a sweep must compute the same numbers.
        **({"versions": library_versions()} if plan.sweep.storage else {}),
    }


@contextmanager
def describing_changed_images(plan: Plan, data: Data) -> Iterator[None]:
    """If the sweep is refused and was begun with other images, raise ValueError that says what has changed."""
    try:
        yield
    except ValueError:
        study = load_begun_study(plan.sweep)
        if not study or settings_of(study).get("data") == data.fingerprint:
            raise
        change = describe_change(plan.sweep.folder / IMAGES, plan.source, plan.fixed["image_size"])
        raise ValueError(
            f"{plan.sweep.folder} was begun with {change}; give the former images, or another --name"
        ) from None


def _space(options: argparse.Namespace, search_id: str, fixed: Parameters, say: Say) -> Space:
    """Read the search space. Raises ValueError if the images are too small for it or for the baseline network."""
    baseline, size = ModelConfig(), fixed["image_size"]
    least = 2**baseline.num_poolings
    network = f"the baseline network (body_repeats {baseline.body_repeats}) needs {least}"
    answer = f"--image-size is {size}; {network}: give --image-size {least} or more"
    is_too_small = options.baseline and size < least
    try:
        configure({"body_repeats": 1}, fixed)  # the shallowest
        space = make_space(options, search_id, fixed, say)
    except ValueError as error:
        if is_too_small and "image_size" in str(error):
            raise ValueError(answer) from error
        raise
    if is_too_small:
        raise ValueError(f"{answer}, or --no-baseline to sweep without that network")
    return space


def _search_id(config: Path) -> str:
    """Return the id of an existing Comet search: given instead of a file, or by `comet optimize`."""
    return str(config) if re.fullmatch(SEARCH_ID, str(config)) else os.environ.get("COMET_OPTIMIZER_ID", "")


def _tracking(options: argparse.Namespace, engine: str, say: Say) -> TrackingMode:
    """Decide about Comet. Say which files of its settings cannot be read, and what is done if it cannot be used."""
    wanted: TrackingMode | Literal["auto"] = options.tracking
    if engine != "comet" and wanted in ("off", "offline"):
        return wanted
    has_key, faults = has_api_key(), [*UNREADABLE.values()]
    if engine == "comet" and not has_key:
        text = "the Comet Optimizer needs an API key; set COMET_API_KEY, or use --engine optuna"
        raise ValueError("; ".join([text, *faults]))
    if wanted == "online" and not has_key:
        text = "--tracking online needs an API key; set COMET_API_KEY, or use --tracking offline"
        raise ValueError("; ".join([text, *faults]))
    for fault in faults:
        say(f"note: {fault}")
    if wanted in ("off", "offline"):
        return wanted
    if not has_key:
        return "offline"
    instead = "--engine optuna" if engine == "comet" else "--tracking offline" if wanted == "online" else ""
    return "online" if options.dry_run else _online_or_not(instead, say)


def _online_or_not(instead: str, say: Say) -> TrackingMode:
    """Ask Comet whether it can be used; archives take its place if not.

    Raises ValueError if it refuses and the user asked for it: with another option `instead`.
    """
    archived = "this run archives its trials, and the same command sends them later"
    try:
        check_comet()
    except RefusedError as error:
        if instead:
            raise ValueError(f"{error}, or use {instead}") from error
        say(f"note: {error}; {archived}")
    except ServiceDownError as error:
        say(f"note: Comet does not answer ({error}); {archived}")
    else:
        return "online"
    return "offline"


def _sweep(options: argparse.Namespace, space: Space, fixed: Parameters, search_id: str) -> Sweep:
    name = sweep_name(options, space, search_id)
    if options.keep < max(1, options.confirm):
        best = max(1, options.confirm)
        remedy = f"give --keep {best} or more, or --confirm {options.keep}"
        raise ValueError(f"--keep is {options.keep}; the best {best} are needed for the confirmation: {remedy}")
    return Sweep(
        folder=RUNS / name,
        space=space,
        epochs=_most_epochs(options, space, fixed),
        num_trials=_num_trials(options, space, search_id),
        pruner=options.pruner,
        search_id=search_id,
        storage=_storage(RUNS / name, options.storage),
        artifacts=validated_artifacts(options.artifacts),
        keep=options.keep,
        task="pipeline.promotion",
    )


def _most_epochs(options: argparse.Namespace, space: Space, fixed: Parameters) -> int:
    """Return the number of epochs of the longest trial. The baseline keeps the default where epochs are searched."""
    searched = [cast("epochs", epochs) for epochs in space.values_of("epochs")]
    return int(max([*searched, *([fixed["epochs"]] if options.baseline or not searched else [])]))


def _num_trials(options: argparse.Namespace, space: Space, search_id: str) -> int:
    trials = options.trials
    if "COMET_OPTIMIZER_PROCESS_JOBS" in os.environ and trials is not None:  # comet optimize --trials
        if trials != 1:
            raise ValueError(f"--trials of comet optimize is {trials}; leave it out: repeats of parameters are not run")
        trials = None
    if trials is None:
        # An existing Comet search is carried out whole, and the baseline is not one of its proposals.
        trials = space.num_trials + (space.first_proposed if search_id and space.max_combo else 0)
    if trials < 1:
        raise ValueError(f"{options.config}: {_no_budget(space)}")
    if trials > MAX_TRIALS:
        raise ValueError(
            f"{options.config}: the sweep has {trials:,} trials; set spec.maxCombo to {MAX_TRIALS:,} or less"
        )
    return int(trials)


def _no_budget(space: Space) -> str:
    """Say which entry of the file has no number of trials, and how to write it."""
    spec = space.content.get("spec")
    if not spec:
        example = {"maxCombo": 12, "metric": space.goal.metric, "objective": space.goal.direction}
        return f'spec is missing; add "spec": {json.dumps(example)}'
    if "maxCombo" in spec:
        return "spec.maxCombo is 0; set it to the number of trials, or give --trials"
    return 'spec.maxCombo is missing; add "maxCombo": 12, or give --trials'


def _storage(folder: Path, wanted: str) -> str:
    """Return the address of the study's server, empty for a file. An existing sweep keeps its storage."""
    url, noted = validated_storage(wanted), noted_storage(folder)
    if url and _server(noted) != _server(url) and (noted or (folder / "study.db").exists()):
        where = without_password(noted) if noted else "a file in that folder"
        raise ValueError(f"--storage: the study of {folder} is {where}; leave --storage out, or give another --name")
    return url or noted


def _server(url: str) -> Any:
    """Return the parts of an address that identify the server: all but the password, which may change."""
    return sqlalchemy.make_url(url).set(password="") if url else ""


def _prior(name: str, sweep: Sweep, engine: Engine) -> PriorSweep | None:
    """Return the sweep to start from: as noted when this sweep began, else as it is now."""
    if engine == "comet":
        raise ValueError("--warm-start is for --engine optuna; a Comet search takes no results of another sweep")
    if name == sweep.name:
        raise ValueError(f"--warm-start {name} is this sweep itself; name another one in {RUNS}/")
    if as_folder(name) != name:
        remedy = how_to_name(Path(name), "give --warm-start") or f"give the name of another sweep in {RUNS}/"
        raise ValueError(f"--warm-start is {name!r}; {remedy}")
    noted = noted_prior_sweep(sweep)
    return noted if noted and noted.is_that_of(RUNS / name) else read_prior_sweep(RUNS / name, sweep.space)


def _place(options: argparse.Namespace, devices: list[str], sweep: Sweep, say: Say) -> tuple[list[WorkerSlot], Backend]:
    if options.backend == "loky":
        if options.ray_address:
            raise ValueError("--ray-address is for --backend ray; give both or neither")
        return place_here(devices, options.workers, options.workers_per_device), LokyBackend()
    if options.devices != "auto":
        raise ValueError("--devices is for --backend loky; on a cluster Ray assigns the GPUs")
    if options.dry_run:
        raise ValueError("--dry-run profiles networks on this machine; leave out --backend ray")
    if options.workers_per_device == AUTO:
        raise ValueError("--workers-per-device auto measures on this machine; with --backend ray give a number")
    single = not sweep.storage
    return place_on_ray(options.ray_address, options.workers, options.workers_per_device, single=single, say=say)
