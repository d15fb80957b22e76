"""The dry run: forecast the cost of a sweep by profiling a few networks and simulating the sweep with their costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import psutil
from optuna.trial import FrozenTrial, TrialState

from catdog.data.dataset import Data, load_data_and_count_test, locate
from catdog.device import gpu_memory
from pipeline.console import NUM_SHOWN, progress, say_data, say_note, say_wrapped, show_plan
from pipeline.plan import Plan, describing_changed_images, settings
from pipeline.profiling import Network, Profile, Say, evaluation_batch, network_of, profile_networks
from pipeline.stages import with_measured_workers
from pipeline.task import TrainTrial, configure, training_areas
from search.formatting import count, duration
from search.schedule.simulator import TrialCost, simulate
from search.space.space import Parameters
from search.study.create import load_begun_study, require_settings
from search.study.sweep import CHOSEN, load_confirmation
from search.study.trials import counted
from search.task import EpochMetrics

REMEDY = "use fewer --workers or a smaller --image-size"


@dataclass(frozen=True)
class Forecast:
    """The cost of a sweep, as a mean over simulated sweeps."""

    seconds: float  # from the command to its end
    search: float  # seconds of it, from the first trial to the last
    confirmation: float  # seconds of it, from the last trial on
    low: float  # seconds, the 10 % quantile
    high: float  # seconds, the 90 % quantile
    memory: int  # bytes, the peak of `profiling.private_memory`
    device_memory: Mapping[str, int]  # bytes of tensors at most, by GPU
    faults: tuple[str, ...]  # why a network could not be profiled, one sentence each


@dataclass(frozen=True)
class NetworkCost:
    """The seconds that a network takes with images of full size."""

    fixed: float  # once
    training: float  # per epoch
    rest: float  # per epoch: validation, checkpoint


def dry_run(plan: Plan) -> int:
    """Load the images, then print the plan and the forecast of its cost. Keep nothing but the cache of the images."""
    data = load_data_and_count_test(plan.source, plan.fixed["image_size"])
    say_data(plan.source, data)
    left = _work_left(plan, data)
    if left and not sum(left):
        show_plan(plan)
        say_wrapped(f"nothing is left to train: {plan.sweep.name} has ended; its command only promotes and reports")
        return 0
    plan = with_measured_workers(plan, data)
    show_plan(plan)
    say_wrapped(
        "profiling the first networks for a few seconds each to forecast the cost of the sweep; nothing is kept"
    )
    with progress("profiling networks") as show:
        expected = forecast(plan, data, plan.proposals(NUM_SHOWN), show)
    for sentence in describe_forecast(expected, plan):
        say_wrapped(sentence)
    if left:
        say_wrapped(_describe_left(expected, plan, *left))
    return 0


def forecast(plan: Plan, data: Data, proposals: Sequence[Parameters], show: Say) -> Forecast:
    """Profile the networks of `proposals`, a sweep's first trials, and simulate the sweep with their costs.

    Raises the errors of a sweep, and ValueError if no network could be profiled.
    """
    task = TrainTrial(plan.sweep, locate(plan.source), plan.fixed, data.fingerprint, {})
    networks = list(dict.fromkeys(map(network_of, proposals)))
    profile = profile_networks(task, plan.slots, networks, show, plan.limits, is_tracked=plan.tracking != "off")
    costs = _costs(plan, data, profile)
    if not costs:
        raise ValueError(f"no network could be profiled: {next(iter(profile.faults.values()))}")
    known = [
        _whole_cost(costs[network_of(parameters)], parameters, plan)
        for parameters in proposals
        if network_of(parameters) in costs
    ]
    durations = simulate(plan.sweep, known, len(plan.slots), plan.confirm, plan.confirm_seeds)
    low, high = (durations[int(share * len(durations))].total for share in (0.1, 0.9))
    search, confirmation = fmean(d.search for d in durations), fmean(d.confirmation for d in durations)
    overhead = _overhead(profile)
    return Forecast(
        seconds=search + confirmation + overhead,
        search=search,
        confirmation=confirmation,
        low=low + overhead,
        high=high + overhead,
        memory=profile.memory,
        device_memory=_device_memory(profile),
        faults=tuple(profile.faults.values()),
    )


def describe_forecast(forecast: Forecast, plan: Plan) -> Iterator[str]:
    """Describe the cost of a sweep, and the resources that it lacks, in sentences."""
    parts = f"trials {duration(forecast.search)}"
    if plan.confirm:
        parts += f", confirmation {duration(forecast.confirmation)} more"
    parts += f", start and end {duration(forecast.seconds - forecast.search - forecast.confirmation)}"
    memory = f"; peak memory about {_gigabytes(forecast.memory)}" if forecast.memory else ""
    workers = "this worker" if len(plan.slots) == 1 else f"these {len(plan.slots)} workers"
    yield f"expected: about {duration(forecast.seconds)} on {workers} ({parts}){memory}"
    if duration(forecast.low) != duration(forecast.high):
        yield (
            f"in 8 of 10 sweeps {duration(forecast.low)} to {duration(forecast.high)}: it depends on the trials that "
            "the pruner stops, on those that are confirmed, and on the proposals that follow from results"
        )
    if plan.engine == "comet":
        yield "note: Comet's proposals are not known in advance; the forecast draws networks from its space instead"
    for fault in forecast.faults:
        yield f"note: a network could not be profiled: {fault}"
    if forecast.memory > (total := psutil.virtual_memory().total):
        yield f"note: that is more than the {_gigabytes(total)} of this machine; {REMEDY}"
    for device, needed in forecast.device_memory.items():
        free, _ = gpu_memory(device)
        verdict = f", which is too little; {REMEDY}" if needed > free else ""
        yield f"{device}: tensors of {_gigabytes(needed)}, {_gigabytes(free)} are free{verdict}"


def _work_left(plan: Plan, data: Data) -> tuple[int, int] | None:
    """Print what has ended of an existing sweep; return how many trials and runs are left, or None if there is none.

    Raises ValueError if its settings are different.
    """
    sweep = plan.sweep
    if not (study := load_begun_study(sweep)):
        return None
    with describing_changed_images(plan, data):
        require_settings(sweep, study, settings(plan, data), plan.prior)
    trials, confirmation = study.get_trials(deepcopy=False)[: sweep.num_trials], load_confirmation(sweep.folder)
    num_ended = sum(trial.state.is_finished() for trial in trials)
    num_complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    chosen = confirmation.user_attrs.get(CHOSEN) if confirmation else None
    runs = counted(confirmation.get_trials(deepcopy=False), chosen or None) if confirmation else []
    num_confirmed = sum(run.state.is_finished() for run in runs)
    num_left = sweep.num_trials - num_ended
    num_runs = (plan.confirm if num_left else min(plan.confirm, num_complete)) * plan.confirm_seeds
    of_runs = f" and {num_confirmed} of {num_runs} runs of the confirmation" if num_runs else ""
    say_note(f"{sweep.name} exists: {num_ended} of {sweep.num_trials} trials{of_runs} have ended")
    return num_left, max(0, num_runs - num_confirmed)


def _describe_left(forecast: Forecast, plan: Plan, num_trials: int, num_runs: int) -> str:
    """Estimate the time of the trials and runs that are left of a sweep, in a sentence."""
    overhead = forecast.seconds - forecast.search - forecast.confirmation
    search = forecast.search * num_trials / plan.sweep.num_trials
    confirmation = forecast.confirmation * num_runs / max(1, plan.confirm * plan.confirm_seeds)
    what = " and ".join(count(number, noun) for number, noun in ((num_trials, "trial"), (num_runs, "run")) if number)
    return f"this is for the whole sweep; left are {what}, about {duration(search + confirmation + overhead)}"


def _costs(plan: Plan, data: Data, profile: Profile) -> dict[Network, NetworkCost]:
    """Return the cost of each network that trained for at least two epochs."""
    costs = {}
    num_trained = min(len(data.training), profile.num_images)
    for network, trial, epochs in zip(profile.networks, profile.trials, profile.epochs, strict=True):
        if len(epochs) > 1:
            image_size = configure(dict(network), plan.fixed)[0].image_size
            num_validated = min(len(data.validation), evaluation_batch(image_size))
            costs[network] = _cost(trial, epochs, data, num_trained, num_validated)
    return costs


def _cost(
    trial: FrozenTrial, epochs: Sequence[EpochMetrics], data: Data, num_trained: int, num_validated: int
) -> NetworkCost:
    """Split the time of a trial into a fixed cost and the parts of a whole epoch.

    The first epoch prepares kernels and is left out.
    """
    assert trial.duration, "the miniature has ended"
    trained = fmean(num_trained / epoch["images_per_second"] for epoch in epochs[1:])
    whole = fmean(epoch["seconds"] for epoch in epochs[1:])
    with_files = (epochs[-1]["ended"] - epochs[0]["ended"]) / (len(epochs) - 1)
    return NetworkCost(
        fixed=max(0.0, trial.duration.total_seconds() - len(epochs) * with_files),
        training=trained / num_trained * len(data.training),
        rest=(whole - trained) / num_validated * len(data.validation) + (with_files - whole),
    )


def _whole_cost(cost: NetworkCost, parameters: Parameters, plan: Plan) -> TrialCost:
    """Return the cost of a trial, from that of its network. Only images to train on grow."""
    areas, epoch = training_areas(parameters, plan.fixed), cost.training + cost.rest
    shares = [(cost.training * area + cost.rest) / epoch for area in areas]
    return TrialCost(cost.fixed, epoch, len(areas), shares)


def _overhead(profile: Profile) -> float:
    """Estimate the seconds of a sweep outside its trials from the miniature."""
    trials = profile.trials
    start = min(trial.datetime_start.timestamp() for trial in trials if trial.datetime_start) - profile.began
    last = max(trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete)
    end = profile.ended - last
    # The command starts as its workers do; test images, card and report at the end take about as long again.
    return 3 * start + end


def _device_memory(profile: Profile) -> dict[str, int]:
    """Return the peak memory of each GPU, summed over its workers."""
    peaks: dict[str, dict[int, int]] = {}
    for trial, epochs in zip(profile.trials, profile.epochs, strict=True):
        worker = trial.user_attrs["worker"]
        if epochs and worker.get("device", "cpu") != "cpu":
            of_device = peaks.setdefault(worker["device"], {})
            of_device[worker["slot"]] = max(of_device.get(worker["slot"], 0), int(epochs[-1]["device_memory"]))
    return {device: sum(peaks[device].values()) for device in sorted(peaks)}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
