"""Validate optimizer.json against Comet's schema, with one sentence for every mistake.

Some people write more than the schema allows, such as true for "true" or "16" for 16. It is converted to the schema's
form, in which Comet's service and the study get it.

https://www.comet.com/docs/v2/guides/optimizer/configure-optimizer/
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from search.space.expressions import remedy
from search.space.mistakes import describe, form, shown, unknown_parameter
from search.space.reader import as_number
from shell.command_line import one_line

MAX_NUMBER = 2**53  # Optuna stores numbers in 64 bits, in which larger whole numbers are not exact
MAX_VALUES, MAX_BINS = 1_000, 10_000  # of a parameter


def _of_text(value: Any) -> Any:
    """Return the number that a text stands for; other values as they are."""
    if isinstance(value, str):
        try:
            return as_number(value)
        except ValueError:
            return value
    return value


def _number(value: Any) -> float:
    number = _of_text(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        meant = remedy(value) if isinstance(value, str) else ""
        raise ValueError(f"is {shown(value)}; {meant if meant and '[' not in meant else 'give a number'}")  # noqa: TRY004 - pydantic wants a ValueError
    if not abs(number) <= MAX_NUMBER:
        raise ValueError(f"is {shown(value)}; give a number between -{MAX_NUMBER:.0e} and {MAX_NUMBER:.0e}")
    return number


def _whole(value: Any) -> Any:
    number = _of_text(value)
    return int(number) if isinstance(number, float) and number.is_integer() else number


Number = Annotated[float, PlainValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Range(_Entry):
    """A number between two inclusive bounds."""

    type: Literal["integer", "float", "double"]
    scaling: Literal["linear", "uniform", "loguniform", "normal", "lognormal"] = Field("uniform", alias="scalingType")
    min: Number
    max: Number
    grid_size: Whole | None = Field(None, alias="gridSize", ge=1, le=MAX_BINS)
    mu: Number | None = None
    sigma: Number | None = None

    @field_validator("scaling")
    @classmethod
    def _is_known_to_optuna(cls, scaling: str) -> str:
        if scaling in ("normal", "lognormal"):
            instead = form(scalingType="uniform" if scaling == "normal" else "loguniform")
            raise ValueError(f'{scaling} has no counterpart in Optuna; write {instead} with "min" and "max"')
        return scaling

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> "Range":
        if self.min > self.max:
            raise ValueError(f"has min {self.min:g} above max {self.max:g}; exchange them")
        if self.scaling == "loguniform" and self.min <= 0:
            raise ValueError(f"is loguniform with min {self.min:g}; set min above 0 or scalingType to uniform")
        return self

    def fitted(self, default: Any) -> "Range":
        """Return the range for a parameter with that default. Raises ValueError, the end of a sentence."""
        if isinstance(default, bool | str):
            raise ValueError(f" has min and max; list its values instead, such as [{written(default)}]")  # noqa: TRY004
        is_whole = type(default) is int
        if is_whole and self.type != "integer":
            raise ValueError(f".type is {self.type!r}; set it to 'integer'")
        if self.type == "integer" and any(bound != int(bound) for bound in (self.min, self.max)):
            remedy = "give whole numbers" if is_whole else "give whole numbers or type float"
            raise ValueError(f" is an integer from {self.min:g} to {self.max:g}; {remedy}")
        return self

    def content(self) -> dict[str, Any]:
        """Return the parameter in Comet's schema."""
        low, high = self.extremes()
        bins = {} if self.grid_size is None else {"gridSize": self.grid_size}
        return {"type": self.type, "min": low, "max": high, "scalingType": self.scaling, **bins}

    def distribution(self) -> BaseDistribution:
        low, high = self.extremes()
        kind = IntDistribution if self.type == "integer" else FloatDistribution
        return kind(low, high, log=self.scaling == "loguniform")

    def grid(self, size: int) -> list[Any]:
        space = np.geomspace if self.scaling == "loguniform" else np.linspace
        points = np.clip(space(self.min, self.max, self.grid_size or size), self.min, self.max).tolist()
        return sorted(set(map(round, points) if self.type == "integer" else points))

    def extremes(self) -> list[Any]:
        return [int(self.min), int(self.max)] if self.type == "integer" else [self.min, self.max]


