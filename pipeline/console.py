"""Everything that run_sweep.py prints: the plan, the start of a sweep, its results, errors."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import product
from types import MappingProxyType
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from rich.console import Console
from rich.table import Table

from catdog.data.dataset import Data
from catdog.kernels.precision import bfloat16_fault
from catdog.model import ModelConfig, count_mult_adds, count_parameters
from pipeline.plan import Plan
from pipeline.task import SEARCHABLE, configure
from search.analysis.ranking import WIDE
from search.comet.client import has_api_key
from search.formatting import count, describe_constants, short
from search.space.space import Space
from search.study.shared_study import SharedStudy
from search.workers.artifacts import weights_to_remove
from shell.command_line import one_line, printable

NUM_SHOWN = 10  # trials in a dry run
MAX_STEPS = 5  # of a range whose values are listed
LINE_SECONDS = 10.0  # between two lines about work that takes long, where the output is no terminal
SOURCES = {"synthetic": "drawn images", "kaggle": "tongpython/cat-and-dog of Kaggle"}
EXAMPLES = {"body_width": "64", "batch_size": "64", "optimizer": '"adamw"', "schedule": '"cosine"'}  # to fix a value

console = Console(width=None if sys.stdout.isatty() else WIDE)


def say(text: str) -> None:
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False)


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows how far some work is: beside a spinner on a terminal, else now and then as a line."""
    if console.is_terminal:
        with console.status(text) as status:
            yield status.update
        return
    shown, since = "", time.monotonic()

    def show(text: str) -> None:
        nonlocal shown, since
        if text != shown and time.monotonic() - since >= LINE_SECONDS:
            shown, since = text, time.monotonic()
            say(text)

    yield show


def say_wrapped(text: str) -> None:
    """Print text that nobody copies as a command; on a terminal no word of it is cut."""
    console.print(printable(text), highlight=False, soft_wrap=not console.is_terminal, markup=False)


def say_note(text: str) -> None:
    say_wrapped(f"note: {text}")


def exit_with_error(status: int, message: str) -> int:
    """Print one line to standard error and return the exit status."""
    print(f"run_sweep.py: {one_line(message)}", file=sys.stderr)
    return status


def announce(plan: Plan, data: Data, study: SharedStudy) -> None:
    """Print the data, notes about this sweep, and its state if it is resumed."""
    say_data(plan.source, data)
    say_fixed(plan)
    if any(slot.device == "cpu" for slot in plan.slots) and (fault := bfloat16_fault()):
        say_note(fault)
    if plan.source == "synthetic":
        say_note("these images are drawn; for photographs give --data kaggle or --data FOLDER")
    if plan.notify and plan.tracking != "online":
        why = (
            "Comet is not used online in this run" if has_api_key() else "it needs an API key of Comet in COMET_API_KEY"
        )
        say_note(f"--notify has no effect: {why}")
    if plan.sweep.space.baseline is None:
        say_note(_describe_missing_baseline(plan))
    for sentence in (*_describe_warm_start(study), *_describe_progress(study)):
        say(sentence)


def say_data(source: str, data: Data) -> None:
    """Print the number of images by part and class, and what was left out."""
    parts = [
        f"{sum(counts)} to {part} ({', '.join(map(count, counts, data.classes))})"
        for part, counts in data.count_images().items()
    ]
    say_wrapped(f"data: {SOURCES.get(source, source)}: {', '.join(parts)}")
    for note in data.notes:
        say_note(note)


def say_fixed(plan: Plan) -> None:
    """Print what is searched, the values of the parameters that the space does not name, and how to give another."""
    space = plan.sweep.space
    values = {name: value for name, value in {**SEARCHABLE, **plan.fixed}.items() if name not in space.parameters}
    values.pop("seed", None)  # a different one for each trial
    searched = [_describe_range(name, kind) for name, kind in space.distributions.items() if not kind.single()]
    say_wrapped(f"searched: {'; '.join(searched) or 'nothing'}")
    off = [name for name, value in values.items() if value in (False, "none") or (name, value) == ("start_scale", 1)]
    say_wrapped(
        f"not searched: {', '.join(f'{name} {_json(value)}' for name, value in values.items() if name not in off)}"
    )
    if off:
        say_wrapped(f"not used: {', '.join(off)}")
    if example := next((f'"{name}": [{value}]' for name, value in EXAMPLES.items() if name in values), ""):
        say_wrapped(f"to fix another value, give it alone in the file's parameters, for example {example}")
    if "body_width" in values:
        say_note(_describe_default_width(plan))


def _describe_range(name: str, kind: BaseDistribution) -> str:
    """Describe the values of a parameter: `stem_width 8 or 16`, `learning_rate 0.001 to 0.01 (log)`."""
    if isinstance(kind, CategoricalDistribution):
        return f"{name} {_or(kind.choices)}"
    assert isinstance(kind, FloatDistribution | IntDistribution), kind
    step = 0 if kind.log else kind.step or 0
    if step and kind.high - kind.low <= MAX_STEPS * step:
        return f"{name} {_or([kind.low + number * step for number in range(round((kind.high - kind.low) / step) + 1)])}"
    steps = f" in steps of {step:g}" if step not in (0, 1) else ""
    return f"{name} {kind.low:g} to {kind.high:g}{' (log)' if kind.log else steps}"


