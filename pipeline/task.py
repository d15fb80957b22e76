"""The task, cats and dogs: train a network with parameters of optimizer.json and report its metrics."""

import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from catdog.checkpoint import save_model
from catdog.data.dataset import Data, load_data
from catdog.data.preprocess import preprocessing
from catdog.device import is_out_of_memory, is_process_lost
from catdog.evaluate import confusion, write_outcomes
from catdog.model import ModelConfig, build_model, count_mult_adds, layer_table
from catdog.recipe.config import CHOICES, TrainConfig, image_size_of, require_suited
from catdog.train import Epoch, train
from search.analysis.statistics import accuracy_interval
from search.space.schema import to_boolean
from search.space.space import Parameters
from search.study.sweep import Sweep
from search.task import EpochMetrics, OutOfMemoryError, ProcessLostError, TrialContext
from shell.environment import module_command

METRICS: dict[str, Literal["minimize", "maximize"]] = {  # columns that a goal may name, with their direction
    "val_loss": "minimize",
    "val_accuracy": "maximize",
    "train_loss": "minimize",
    "train_accuracy": "maximize",
}
DEFAULTS = {**asdict(ModelConfig()), **asdict(TrainConfig())}
SEARCHABLE = {name: value for name, value in DEFAULTS.items() if name != "classes"}


@dataclass(frozen=True)
class TrainTrial:
    """The task: train a trial's network and keep the weights of its best epoch."""

    sweep: Sweep
    source: str  # of images
    fixed: Parameters  # the same for every trial unless they are searched
    fingerprint: str  # of the data at the sweep's start
    environment: Mapping[str, Any]  # common entries of every trial's provenance

    def __call__(self, context: TrialContext) -> Iterator[EpochMetrics]:
        """Train a trial. Raises ProcessLostError if only a new process can continue."""
        try:
            yield from self.epochs(context)
        except (RuntimeError, MemoryError) as error:
            if is_process_lost(error):
                kind = OutOfMemoryError if is_out_of_memory(error) else ProcessLostError
                raise kind(str(error) or "out of memory") from error
            raise

    def epochs(self, context: TrialContext) -> Iterator[EpochMetrics]:
        model_config, train_config = configure({**context.parameters, "seed": context.seed}, self.fixed)
        data = self.load(model_config.image_size)
        model = build_model(model_config, train_config.seed)
        (context.folder / "network.txt").write_text(layer_table(model), encoding="utf-8")
        command = self.command(context, model_config, train_config)
        (context.folder / "command.txt").write_text(f"{command}\n", encoding="utf-8", errors="surrogateescape")
        goal, best = self.sweep.space.goal, None
        (training, validation), checkpoint = (data.training, data.validation), context.checkpoint
        for epoch in train(model, train_config, training, validation, device=context.device, checkpoint=checkpoint):
            metrics = epoch.figures()
            context.check()
            if goal.replaces(metrics[goal.column], best):
                best = metrics[goal.column]
                if epoch.logits is not None:
                    write_outcomes(context.folder, data, epoch.logits)
                    header = self.header(context, data, train_config, epoch)
                    save_model(model, context.folder / "model.safetensors", header)
            yield metrics

    def load(self, image_size: int) -> Data:
        """Load the sweep's data. Raises OSError if it is gone or changed, which is no trial's fault."""
        try:
            data = load_data(self.source, image_size)
        except ValueError as error:
            raise OSError(str(error)) from error
        if data.fingerprint != self.fingerprint:
            raise OSError(f"the images of {self.source} have changed since the sweep began; give another --name")
        return data

    def command(self, context: TrialContext, model_config: ModelConfig, train_config: TrainConfig) -> str:
        """Return the command that trains this network alone, to the same weights on the same CPU."""
        goal = self.sweep.space.goal
        keep = "last" if goal.metric == goal.column else goal.column
        options = ["--data", self.source, "--device", context.device, "--keep", keep]
        for config in (model_config, train_config):
            for field in fields(config):
                value, flag = getattr(config, field.name), field.name.replace("_", "-")
                if value == field.default:
                    continue
                if isinstance(value, bool):
                    options.append(f"--{flag}" if value else f"--no-{flag}")
                else:
                    options += [f"--{flag}", str(value)]
        threads = os.environ.get("OMP_NUM_THREADS", "")  # the worker's share
        return f"OMP_NUM_THREADS={threads} {module_command('catdog.train')} {shlex.join(options)}"

    def header(self, context: TrialContext, data: Data, train_config: TrainConfig, epoch: Epoch) -> dict[str, Any]:
        """Return the header of the model file, without the architecture."""
        assert epoch.logits is not None, "the weights are this epoch's"
        size = len(data.validation)
        validation = {
            "epoch": epoch.epoch,
            "loss": epoch.val_loss,
            "accuracy": epoch.val_accuracy,
            "accuracy_interval": accuracy_interval(epoch.val_accuracy, size),
            "pictures": size,
            "confusion": confusion(epoch.logits, data.validation.y),
        }
        return {
            "classes": data.classes,
            "preprocessing": preprocessing(data.training.images.shape[1]),
            "metrics": {"validation": validation},
            "provenance": {
                **self.environment,
                "run": self.sweep.name,
                "trial": context.number if context.confirms is None else context.confirms,
                **({} if context.confirms is None else {"confirmation": context.number}),
                "parameters": dict(context.parameters),
                "training": asdict(train_config),
                "seeds": {"sweep": self.sweep.space.seed, "trial": train_config.seed},
                "data": {"source": self.source, "fingerprint": data.fingerprint},
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        }

    def cost(self, parameters: Mapping[str, Any]) -> float:
        """Return the mult-adds of one prediction with a trial's parameters."""
        return count_mult_adds(configure(parameters, self.fixed)[0])


def configure(parameters: Mapping[str, Any], fixed: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """Turn parameters of optimizer.json into configurations. Raises ValueError for values that no trial could use."""
    values = {name: cast(name, value) for name, value in {**fixed, **parameters}.items()}

    def of(config: type) -> dict[str, Any]:
        return {field.name: values[field.name] for field in fields(config) if field.name in values}

    shape, recipe = ModelConfig(**of(ModelConfig)), TrainConfig(**of(TrainConfig))
    require_suited(shape, recipe)
    return shape, recipe


def training_areas(parameters: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[float]:
    """Return the area of the training images in each epoch of a trial, as a share of that of full size."""
    shape, recipe = configure(parameters, fixed)
    sizes = [image_size_of(number, shape, recipe) for number in range(1, recipe.epochs + 1)]
    return [(size / shape.image_size) ** 2 for size in sizes]


def cast(name: str, value: Any) -> Any:
    """Convert a parameter to the type of its field: optimizer.json has only numbers and texts."""
    kind = type(DEFAULTS[name])
    if kind is bool and (boolean := to_boolean(value)) is not None:
        return boolean
    if kind is float and isinstance(value, int | float):
        return float(value)
    if kind is int and isinstance(value, int | float) and value == int(value):
        return int(value)
    if kind is str and isinstance(value, str):
        return value
    wanted = {bool: '"true" or "false"', int: "a whole number", float: "a number"}
    choices = f"one of {', '.join(get_args(CHOICES[name]))}" if kind is str else wanted[kind]
    raise ValueError(f"{name} is {value!r}; it must be {choices}")


def environment_info() -> dict[str, Any]:
    """Return commit and versions, for the header of every model."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    git = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return {"commit": git.stdout.strip() or None, "versions": library_versions()}


def library_versions() -> dict[str, str]:
    libraries = ("torch", "torchvision", "optuna", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}