def _as_list(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


class Values(_Entry):
    """One of some numbers (discrete) or texts (categorical)."""

    type: Literal["discrete", "categorical"]
    values: Annotated[list[Any], BeforeValidator(_as_list), Field(min_length=1, max_length=MAX_VALUES)]
    scaling: Any = Field(None, alias="scalingType", exclude=True)

    @field_validator("scaling")
    @classmethod
    def _has_no_effect(cls, scaling: Any) -> Any:
        if scaling not in (None, "uniform", "linear"):
            raise ValueError(f"is {shown(scaling)}, but listed values have no scaling; leave it out")
        return scaling

    def fitted(self, default: Any) -> "Values":
        """Convert the values to the type of a parameter with that default. Raises ValueError, the end of a sentence."""
        values = [_fitted(value, default) for value in self.values]
        if len(set(values)) < len(values):
            raise ValueError(f" repeats a value in {shown(values)}; name each once")
        return self.model_copy(update={"type": type_of(values), "values": values})

    def content(self) -> dict[str, Any]:
        """Return the parameter in Comet's schema."""
        return {"type": self.type, "values": self.values}

    def distribution(self) -> BaseDistribution:
        """Return an ordered range for evenly spaced whole numbers, so that the sampler knows their distances."""
        numbers = sorted(value for value in self.values if isinstance(value, int))
        steps = set(np.diff(numbers).tolist())
        if len(numbers) == len(self.values) and len(steps) == 1:
            return IntDistribution(numbers[0], numbers[-1], step=steps.pop())
        return CategoricalDistribution(self.values)

    def grid(self, _: int) -> list[Any]:
        return self.values

    def extremes(self) -> list[Any]:
        return self.values


def _fitted(value: Any, default: Any) -> Any:
    """Convert a listed value to the type of `default`, if it can be; the task refuses other numbers and texts."""
    if isinstance(default, bool) and value in (0, 1) and not isinstance(value, float):
        return without_boolean(bool(value))
    number = _of_text(value) if isinstance(default, int | float) else value
    meant = remedy(number, whole=type(default) is int) if isinstance(number, str) else ""
    if meant and not isinstance(default, str):
        raise ValueError(f" has the value {shown(value)}; {meant}")
    kind = (str,) if isinstance(default, bool | str) else (int, float)
    if value is None or isinstance(number, bool | list | dict):
        wanted = "a text" if kind == (str,) else "a number"
        raise ValueError(f" has the value {shown(value)}; give {wanted}, such as its default {written(default)}")
    if isinstance(number, kind) and not isinstance(number, str) and not abs(number) <= MAX_NUMBER:
        raise ValueError(f" has the value {shown(value)}; give a smaller number")
    return number


def type_of(values: list[Any]) -> str:
    return "categorical" if isinstance(values[0], str) else "discrete"


class Spec(_Entry):
    """Goal and budget; keys for Comet's service are accepted too."""

    max_combo: Whole = Field(0, alias="maxCombo", ge=0)
    metric: str = "best_val_loss"
    objective: Literal["minimize", "maximize"] = "minimize"
    seed: Whole | None = Field(None, ge=0)
    grid_size: Whole = Field(10, alias="gridSize", ge=1, le=MAX_BINS)
    min_sample_size: Whole = Field(100, alias="minSampleSize")
    retry_limit: Whole = Field(20, alias="retryLimit")
    retry_assign_limit: Whole = Field(0, alias="retryAssignLimit")
    randomize: Annotated[bool, BeforeValidator(lambda value: value if (b := to_boolean(value)) is None else b)] = False


def _expanded(parameter: Any) -> Any:
    """Expand a list to its values, and a single value to a list of one, as Comet does."""
    if isinstance(parameter, dict):
        return parameter
    values = _as_list(parameter)
    return {"type": type_of(values) if values else "discrete", "values": values}


Parameter = Annotated[Range | Values, Field(discriminator="type"), BeforeValidator(_expanded)]


class File(_Entry):
    algorithm: Literal["bayes", "random", "grid"]
    name: str | None = None
    trials: Whole = 1
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    spec: Spec = Field(default_factory=lambda: Spec.model_validate({}))
    verbose: Any = Field(0, exclude=True)  # of Comet's client

    def content(self) -> dict[str, Any]:
        """Return the file in Comet's schema, with the keys that were given."""
        given = self.model_dump(by_alias=True, exclude_unset=True, exclude_none=True, exclude={"parameters"})
        return {**given, "parameters": {name: parameter.content() for name, parameter in self.parameters.items()}}


_MODELS: dict[str, type[BaseModel]] = {"file": File, "spec": Spec, "range": Range, "values": Values}
LEVELS = {
    level: [field.alias or name for name, field in model.model_fields.items() if not field.exclude]
    for level, model in _MODELS.items()
}


def validated(content: Any, origin: object, defaults: Mapping[str, Any]) -> File:
    """Validate the content of optimizer.json, whose parameters have `defaults`.

    Raises ValueError: one sentence of origin, key, value and remedy.
    """
    try:
        file = File.model_validate(content)
    except ValidationError as error:
        raise ValueError(one_line(f"{origin}: {describe(error, content, LEVELS, defaults)}")) from error
    return file.model_copy(
        update={"parameters": {name: _suited(name, p, origin, defaults) for name, p in file.parameters.items()}}
    )


def _suited(name: str, parameter: Range | Values, origin: object, defaults: Mapping[str, Any]) -> Range | Values:
    if name not in defaults:
        raise ValueError(one_line(f"{origin}: {unknown_parameter(name, defaults)}"))
    try:
        return parameter.fitted(defaults[name])
    except ValueError as error:
        raise ValueError(one_line(f"{origin}: parameters.{name}{error}")) from error


def comparable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a file in one form for all ways to write the same search for Optuna."""
    return {name: _comparable(_expanded(parameter)) for name, parameter in parameters.items()}


def _comparable(parameter: Mapping[str, Any]) -> dict[str, Any]:
    if "values" in parameter:
        return {"type": type_of(parameter["values"]), "values": parameter["values"]}
    ignored = {"mu", "sigma", *(["scalingType"] if parameter.get("scalingType") in ("uniform", "linear") else [])}
    kind = {"type": "float"} if parameter.get("type") == "double" else {}
    return {name: value for name, value in {**parameter, **kind}.items() if name not in ignored}


def written(value: Any) -> str:
    """Return a value as it stands in the file."""
    return json.dumps(without_boolean(value), ensure_ascii=False)


def without_boolean(value: Any) -> Any:
    """Return the text that stands for a boolean, which Comet's schema lacks; other values as they are."""
    return str(value).lower() if isinstance(value, bool) else value


def to_boolean(value: Any) -> bool | None:
    """Return the boolean that a value of optimizer.json stands for; None for other values."""
    return {"true": True, "false": False}.get(str(value).lower())


def known_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the keys that Comet's service adds to a search."""
    spec = {field.alias or name for name, field in Spec.model_fields.items()}
    kept = {key: value for key, value in content.items() if key in File.model_fields}
    return {**kept, "spec": {key: value for key, value in content.get("spec", {}).items() if key in spec}}
