"""Validate optimizer.json against Comet's schema, with one sentence for every mistake.

https://www.comet.com/docs/v2/guides/optimizer/configure-optimizer/
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

TYPES = ("integer", "float", "double", "discrete", "categorical")
NOT_IN_OPTUNA = ("normal", "lognormal")
BOOLEANS = {"true": True, "false": False}  # Comet's schema has no booleans: these texts stand for them


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Range(_Entry):
    """A number between two inclusive bounds."""

    type: Literal["integer", "float", "double"]
    min: float | None = None
    max: float | None = None
    scaling: Literal["linear", "uniform", "loguniform", "normal", "lognormal"] = Field("uniform", alias="scalingType")
    grid_size: int | None = Field(None, alias="gridSize", ge=1)
    mu: float | None = None
    sigma: float | None = None

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> "Range":
        if self.scaling in NOT_IN_OPTUNA:
            raise ValueError(
                f"scalingType {self.scaling} has no counterpart in Optuna; use uniform or loguniform with min and max"
            )
        if self.min is None or self.max is None:
            raise ValueError("needs both min and max")
        if not (math.isfinite(self.min) and math.isfinite(self.max)):
            raise ValueError("needs finite min and max")
        if self.min > self.max:
            raise ValueError(f"has min {self.min:g} above max {self.max:g}; exchange them")
        if self.scaling == "loguniform" and self.min <= 0:
            raise ValueError(f"is loguniform with min {self.min:g}; set min above 0 or scalingType to uniform")
        if self.type == "integer" and not (self.min.is_integer() and self.max.is_integer()):
            raise ValueError(f"is an integer from {self.min:g} to {self.max:g}; give whole numbers or type float")
        return self

    def distribution(self) -> BaseDistribution:
        low, high = self._bounds()
        log = self.scaling == "loguniform"
        if self.type == "integer":
            return IntDistribution(int(low), int(high), log=log)
        return FloatDistribution(low, high, log=log)

    def grid(self, size: int) -> list[Any]:
        low, high = self._bounds()
        space = np.geomspace if self.scaling == "loguniform" else np.linspace
        points = np.clip(space(low, high, self.grid_size or size), low, high)
        if self.type == "integer":
            return sorted({round(point) for point in points.tolist()})
        return sorted(set(points.tolist()))

    def extremes(self) -> list[Any]:
        low, high = self._bounds()
        return [int(low), int(high)] if self.type == "integer" else [low, high]

    def _bounds(self) -> tuple[float, float]:
        assert self.min is not None and self.max is not None, "validated above"  # noqa: PT018
        return self.min, self.max


class Values(_Entry):
    """One of some numbers (discrete) or texts (categorical)."""

    type: Literal["discrete", "categorical"]
    values: Annotated[list[int | float | str], Field(min_length=1)]

    @model_validator(mode="after")
    def _values_fit_the_type(self) -> "Values":
        wanted: Any = str if self.type == "categorical" else (int, float)
        for value in self.values:
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ValueError(  # noqa: TRY004 - pydantic wants it
                    f"is {self.type} but has the value {value!r}; "
                    + ("put texts in quotes" if self.type == "categorical" else "give numbers")
                )
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"repeats a value in {self.values}; name each once")
        return self

    def distribution(self) -> BaseDistribution:
        """Return an ordered range for evenly spaced whole numbers, so that the sampler knows their distances."""
        if self.type == "discrete" and len(self.values) > 1 and all(isinstance(v, int) for v in self.values):
            numbers = sorted(int(v) for v in self.values)
            steps = set(np.diff(numbers).tolist())
            if len(steps) == 1:
                return IntDistribution(numbers[0], numbers[-1], step=steps.pop())
        return CategoricalDistribution(self.values)

    def grid(self, size: int) -> list[Any]:
        del size
        return list(self.values)

    def extremes(self) -> list[Any]:
        return list(self.values)


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


class File(_Entry):
    algorithm: Literal["bayes", "random", "grid"]
    name: str | None = None
    trials: int = 1
    parameters: Annotated[dict[str, Annotated[Range | Values, Field(discriminator="type")]], Field(min_length=1)]
    spec: Spec = Field(default_factory=lambda: Spec.model_validate({}))

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, content: Any) -> Any:
        """Expand a list to its values, and a single value to a list of one, as Comet does."""
        if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
            return content
        return {**content, "parameters": {name: _expanded(p) for name, p in content["parameters"].items()}}


def _expanded(parameter: Any) -> Any:
    if isinstance(parameter, dict):
        return parameter
    values = parameter if isinstance(parameter, list) else [parameter]
    is_text = bool(values) and isinstance(values[0], str)
    return {"type": "categorical" if is_text else "discrete", "values": values}


def read_file(path: Path) -> Any:
    """Read optimizer.json. Raises ValueError, one sentence, if it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name an existing search space") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text; write it as JSON") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON: {error.msg} in line {error.lineno}; mend that line") from error


def validated(content: Any, origin: object) -> File:
    """Validate the content of optimizer.json. Raises ValueError: one sentence of origin, key, value and remedy."""
    try:
        return File.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{origin}: {_first_mistake(error)}") from error


def without_boolean(value: Any) -> Any:
    """Return the text that stands for a boolean; other values as they are."""
    return str(value).lower() if isinstance(value, bool) else value


def to_boolean(value: Any) -> bool | None:
    """Return the boolean that a value of optimizer.json stands for; None for other values."""
    return BOOLEANS.get(str(value).lower())


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
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r}; remove it"
        case "missing":
            return f"{key} is missing; add it"
        case "union_tag_not_found":
            return f"{key} has no type; give it integer, float, discrete or categorical"
        case "union_tag_invalid":
            return f"{key}.type is {first['input'].get('type')!r}; it must be one of {', '.join(TYPES)}"
        case "too_short":
            return f"{key} is empty; name at least one"
        case "value_error":
            return f"{key} {message}"
    return f"{key} is {first['input']!r}; {message[0].lower()}{message[1:]}"
