"""What a sweep will cost: a sweep in miniature with the real workers, then the whole one played through.

The miniature trains each network of the first trials for a few seconds, in a temporary folder, with as many workers
at once as the sweep has: they share cores and memory as the real ones will.
"""

import csv
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from optuna.trial import FrozenTrial

from catdog.data import Data, Pictures, load_data, locate
from catdog.device import free_memory, peak_memory
from catdog.evaluate import BATCH_PIXELS
from objective import TrainTrial, configure
from plan import Plan
from search.ledger import Ledger
from search.live import duration
from search.opening import create_ledger
from search.schedule import Cost, simulate
from search.space import Parameters
from search.sweep import run_sweep
from search.tracking import Row, Tracking
from search.worker import Task

__all__ = ["Forecast", "describe_forecast", "forecast", "private_memory"]

SECONDS = 4.0  # that a probe lasts at least; it has at least two epochs
NUM_STEPS = {"cpu": 1, "cuda": 16}  # of an epoch of the largest batches; a GPU is at its pace after a few
NO_COST = {"learning_rate", "weight_decay", "label_smoothing", "schedule", "dropout", "seed", "epochs"}  # of a step


@dataclass(frozen=True)
class Forecast:
    """What a sweep will cost: the mean of what chance may make of it."""

    seconds: float  # from the command to its end
    search: float  # seconds of it, from the first trial to the last
    confirmation: float  # seconds of it, likewise
    low: float  # seconds; chance makes one sweep in ten shorter
    high: float  # seconds; chance makes one sweep in ten longer
    memory: int  # bytes, the peak of `private_memory`
    device_memory: Mapping[str, int]  # bytes of tensors at most, by GPU
    faults: tuple[str, ...]  # why a network could not be probed, one sentence each


@dataclass(frozen=True)
class _Probe(TrainTrial):
    """The objective on so few pictures that an epoch is over at once, until its time is over."""

    num_pictures: int = 64

    def __call__(self, task: Task) -> Iterator[Row]:
        began = time.time()
        for row in super().__call__(task):
            now = time.time()
            yield {**row, "ended": now, "device_memory": peak_memory(task.device)}
            if row["epoch"] > 1 and now - began > SECONDS:
                return

    def load(self, image_size: int) -> Data:
        data = super().load(image_size)
        training, validation = _first(data.training, self.num_pictures), _first(data.validation, _judged(image_size))
        return replace(data, training=training, validation=validation)


def forecast(plan: Plan, proposals: Sequence[Parameters], show: Callable[[str], None]) -> Forecast:
    """Probe the networks of `proposals`, a sweep's first trials, and play the sweep through with what they cost.

    Decodes the pictures where that was not done yet, as the sweep would, and leaves nothing else. Raises what a
    sweep raises, and ValueError where no network could be probed.
    """
    plan = replace(plan, source=locate(plan.source))
    data = load_data(plan.source, plan.fixed["image_size"])
    networks = list(dict.fromkeys(map(_network, proposals)))
    batch = max(configure(dict(network), plan.fixed)[1].batch_size for network in networks)
    with tempfile.TemporaryDirectory() as folder:
        sweep = replace(plan.sweep, folder=Path(folder) / "probe", num_trials=len(networks), pruner="none")
        sweep = replace(sweep, search_id="", storage="", artifacts="")
        ledger = create_ledger(sweep, {})
        for network in networks:
            ledger.study.enqueue_trial({}, user_attrs={"parameters": dict(network)})
        num_pictures = batch * NUM_STEPS[plan.where[0].device.split(":")[0]]
        probe = _Probe(sweep, plan.source, {**plan.fixed, "epochs": 10**6}, data.fingerprint, {}, num_pictures)
        tracking = None if plan.tracking == "off" else Tracking("offline", sweep, ledger.uid(), {})
        peak = 0

        def watch() -> None:
            nonlocal peak
            peak = max(peak, private_memory(os.getpid()))
            show(f"probing networks: {len(networks) - ledger.num_unfinished()} of {len(networks)}")

        began = time.time()
        run_sweep(ledger, probe, plan.where, watch, tracking)
        seconds, trials = time.time() - began, ledger.trials()
        rows = [_rows(ledger, trial) for trial in trials]
    costs = {
        network: _cost(trial, probed, data, probe)
        for network, trial, probed in zip(networks, trials, rows, strict=True)
        if len(probed) > 1
    }
    faults = tuple(
        str(trial.user_attrs["reason"]) for trial, probed in zip(trials, rows, strict=True) if len(probed) < 2
    )
    if not costs:
        raise ValueError(f"no network could be probed: {faults[0]}")
    known = [
        replace(costs[_network(parameters)], epochs=configure(parameters, plan.fixed)[1].epochs)
        for parameters in proposals
        if _network(parameters) in costs
    ]
    durations = simulate(plan.sweep, known, len(plan.where), plan.confirm, plan.confirm_seeds)
    low, high = (durations[int(share * len(durations))] for share in (0.1, 0.9))
    search, confirmation = fmean(d.search for d in durations), fmean(d.confirmation for d in durations)
    around = _around(trials, began, seconds, parts=2 if plan.confirm else 1)
    return Forecast(
        seconds=search + confirmation + around,
        search=search,
        confirmation=confirmation,
        low=low.total + around,
        high=high.total + around,
        memory=peak,
        device_memory=_device_memory(trials, rows),
        faults=faults,
    )


