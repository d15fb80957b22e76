"""What a trial is: parameters of optimizer.json -> a network, trained and kept, with how it did on each picture.

This file, forecast.py, judge.py, plan.py, probe.py and run_sweep.py know both packages: `search` drives what `catdog`
does.
"""

import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from catdog.checkpoint import save_model
from catdog.data.dataset import Data, load_data
from catdog.data.preprocess import preprocessing
from catdog.device import find_devices, is_out_of_memory, is_process_lost
from catdog.evaluate import confusion, write_outcomes
from catdog.model import ModelConfig, build_model, layer_table
from catdog.train import TrainConfig, train
from search.analysis.statistics import accuracy_interval
from search.space.schema import to_boolean
from search.space.space import Parameters
from search.study.sweep import Sweep
from search.task import EpochMetrics, OutOfMemoryError, ProcessLostError, TrialContext

__all__ = ["DEFAULTS", "METRICS", "SEARCHABLE", "TrainTrial", "cast", "configure", "environment_info", "first_device"]

METRICS: dict[str, Literal["minimize", "maximize"]] = {  # what a goal may be, and which way it is better
    "val_loss": "minimize",
    "val_accuracy": "maximize",
    "train_loss": "minimize",
    "train_accuracy": "maximize",
}
DEFAULTS = {**asdict(ModelConfig()), **asdict(TrainConfig())}
SEARCHABLE = {name: value for name, value in DEFAULTS.items() if name != "classes"}


@dataclass(frozen=True)
class TrainTrial:
    """The task: train one trial, keep the weights of the epoch that counts."""

    sweep: Sweep
    source: str
    fixed: Parameters
    fingerprint: str  # of the data that the sweep began with
    origin: Mapping[str, Any]  # what every trial's provenance shares

    def __call__(self, context: TrialContext) -> Iterator[EpochMetrics]:
        try:
            yield from self.epochs(context)
        except (RuntimeError, MemoryError) as error:
            if is_process_lost(error):
                kind = OutOfMemoryError if is_out_of_memory(error) else ProcessLostError
                raise kind(str(error) or "out of memory") from error
            raise

    def epochs(self, context: TrialContext) -> Iterator[EpochMetrics]:
        shape, recipe = configure({**context.parameters, "seed": context.seed}, self.fixed)
        data = self.load(shape.image_size)
        model = build_model(shape, recipe.seed)
        goal, best = self.sweep.space.goal, None
        (context.folder / "network.txt").write_text(layer_table(shape))
        (context.folder / "command.txt").write_text(self.command(context, shape, recipe) + "\n")
        (training, validation), kept = (data.training, data.validation), context.checkpoint
        for epoch in train(model, recipe, training, validation, device=context.device, checkpoint=kept):
            row = epoch.figures()
            context.check()
            if goal.replaces(row[goal.column], best):
                best = row[goal.column]
                if epoch.logits is not None:
                    write_outcomes(context.folder, data, epoch.logits)
                    header = self.header(context, data, recipe, row)
                    header["metrics"]["validation"]["confusion"] = confusion(epoch.logits, data.validation.y)
                    save_model(model, context.folder / "model.safetensors", header)
            yield row

    def command(self, context: TrialContext, shape: ModelConfig, recipe: TrainConfig) -> str:
        """Return the command that trains a trial's network again, by itself: on the same CPU, to the same weights."""
        goal = self.sweep.space.goal
        keep = "last" if goal.metric == goal.column else goal.column
        options = ["--data", self.source, "--device", context.device, "--keep", keep]
        for config in (shape, recipe):
            for field in fields(config):
                value, flag = getattr(config, field.name), field.name.replace("_", "-")
                if isinstance(value, bool):
                    options += [f"--{flag}" if value else f"--no-{flag}"] if value != field.default else []
                elif value != field.default:
                    options += [f"--{flag}", str(value)]
        threads = os.environ.get("OMP_NUM_THREADS", "")  # the worker's share
        return f"OMP_NUM_THREADS={threads} {shlex.join(['python', '-m', 'catdog.train', *options])}"

    def load(self, image_size: int) -> Data:
        """Load the sweep's data. Raises OSError where it has gone or changed: no trial is to blame for that."""
        try:
            data = load_data(self.source, image_size)
        except ValueError as error:
            raise OSError(str(error)) from error
        if data.fingerprint != self.fingerprint:
            raise OSError(f"the pictures of {self.source} are not those that the sweep began with; give another --name")
        return data

    def header(self, context: TrialContext, data: Data, recipe: TrainConfig, row: EpochMetrics) -> dict[str, Any]:
        size = len(data.validation)
        interval = accuracy_interval(row["val_accuracy"], size)
        validation = {"epoch": row["epoch"], "loss": row["val_loss"], "accuracy": row["val_accuracy"]}
        return {
            "classes": data.classes,
            "preprocessing": preprocessing(data.training.images.shape[1]),
            "metrics": {"validation": {**validation, "accuracy_interval": interval, "pictures": size}},
            "provenance": {
                **self.origin,
                "run": self.sweep.name,
                "trial": context.number if context.confirms is None else context.confirms,
                **({} if context.confirms is None else {"confirmation": context.number}),
                "parameters": dict(context.parameters),
                "training": asdict(recipe),
                "seeds": {"sweep": self.sweep.space.seed, "trial": recipe.seed},
                "data": {"source": self.source, "fingerprint": data.fingerprint},
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        }


def configure(parameters: Mapping[str, Any], fixed: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """Turn parameters of optimizer.json into configurations. Raises ValueError for what no trial could use."""
    values = {name: cast(name, value) for name, value in {**fixed, **parameters}.items()}

    def those_of(kind: type) -> dict[str, Any]:
        return {field.name: values[field.name] for field in fields(kind) if field.name in values}

    return ModelConfig(**those_of(ModelConfig)), TrainConfig(**those_of(TrainConfig))


def cast(name: str, value: Any) -> Any:
    """Give a parameter the type that its field has; optimizer.json knows numbers and texts only."""
    kind = type(DEFAULTS[name])
    if kind is bool and (boolean := to_boolean(value)) is not None:
        return boolean
    if kind is float and isinstance(value, int | float):
        return float(value)
    if kind is int and isinstance(value, int | float) and value == int(value):
        return int(value)
    if kind is str and isinstance(value, str):
        return value
    wanted = {bool: '"true" or "false"', int: "a whole number", float: "a number", str: "a text"}[kind]
    raise ValueError(f"{name} is {value!r}; it must be {wanted}")


def first_device() -> str:
    """Return the first GPU that this process may use, else the CPU."""
    return find_devices("auto")[0]


def environment_info() -> dict[str, Any]:
    """Say which code and versions train, for the header of every model."""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    versions = {name: version(name) for name in ("torch", "torchvision", "optuna", "numpy", "pillow")}
    return {"commit": git.stdout.strip() or None, "versions": {"python": platform.python_version(), **versions}}