def _or(values: Sequence[object]) -> str:
    *others, last = map(_json, values)
    return f"{', '.join(others)} or {last}" if others else last


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _describe_default_width(plan: Plan) -> str:
    """Say what the channels of the baseline, which the space does not name, make of its networks."""
    sizes = []
    for changes in ({}, {"body_width": 64}):
        largest = _largest_network(plan, changes)
        sizes.append(f"{count_parameters(largest):,} weights and {short(count_mult_adds(largest))} mult-adds")
    usual, narrow = sizes
    return f"body_width is the baseline's, so networks have up to {usual} an image; with 64 channels up to {narrow}"


def show_plan(plan: Plan) -> None:
    """Print the settings of a sweep and the sizes of its first trials."""
    sweep = plan.sweep
    proposer = f"{sweep.space.algorithm} by {'the Comet Optimizer' if plan.engine == 'comet' else 'Optuna'}"
    say(f"sweep {sweep.name}: {count(sweep.num_trials, 'trial')} of at most {count(sweep.epochs, 'epoch')}, {proposer}")
    say(f"goal: {sweep.space.goal.direction} {sweep.space.goal.metric}; pruner: {sweep.pruner}")
    best, seeds = min(plan.confirm, sweep.num_trials), plan.confirm_seeds
    runs = f"the best {best} again, with {seeds} fresh seeds each" if best else "nothing"
    say(f"confirmed: {runs}; promote: {plan.promote}")
    workers = [f"{slot.device} ({count(slot.threads, 'thread')})" for slot in plan.slots]
    say(f"workers: {', '.join(workers)}; tracking: {plan.tracking}")
    say_fixed(plan)
    constants = sweep.space.constants
    if constants:
        say(describe_constants(constants))
    table = Table(title="first trials", title_justify="left")
    for title in ("trial", "parameters", "weights", "mult-adds"):
        table.add_column(title, justify="left" if title == "parameters" else "right")
    # Only the baseline is known before Comet is asked.
    proposals = plan.proposals(sweep.space.first_proposed if plan.engine == "comet" else NUM_SHOWN)
    for number, parameters in enumerate(proposals):
        config, _ = configure(parameters, plan.fixed)
        size, cost = f"{count_parameters(config):,}", short(count_mult_adds(config))
        table.add_row(str(number), _describe_parameters(parameters, constants), size, cost)
    if proposals:
        console.print(table)


def _describe_parameters(parameters: Mapping[str, Any], constants: Mapping[str, Any]) -> str:
    """Describe the searched parameters, and those of a baseline that differ from the constants of the space."""
    shown = {key: value for key, value in parameters.items() if key not in constants or value != constants[key]}
    texts = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in shown.items()}
    return " ".join(f"{key}={text}" for key, text in texts.items())


def _describe_missing_baseline(plan: Plan) -> str:
    """Say that the baseline network is not a trial, and what it and the largest network of the space cost."""
    text = "the baseline network is no trial of this sweep (--no-baseline)"
    try:
        cost = count_mult_adds(configure({}, plan.fixed)[0])
    except ValueError:  # the images are too small for it
        return text
    largest = count_mult_adds(_largest_network(plan))
    return f"{text}: it takes {short(cost)} mult-adds an image, the largest of this space {short(largest)}"


def _largest_network(plan: Plan, changes: Mapping[str, Any] = MappingProxyType({})) -> ModelConfig:
    """Return the network of the space with the most mult-adds, if all its networks have `changes`."""
    space, networks = plan.sweep.space, []
    names = [field.name for field in fields(ModelConfig) if field.name in space.parameters]
    for values in product(*(_sizes_of(space, name) for name in names)):
        with suppress(ValueError):  # of values that do not suit each other
            networks.append(configure({**dict(zip(names, values, strict=True)), **changes}, plan.fixed)[0])
    return max(networks, key=count_mult_adds)


def _sizes_of(space: Space, name: str) -> Sequence[Any]:
    """Return the extremes of a parameter, one of which makes the costliest network; for body_repeats all values.

    Residual blocks are counted from the last block, so each body block more moves them to smaller maps.
    """
    kind = space.distributions[name]
    if name == "body_repeats" and isinstance(kind, IntDistribution):
        return range(kind.low, kind.high + 1, kind.step)
    return space.values_of(name)


def _describe_warm_start(study: SharedStudy) -> Iterator[str]:
    if not (prior := study.prior):
        return
    first = study.sweep.space.first_proposed
    again = f"its winner is trained again as trial {first}" if prior.winner else "its winner was the baseline"
    yield f"warm start: the search uses {len(prior.trials)} trials of {prior.name}; {again}"
    if others := prior.differences(study.optuna.user_attrs["settings"]):
        shift = "results are shifted by the median difference on shared configurations"
        yield f"note: {prior.name} had other settings ({', '.join(others)}); {shift}"


def _describe_progress(study: SharedStudy) -> Iterator[str]:
    """Describe the state of a resumed sweep."""
    trials, num_asked, name = study.trials(), study.sweep.num_trials, study.sweep.name
    ended = [trial for trial in trials if trial.state.is_finished()]
    if len(trials) > num_asked:
        more = f"more than the {num_asked} asked for; those that ended count"
        yield f"note: {name} has {len(trials)} trials already, {more}"
    if num_removed := len(weights_to_remove(study.sweep, ended)):
        yield f"note: --keep {study.sweep.keep} removes the weights of {count(num_removed, 'trial')}"
    if study.num_unfinished() <= 0:
        ended_all = f"all {len(trials)} trials of {name} have" if len(trials) > 1 else f"the only trial of {name} has"
        yield f"nothing left to search: {ended_all} ended"
    elif trials:
        yield f"resuming {name}: {len(ended)} of {count(num_asked, 'trial')} ended before"