def describe_forecast(forecast: Forecast, plan: Plan) -> Iterator[str]:
    """Say what a sweep will cost, and what speaks against it."""
    parts = f"trials {duration(forecast.search)}"
    if plan.confirm:
        parts += f", confirmation {duration(forecast.confirmation)}"
    memory = f"; peak memory about {_gigabytes(forecast.memory)}" if forecast.memory else ""
    workers = "this worker" if len(plan.where) == 1 else f"these {len(plan.where)} workers"
    yield f"expected: about {duration(forecast.seconds)} on {workers} ({parts}){memory}"
    yield (
        f"as luck has it {duration(forecast.low)} to {duration(forecast.high)}: nobody knows yet whom the pruner "
        "stops, which trials are confirmed, and what is proposed once results are in"
    )
    if plan.engine == "comet":
        yield "note: Comet proposes when it is asked; networks drawn from its space stand for what it will propose"
    for fault in forecast.faults:
        yield f"note: a network could not be probed: {fault}"
    remedy = "take fewer --workers or a smaller --image-size"
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if forecast.memory > there:
        yield f"note: that is more than the {_gigabytes(there)} of this machine; {remedy}"
    for device, needed in forecast.device_memory.items():
        free = free_memory(device)
        verdict = f", which is too little; {remedy}" if needed > free else ""
        yield f"{device}: tensors of {_gigabytes(needed)}, {_gigabytes(free)} are free{verdict}"


def private_memory(process: int) -> int:
    """Return the bytes of anonymous pages of a process and all that it started; 0 where there is no /proc.

    That is what cannot be dropped when memory runs short: neither the code of libraries nor the mapped pictures are
    in it.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
        tasks = [task.read_text().split() for task in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:  # it has just ended
        return 0
    own = re.search(r"RssAnon:\s+(\d+) kB", status)
    return 1024 * int(own[1] if own else 0) + sum(private_memory(int(child)) for task in tasks for child in task)


def _network(parameters: Parameters) -> tuple[tuple[str, object], ...]:
    """Return what decides the cost of an epoch."""
    return tuple(sorted((name, value) for name, value in parameters.items() if name not in NO_COST))


def _first(pictures: Pictures, number: int) -> Pictures:
    return replace(pictures, rows=pictures.rows[:number])


def _judged(image_size: int) -> int:
    """Return how many pictures are judged at once."""
    return max(1, BATCH_PIXELS // image_size**2)


def _rows(ledger: Ledger, trial: FrozenTrial) -> list[dict[str, float]]:
    """Return a probe's epochs, also of one that failed."""
    try:
        with (ledger.sweep.trial_folder(trial.number) / "history.csv").open() as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def _cost(trial: FrozenTrial, rows: Sequence[Row], data: Data, probe: _Probe) -> Cost:
    """Tell a trial's fixed cost from that of a whole epoch. The first epoch, which prepares kernels, is not typical."""
    assert trial.duration, "the miniature has ended"
    image_size = configure(trial.user_attrs["parameters"], probe.fixed)[0].image_size
    num_trained = min(len(data.training), probe.num_pictures)
    num_judged = min(len(data.validation), _judged(image_size))
    trained = fmean(num_trained / row["images_per_second"] for row in rows[1:])
    whole = fmean(row["seconds"] for row in rows[1:])
    with_files = (rows[-1]["ended"] - rows[0]["ended"]) / (len(rows) - 1)
    return Cost(
        fixed=max(0.0, trial.duration.total_seconds() - len(rows) * with_files),
        epoch=trained / num_trained * len(data.training)
        + (whole - trained) / num_judged * len(data.validation)
        + (with_files - whole),
        epochs=0,  # not the probe's to say
    )


def _around(trials: Sequence[FrozenTrial], began: float, seconds: float, parts: int) -> float:
    """Return the seconds of a sweep outside of its trials, from those of the miniature."""
    start = min(trial.datetime_start.timestamp() for trial in trials if trial.datetime_start) - began
    end = began + seconds - max(trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete)
    # The program starts as its workers do; the test pictures, card and report at the end take about as long again.
    return (2 + parts) * start + parts * end


def _device_memory(trials: Sequence[FrozenTrial], rows: Sequence[Sequence[Row]]) -> dict[str, int]:
    """Add up, for each GPU, what its workers held at most."""
    most: dict[tuple[str, int], int] = {}
    for trial, probed in zip(trials, rows, strict=True):
        worker = trial.user_attrs["worker"]
        if probed and worker.get("device", "cpu") != "cpu":
            place = worker["device"], worker["slot"]
            most[place] = max(most.get(place, 0), int(probed[-1]["device_memory"]))
    return {name: sum(most[place] for place in most if place[0] == name) for name in sorted({name for name, _ in most})}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
