"""Turn optimizer.json into a validated Space, with Optuna's distributions and sampler."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from search.space.grid import GridSampler
from search.space.mistakes import shown
from search.space.reader import read_file
from search.space.schema import File, Range, Spec, Values, validated, without_boolean
from shell.command_line import did_you_mean, one_line

Parameters = dict[str, Any]
Direction = Literal["minimize", "maximize"]
Check = Callable[[Parameters], object]  # raises ValueError for parameters that no trial could use

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the live table replaces Optuna's log


@dataclass(frozen=True)
class Goal:
    """The metric by which trials are ranked: `best_X` is the best of column X over the epochs, `X` its last value."""

    metric: str
    direction: Direction

    @property
    def column(self) -> str:
        return self.metric.removeprefix("best_")

    def replaces(self, value: float, before: float | None) -> bool:
        """Say whether an epoch of `value` replaces the epoch that counted `before`."""
        return before is None or self.metric == self.column or self.as_loss(value) < self.as_loss(before)

    def index(self, values: Sequence[float]) -> int:
        """Return the index (from 0) of the trial's epoch that counts."""
        return len(values) - 1 if self.metric == self.column else values.index(self.best(values))

    def best(self, values: Sequence[float]) -> float:
        return min(values) if self.direction == "minimize" else max(values)

    def as_loss(self, value: float) -> float:
        """Return a value with its sign changed where more is better, so that less is better."""
        return value if self.direction == "minimize" else -value


@dataclass(frozen=True)
class Space:
    """The validated search space, its algorithm and its goal."""

    content: Mapping[str, Any]  # the file, in Comet's schema
    name: str  # the `name` in the file, which is any text, or the file's stem
    algorithm: Literal["bayes", "random", "grid"]
    parameters: Mapping[str, Range | Values]
    goal: Goal
    max_combo: int  # the budget in the file; 0 where it gives none
    seed: int
    grid_size: int
    baseline: Parameters | None  # the parameters of trial 0, as in optimizer.json; None: not tried

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {name: parameter.distribution() for name, parameter in self.parameters.items()}

    @property
    def constants(self) -> Parameters:
        """Return the parameters that are not searched: each has a single value, in every trial but the baseline."""
        return {name: self.values_of(name)[0] for name, kind in self.distributions.items() if kind.single()}

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
        """Say whether there is a baseline outside the space."""
        baseline = self.baseline
        return baseline is not None and not all(_contains(d, baseline[name]) for name, d in self.distributions.items())

    def values_of(self, name: str) -> list[Any]:
        """Return the bounds, or the values, of a parameter; nothing if the space lacks it."""
        return self.parameters[name].extremes() if name in self.parameters else []

    def sampler(self, number: int) -> BaseSampler:
        """Make the sampler that proposes trial `number`.

        Each trial has its own seed, so that a proposal depends on the study and not on the worker. Samplers of equal
        seed in parallel workers would propose the same parameters.
        """
        if self.algorithm == "grid":
            grid = {name: parameter.grid(self.grid_size) for name, parameter in self.parameters.items()}
            return GridSampler(grid, self.seed, number - self.first_proposed)
        seed = derive_seed(self.seed, number)
        if self.algorithm == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            # A baseline outside the space has no parameters in the study; only `group` accepts such a trial.
            return TPESampler(seed=seed, multivariate=True, group=self.baseline_is_outside)

    def suggest(self, trial: optuna.Trial) -> None:
        """Propose and record every parameter of `trial`; those recorded before stay."""
        for name, d in self.distributions.items():
            match d:
                case IntDistribution():
                    trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)
                case FloatDistribution():
                    trial.suggest_float(name, d.low, d.high, log=d.log)
                case CategoricalDistribution():
                    trial.suggest_categorical(name, d.choices)


def load_space(
    path: Path,
    defaults: Mapping[str, Any],
    metrics: Mapping[str, Direction],
    check: Check,
    content: Mapping[str, Any] | None = None,
) -> Space:
    """Read and validate `path`, or the `content` of a search of that name at Comet.

    `defaults` maps every searchable parameter to its baseline value, and `metrics` every column of an epoch to its
    better direction. Raises ValueError: one sentence that names the file, the key, the value and the remedy.
    """
    file = validated(read_file(path) if content is None else content, path, defaults)
    _check_parameters(path, file, check)
    return Space(
        content=file.content(),
        name=(file.name or "").strip() or path.stem,
        algorithm=file.algorithm,
        parameters=file.parameters,
        goal=_goal(path, file.spec, metrics),
        max_combo=file.spec.max_combo,
        seed=file.spec.seed or 0,
        grid_size=file.spec.grid_size,
        baseline={name: without_boolean(defaults[name]) for name in file.parameters},
    )


def _check_parameters(path: Path, file: File, check: Check) -> None:
    if file.trials != 1:
        raise ValueError(f"{path}: trials is {shown(file.trials)}; set it to 1: spec.maxCombo is the number of trials")
    for name, parameter in file.parameters.items():
        for value in parameter.extremes():
            try:
                check({name: value})
            except ValueError as error:
                raise ValueError(one_line(f"{path}: parameters.{name}: {error}")) from error


def derive_seed(seed: int, number: int, repeat: int = 0) -> int:
    """Return a seed for trial `number`: 32 bits, independent between trials and repeats, the same on every machine."""
    return int(np.random.SeedSequence([seed, number, repeat]).generate_state(1)[0])


def _goal(path: Path, spec: Spec, metrics: Mapping[str, Direction]) -> Goal:
    goal = Goal(spec.metric, spec.objective)
    if goal.column not in metrics:
        known = [goal for name in metrics for goal in (name, f"best_{name}")]
        remedy = did_you_mean(spec.metric, known) or f"; it must be one of {', '.join(known)}"
        raise ValueError(one_line(f"{path}: spec.metric is {shown(spec.metric)}{remedy}"))
    if (better := metrics[goal.column]) != spec.objective:
        raise ValueError(f"{path}: spec.objective is {spec.objective!r} for {spec.metric}; set it to {better!r}")
    return goal


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if isinstance(distribution, IntDistribution) and (value - distribution.low) % distribution.step:
        return False
    return bool(distribution.low <= value <= distribution.high)
