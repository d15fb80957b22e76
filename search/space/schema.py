"""Validate optimizer.json against Comet's schema, with one sentence for every mistake.

https://www.comet.com/docs/v2/guides/optimizer/configure-optimizer/
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

TYPES = ("integer", "float", "double", "discrete", "categorical")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Range(_Entry):
    """A number between two inclusive bounds."""

    type: Literal["integer", "float", "double"]
    scaling: Literal["linear", "uniform", "loguniform", "normal", "lognormal"] = Field("uniform", alias="scalingType")
    min: float = Field(allow_inf_nan=False)
    max: float = Field(allow_inf_nan=False)
    grid_size: int | None = Field(None, alias="gridSize", ge=1)
    mu: float | None = None
    sigma: float | None = None

    @field_validator("scaling")
    @classmethod
    def _is_known_to_optuna(cls, scaling: str) -> str:
        if scaling in ("normal", "lognormal"):
            raise ValueError(f"{scaling} has no counterpart in Optuna; use uniform or loguniform with min and max")
        return scaling

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> "Range":
        if self.min > self.max:
            raise ValueError(f"has min {self.min:g} above max {self.max:g}; exchange them")
        if self.scaling == "loguniform" and self.min <= 0:
            raise ValueError(f"is loguniform with min {self.min:g}; set min above 0 or scalingType to uniform")
        if self.type == "integer" and not (self.min.is_integer() and self.max.is_integer()):
            raise ValueError(f"is an integer from {self.min:g} to {self.max:g}; give whole numbers or type float")
        return self

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


class Values(_Entry):
    """One of some numbers (discrete) or texts (categorical)."""

    type: Literal["discrete", "categorical"]
    values: Annotated[list[int | float | str], Field(min_length=1)]

    @model_validator(mode="after")
    def _values_fit_the_type(self) -> "Values":
        wanted, remedy = (str, "put texts in quotes") if self.type == "categorical" else ((int, float), "give numbers")
        for value in self.values:
            if not isinstance(value, wanted):
                # pydantic wants a ValueError
                raise ValueError(f"is {self.type} but has the value {value!r}; {remedy}")  # noqa: TRY004
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"repeats a value in {self.values}; name each once")
        return self

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


class Spec(_Entry):
    """Goal and budget; keys for Comet's service are accepted too."""

    max_combo: int = Field(0, alias="maxCombo", ge=0)
    metric: str = "best_val_loss"
    objective: Literal["minimize", "maximize"] = "minimize"
    seed: int | None = Field(None, ge=0)
    grid_size: int = Field(10, alias="gridSize", ge=1)
    min_sample_size: int = Field(100, alias="minSampleSize")
    retry_limit: int = Field(20, alias="retryLimit")
    retry_assign_limit: int = Field(0, alias="retryAssignLimit")
    randomize: bool = False


def _expanded(parameter: Any) -> Any:
    """Expand a list to its values, and a single value to a list of one, as Comet does."""
    if isinstance(parameter, dict):
        return parameter
    values = parameter if isinstance(parameter, list) else [parameter]
    is_text = bool(values) and isinstance(values[0], str)
    return {"type": "categorical" if is_text else "discrete", "values": values}


Parameter = Annotated[Range | Values, Field(discriminator="type"), BeforeValidator(_expanded)]


class File(_Entry):
    algorithm: Literal["bayes", "random", "grid"]
    name: str | None = None
    trials: int = 1
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    spec: Spec = Field(default_factory=lambda: Spec.model_validate({}))


def read_file(path: Path) -> Any:
    """Read optimizer.json. Raises ValueError, one sentence, if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name an existing search space") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text; write it as JSON") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON: {error.msg} in line {error.lineno}; correct that line") from error


def validated(content: Any, origin: object) -> File:
    """Validate the content of optimizer.json. Raises ValueError: one sentence of origin, key, value and remedy."""
    try:
        return File.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{origin}: {_first_mistake(error)}") from error


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


def _first_mistake(error: ValidationError) -> str:
    """Write pydantic's first error as one sentence: key, value, remedy."""
    first = error.errors(include_url=False)[0]
    path = [str(step) for step in first["loc"] if step not in TYPES]
    key, message = ".".join(path) or "the file", first["msg"].removeprefix("Value error, ")
    value = first["input"]
    kind = value.get("type") if isinstance(value, dict) else None
    sentences = {
        "extra_forbidden": f"unknown key {key!r}; remove it",
        "missing": f"{key} is missing; add it",
        "union_tag_not_found": f"{key} has no type; give it integer, float, discrete or categorical",
        "union_tag_invalid": f"{key}.type is {kind!r}; it must be one of {', '.join(TYPES)}",
        "too_short": f"{key} is empty; name at least one",
        "finite_number": f"{key} is {value!r}; give a finite number",
        "float_type": f"{key} is {value!r}; give a number",
        "value_error": f"{key} {message}",
    }
    return sentences.get(first["type"], f"{key} is {value!r}; {message[0].lower()}{message[1:]}")
