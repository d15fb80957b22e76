"""optimizer.json -> validated Space -> Optuna's distributions and sampler."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler

from search.space.schema import Range, Spec, Values, read_file, validated

__all__ = ["Goal", "Parameters", "Space", "derive_seed", "load_space"]

Parameters = dict[str, Any]

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the live table says what Optuna would log


@dataclass(frozen=True)
class Goal:
    """What a trial is ranked by: `best_X` takes the best of column X over the epochs, `X` its last value."""

    metric: str
    direction: Literal["minimize", "maximize"]

    @property
    def column(self) -> str:
        return self.metric.removeprefix("best_")

    def replaces(self, value: float, before: float | None) -> bool:
        """Say whether an epoch of `value` counts instead of the one that counted before."""
        if before is None or self.metric == self.column:
            return True
        return value < before if self.direction == "minimize" else value > before

    def index(self, values: Sequence[float]) -> int:
        """Return which of a trial's epochs (from 0) counts."""
        return len(values) - 1 if self.metric == self.column else values.index(self.best(values))

    def best(self, values: Sequence[float]) -> float:
        """Return the best of some values."""
        return min(values) if self.direction == "minimize" else max(values)

    def as_loss(self, value: float) -> float:
        """Return a value with its sign changed where more is better, so that less is better."""
        return value if self.direction == "minimize" else -value


@dataclass(frozen=True)
class Space:
    """What is searched, how, and for what."""

    content: Mapping[str, Any]  # the file, as read
    name: str  # the file's name for the sweep, or the file's own name
    algorithm: Literal["bayes", "random", "grid"]
    parameters: Mapping[str, Range | Values]
    goal: Goal
    max_combo: int  # the budget in the file; 0 where it gives none
    seed: int
    grid_size: int
    baseline: Parameters | None  # the README configuration, in the space's own terms; None: it is not tried

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {name: parameter.distribution() for name, parameter in self.parameters.items()}

    @property
    def num_trials(self) -> int:
        """Return the budget, the baseline included; 0 where the file gives none."""
        if self.algorithm == "grid" and not self.max_combo:
            return self.first_proposed + math.prod(len(p.grid(self.grid_size)) for p in self.parameters.values())
        return self.max_combo

    @property
    def first_proposed(self) -> int:
        """Return the number of the first trial that is proposed: 1 after the baseline, else 0."""
        return 0 if self.baseline is None else 1

    @property
    def baseline_is_outside(self) -> bool:
        """Say whether there is a baseline that the space does not hold."""
        baseline = self.baseline
        return baseline is not None and not all(_contains(d, baseline[name]) for name, d in self.distributions.items())

    def values_of(self, name: str) -> list[Any]:
        """Return the ends, or the values, of a searched parameter; nothing where it is not searched."""
        return self.parameters[name].extremes() if name in self.parameters else []

    def sampler(self, number: int) -> BaseSampler:
        """Make the sampler that proposes trial `number`.

        Each trial has its own seed, so that what is proposed depends on the study alone and not on which worker
        asks; samplers of equal seed in parallel workers would propose the same thing.
        """
        if self.algorithm == "grid":
            grid = {name: parameter.grid(self.grid_size) for name, parameter in self.parameters.items()}
            return _Grid(grid, seed=self.seed)  # its order must be the same for every trial
        seed = derive_seed(self.seed, number)
        if self.algorithm == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # A baseline outside the space has no parameters in the study; only `group` looks past such a trial.
            return TPESampler(seed=seed, multivariate=True, group=self.baseline_is_outside)

    def suggest(self, trial: optuna.Trial) -> None:
        """Have every parameter of `trial` proposed and recorded; those that are stay as they are."""
        for name, d in self.distributions.items():
            match d:
                case IntDistribution():
                    trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)
                case FloatDistribution():
                    trial.suggest_float(name, d.low, d.high, log=d.log)
                case CategoricalDistribution():
                    trial.suggest_categorical(name, d.choices)


class _Grid(GridSampler):
    def after_trial(self, *_: object) -> None:
        """Do nothing: the study counts the budget, and Optuna's own stops a Study.optimize that does not run here."""


def load_space(
    path: Path,
    defaults: Mapping[str, Any],
    metrics: Mapping[str, Literal["minimize", "maximize"]],
    check: Callable[[Parameters], object],
    content: Mapping[str, Any] | None = None,
) -> Space:
    """Read and validate `path`, or the `content` of a search of that name at Comet.

    `defaults` maps every parameter that may be searched to its README value, `metrics` every column of an epoch to
    the direction in which it is better; `check` raises ValueError for parameters of which no trial could be made.
    Raises ValueError: one sentence that names the file, the key, the value and the remedy.
    """
    if content is None:
        content = read_file(path)
    file = validated(content, path)
    if unknown := sorted(set(file.parameters) - set(defaults)):
        raise ValueError(f"{path}: unknown parameter {unknown[0]!r}; known are {', '.join(sorted(defaults))}")
    if file.trials != 1:
        raise ValueError(f"{path}: trials is {file.trials}; set it to 1: --confirm trains the best again")
    space = Space(
        content=content,
        name=file.name or path.stem,
        algorithm=file.algorithm,
        parameters=file.parameters,
        goal=_goal(path, file.spec, metrics),
        max_combo=file.spec.max_combo,
        seed=file.spec.seed or 0,
        grid_size=file.spec.grid_size,
        baseline={name: _plain(defaults[name]) for name in file.parameters},
    )
    for name, parameter in file.parameters.items():
        if isinstance(parameter, Range) and parameter.type != "integer" and type(defaults[name]) is int:
            raise ValueError(f"{path}: parameters.{name}.type is {parameter.type!r}; set it to 'integer'")
        for value in parameter.extremes():
            try:
                check({name: value})
            except ValueError as error:
                raise ValueError(f"{path}: parameters.{name}: {error}") from error
    return space


def derive_seed(seed: int, number: int, repeat: int = 0) -> int:
    """Return a seed for trial `number`: 32 bits, independent between trials and repeats, the same on every machine."""
    return int(np.random.SeedSequence([seed, number, repeat]).generate_state(1)[0])


def _goal(path: Path, spec: Spec, metrics: Mapping[str, Literal["minimize", "maximize"]]) -> Goal:
    goal = Goal(spec.metric, spec.objective)
    if goal.column not in metrics:
        known = ", ".join(f"{name}, best_{name}" for name in metrics)
        raise ValueError(f"{path}: spec.metric is {spec.metric!r}; it must be one of {known}")
    if spec.objective != metrics[goal.column]:
        raise ValueError(
            f"{path}: spec.objective is {spec.objective!r} for {spec.metric}; set it to {metrics[goal.column]!r}"
        )
    return goal


def _plain(value: Any) -> Any:
    """Comet's schema has no booleans; the texts "true" and "false" stand for them."""
    return str(value).lower() if isinstance(value, bool) else value


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if isinstance(distribution, IntDistribution) and (value - distribution.low) % distribution.step:
        return False
    return bool(distribution.low <= value <= distribution.high)
