"""What a sweep will cost: a few networks are probed, and the whole sweep is played through with what they cost."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from optuna.trial import FrozenTrial

from catdog.data.dataset import Data, load_data, locate
from catdog.device import gpu_memory
from pipeline.plan import Plan
from pipeline.profiling import Profile, network_of, num_judged, probe
from pipeline.task import configure
from search.formatting import duration
from search.schedule.simulator import TrialCost, simulate
from search.space.space import Parameters
from search.task import EpochMetrics

__all__ = ["Forecast", "describe_forecast", "forecast"]


@dataclass(frozen=True)
class Forecast:
    """What a sweep will cost: the mean of what chance may make of it."""

    seconds: float  # from the command to its end
    search: float  # seconds of it, from the first trial to the last
    confirmation: float  # seconds of it, from the last trial on
    low: float  # seconds; chance makes one sweep in ten shorter
    high: float  # seconds; chance makes one sweep in ten longer
    memory: int  # bytes, the peak of `probe.private_memory`
    device_memory: Mapping[str, int]  # bytes of tensors at most, by GPU
    faults: tuple[str, ...]  # why a network could not be probed, one sentence each


def forecast(plan: Plan, proposals: Sequence[Parameters], show: Callable[[str], None]) -> Forecast:
    """Profile the networks of `proposals`, a sweep's first trials, and play the sweep through with what they cost.

    Decodes the pictures where that was not done yet, as the sweep would, and leaves nothing else. Raises what a
    sweep raises, and ValueError where no network could be probed.
    """
    plan = replace(plan, source=locate(plan.source))
    data = load_data(plan.source, plan.fixed["image_size"])
    networks = list(dict.fromkeys(map(network_of, proposals)))
    probed = probe(plan, data, networks, show)
    costs = {
        network: _cost(trial, rows, data, probed.num_trained, configure(dict(network), plan.fixed)[0].image_size)
        for network, trial, rows in zip(networks, probed.trials, probed.rows, strict=True)
        if len(rows) > 1
    }
    if not costs:
        raise ValueError(f"no network could be probed: {next(iter(probed.faults.values()))}")
    known = [
        replace(costs[network_of(parameters)], epochs=configure(parameters, plan.fixed)[1].epochs)
        for parameters in proposals
        if network_of(parameters) in costs
    ]
    durations = simulate(plan.sweep, known, len(plan.slots), plan.confirm, plan.confirm_seeds)
    low, high = (durations[int(share * len(durations))] for share in (0.1, 0.9))
    search, confirmation = fmean(d.search for d in durations), fmean(d.confirmation for d in durations)
    around = _around(probed)
    return Forecast(
        seconds=search + confirmation + around,
        search=search,
        confirmation=confirmation,
        low=low.total + around,
        high=high.total + around,
        memory=probed.memory,
        device_memory=_device_memory(probed),
        faults=tuple(probed.faults.values()),
    )


def describe_forecast(forecast: Forecast, plan: Plan) -> Iterator[str]:
    """Say what a sweep will cost, and what speaks against it."""
    around = forecast.seconds - forecast.search - forecast.confirmation
    parts = f"trials {duration(forecast.search)}"
    if plan.confirm:
        parts += f", confirmation {duration(forecast.confirmation)} more"
    parts += f", start and end {duration(around)}"
    memory = f"; peak memory about {_gigabytes(forecast.memory)}" if forecast.memory else ""
    workers = "this worker" if len(plan.slots) == 1 else f"these {len(plan.slots)} workers"
    yield f"expected: about {duration(forecast.seconds)} on {workers} ({parts}){memory}"
    if duration(forecast.low) != duration(forecast.high):
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
        free, _ = gpu_memory(device)
        verdict = f", which is too little; {remedy}" if needed > free else ""
        yield f"{device}: tensors of {_gigabytes(needed)}, {_gigabytes(free)} are free{verdict}"


def _cost(trial: FrozenTrial, rows: Sequence[EpochMetrics], data: Data, num_trained: int, image_size: int) -> TrialCost:
    """Tell a trial's fixed cost from that of a whole epoch. The first epoch, which prepares kernels, is not typical."""
    assert trial.duration, "the miniature has ended"
    judged = min(len(data.validation), num_judged(image_size))
    trained = fmean(num_trained / row["images_per_second"] for row in rows[1:])
    whole = fmean(row["seconds"] for row in rows[1:])
    with_files = (rows[-1]["ended"] - rows[0]["ended"]) / (len(rows) - 1)
    return TrialCost(
        fixed=max(0.0, trial.duration.total_seconds() - len(rows) * with_files),
        epoch=trained / num_trained * len(data.training)
        + (whole - trained) / judged * len(data.validation)
        + (with_files - whole),
        epochs=0,  # not the probe's to say
    )


def _around(probed: Profile) -> float:
    """Return the seconds of a sweep outside of its trials, from those of the miniature."""
    trials = probed.trials
    start = min(trial.datetime_start.timestamp() for trial in trials if trial.datetime_start) - probed.began
    last = max(trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete)
    end = probed.began + probed.seconds - last
    # The program starts as its workers do; the test pictures, card and report at the end take about as long again.
    return 3 * start + end


def _device_memory(probed: Profile) -> dict[str, int]:
    """Add up, for each GPU, what its workers held at most."""
    most: dict[tuple[str, int], int] = {}
    for trial, rows in zip(probed.trials, probed.rows, strict=True):
        worker = trial.user_attrs["worker"]
        if rows and worker.get("device", "cpu") != "cpu":
            slot = worker["device"], worker["slot"]
            most[slot] = max(most.get(slot, 0), int(rows[-1]["device_memory"]))
    return {name: sum(most[slot] for slot in most if slot[0] == name) for name in sorted({name for name, _ in most})}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
