"""Train a network. `python -m catdog.train --data PATH --epochs 8` trains one and saves its best epoch."""

import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses
from torch import Tensor

from catdog.checkpoint import load_state, replaces_model, save_model, save_state
from catdog.data.dataset import Data, ImageSubset, load_data
from catdog.data.loader import batches
from catdog.data.preprocess import normalize, preprocessing
from catdog.device import find_devices, keep_freed_memory
from catdog.evaluate import evaluate
from catdog.kernels.cuda_graph import CUDAGraphStep
from catdog.kernels.precision import autocast, bfloat16_fault, has_bfloat16, resolved
from catdog.model import CNN, ModelConfig, add_options, build_model, config_from
from catdog.recipe.augmentation import augment, erase
from catdog.recipe.average import MovingAverage
from catdog.recipe.config import CHOICES, TrainConfig, image_size_of, require_suited
from catdog.recipe.optimizers import make_optimizer
from catdog.recipe.schedules import make_scheduler
from shell.command_line import CommandLine, file_path
from shell.environment import describe

KEEP = {"val_loss": -1, "val_accuracy": 1, "train_loss": -1, "train_accuracy": 1, "last": 1}  # 1: more is better
STEP: Literal["eager", "graph", "compile", "compile+graph"] = "eager"  # on a GPU; benchmarks/gpu.py measures all


@dataclass(frozen=True)
class Epoch:
    """The metrics of one pass over the training images."""

    epoch: int  # from 1
    train_loss: float  # mean cross-entropy in nats, with label smoothing, during the epoch
    train_accuracy: float  # 0 to 1, likewise
    val_loss: float  # mean cross-entropy in nats, no smoothing, after the epoch
    val_accuracy: float  # 0 to 1
    learning_rate: float  # of the last step
    seconds: float  # wall clock, validation included
    images_per_second: float  # of training, validation excluded
    # Of the validation images, (N, classes) float32 on the CPU. None in an epoch that the checkpoint of a later epoch
    # replays, since the model then has the later weights.
    logits: Tensor | None = field(default=None, compare=False, repr=False)

    def figures(self) -> dict[str, float]:
        """Return every field but the logits."""
        return {name: value for name, value in vars(self).items() if name != "logits"}


def train(
    model: CNN,
    config: TrainConfig,
    training: ImageSubset,
    validation: ImageSubset,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place and yield one record after each epoch. To stop early, stop iterating.

    With `ema`, `model` gets the averaged weights. With a `checkpoint` path, save the state there before yielding an
    epoch. If the file exists, yield its epochs again (all but the last without logits), then resume. On a CPU, with the
    same number of threads, the final weights are bit-identical to those of an uninterrupted run. Raises
    FloatingPointError, with the epoch, if a loss is not finite.
    """
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    model.to(device)
    trainer = _Trainer(model, config, training.to(device), validation.to(device), torch.device(device))
    history = trainer.restore(checkpoint) if checkpoint else []
    yield from history
    for number in range(len(history) + 1, config.epochs + 1):
        history = [*(replace(epoch, logits=None) for epoch in history), trainer.run_epoch(number)]
        if checkpoint:
            save_state(checkpoint, trainer.state(history))
        yield history[-1]


class _Trainer:
    """The state of a training: weights, optimizer, schedule and random states.

    `trained` is the network whose weights the optimizer changes. `model` is the one that is evaluated and kept: the
    same, or its moving average.
    """

    def __init__(
        self, model: CNN, config: TrainConfig, training: ImageSubset, validation: ImageSubset, device: torch.device
    ) -> None:
        self.model, self.config, self.device = model, config, device
        self.training, self.validation = training, validation
        require_suited(model.config, config)
        self.trained = deepcopy(model) if config.ema else model
        self.average = MovingAverage(model, self.trained, config.ema) if config.ema else None
        step = STEP if device.type == "cuda" else "eager"
        weights, graph = self.trained.parameters(), device if "graph" in step else None
        self.optimizer = make_optimizer(config.optimizer, weights, config.learning_rate, config.weight_decay, graph)
        self.network = torch.compile(self.trained, dynamic=False) if "compile" in step else self.trained
        self.graph_step = CUDAGraphStep(config.batch_size, device) if graph else None
        self.optimizer.zero_grad(set_to_none=True)  # drops gradients that the caller may have left
        self.precision = resolved(device, config.precision)  # of the whole training, also after a resume
        self.order = torch.Generator().manual_seed(config.seed)  # of the images, equal on every kind of device
        on_cpu = device.type == "cpu"
        self.generator = self.order if on_cpu else torch.Generator(device).manual_seed(config.seed)  # augmentation's
        torch.manual_seed(config.seed)  # dropout draws from the global state

    def run_epoch(self, number: int) -> Epoch:
        """Train on every image once and evaluate."""
        began = time.perf_counter()
        loss, accuracy, learning_rate = self._train_epoch(number)
        trained = time.perf_counter() - began
        scores = evaluate(self.model, self.validation, device=self.device, precision=self.precision)
        for name, value in (("training", loss), ("validation", scores.loss)):
            if not math.isfinite(value):
                raise FloatingPointError(f"diverged in epoch {number}: {name} loss is {value}")
        return Epoch(
            epoch=number,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=scores.loss,
            val_accuracy=scores.accuracy,
            learning_rate=learning_rate,
            seconds=time.perf_counter() - began,
            images_per_second=len(self.training) / trained,
            logits=scores.logits,
        )

    def _train_epoch(self, number: int) -> tuple[float, float, float]:
        """Take one optimizer step per batch. Return mean loss, accuracy and the learning rate of the last step."""
        self.trained.train()
        rows = self.training.rows
        order = rows[torch.randperm(len(rows), generator=self.order).to(rows.device)]
        split = torch.split(order, self.config.batch_size)
        if len(split) > 1 and len(split[-1]) == 1 < self.config.batch_size:
            split = split[:-1]  # BatchNorm cannot normalize a single image of one pixel
        num_steps = math.ceil(len(rows) / self.config.batch_size)  # of an epoch, also if it leaves out a batch
        total_steps, steps_done = self.config.epochs * num_steps, (number - 1) * num_steps
        scheduler = make_scheduler(self.config.schedule, self.optimizer, total_steps, steps_done)
        num_seen, size = sum(map(len, split)), image_size_of(number, self.model.config, self.config)
        total = torch.zeros(2, device=self.device)  # summed loss, number correct
        for step, (images, y) in enumerate(batches(self.training, split, self.device), steps_done):
            (learning_rate,) = scheduler.get_last_lr()
            total += self._step(images, y, size)
            scheduler.step()
            if self.average:
                self.average.update(step)
        loss, num_correct = total.tolist()
        return loss / num_seen, num_correct / num_seen, float(learning_rate)

    def _step(self, images: Tensor, y: Tensor, size: int) -> Tensor:
        """Train on (B, S, S, 3) uint8 and (B,) labels. Return the summed loss and the number correct, (2,)."""
        x = augment(normalize(images), self.config.augmentation, self.generator, size)
        if self.config.erasing:
            x = erase(x, self.config.erasing, self.generator)
        return self.graph_step(self._update, x, y) if self.graph_step else self._update(x, y)

    def _update(self, x: Tensor, y: Tensor) -> Tensor:
        """Update the weights from (B, 3, S, S) floats and (B,) labels. All of it may be captured in a CUDA graph."""
        network = self.network if len(y) == self.config.batch_size else self.trained  # compiled for one shape
        with autocast(self.device, self.precision):
            logits = network(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=self.config.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        with autocast(self.device, self.precision):  # of Muon's matrix products
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack((loss.detach() * len(y), (logits.detach().argmax(1) == y).sum()))

    def state(self, history: list[Epoch]) -> dict[str, Any]:
        """Return the state of a checkpoint."""
        return {
            "config": asdict(self.config),
            "network": asdict(self.model.config),
            "model": self.model.state_dict(),
            "trained": self.trained.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "device": self.device.type,
            "precision": self.precision,
            "random": self._random_states(),
            "history": [vars(epoch) for epoch in history],
        }

    def restore(self, path: Path) -> list[Epoch]:
        """Load a checkpoint and return its epochs, none if there is no file."""
        state = load_state(path)
        if not state:
            return []
        config, network = asdict(self.config), asdict(self.model.config)
        # Fields that an older checkpoint lacks are off. An older one lacks the network.
        if (asdict(TrainConfig()) | state["config"], network | state.get("network", {})) != (config, network):
            raise ValueError(f"{path} belongs to other settings; remove it to start over")
        self.model.load_state_dict(state["model"])
        if self.average:
            self.trained.load_state_dict(state["trained"])
        settings = self.optimizer.state_dict()["param_groups"]  # this device's; the configuration is the same
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": settings})
        history = [Epoch(**record) for record in state["history"]]
        if state["device"] != self.device.type:  # random states of another kind of device cannot be used
            for generator in (self.order, self.generator):
                generator.manual_seed(self.config.seed + len(history))
            return history
        precision = state.get("precision", self.precision)
        if precision == "float32" or has_bfloat16(self.device):  # emulated bfloat16 is many times slower
            self.precision = precision
        self._set_random_states(state["random"])
        return history

    def _random_states(self) -> dict[str, Tensor]:
        states = {"order": self.order.get_state(), "cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states |= {"augmentation": self.generator.get_state(), "cuda": torch.cuda.get_rng_state(self.device)}
        return states

    def _set_random_states(self, states: dict[str, Tensor]) -> None:
        self.order.set_state(states["order"])
        torch.set_rng_state(states["cpu"])
        if self.device.type == "cuda":
            self.generator.set_state(states["augmentation"])
            torch.cuda.set_rng_state(states["cuda"], self.device)


def main() -> None:
    parser = CommandLine("python -m catdog.train", "Train one network.")
    add = parser.add_argument
    add("--data", default="synthetic", help="synthetic, kaggle or a folder of images")
    add("--device", default="auto", help="cpu, cuda:0, ...; auto is the first GPU, else the CPU")
    text = "keep the weights of the best epoch by this metric, or of the last epoch (default val_loss)"
    add("--keep", choices=KEEP, default="val_loss", help=text)
    add("--output", type=file_path, default=Path("model.safetensors"), help="file of the kept weights")
    add_options(parser, ModelConfig)
    add_options(parser, TrainConfig)
    parser.epilog = "; ".join(f"{name}: {', '.join(get_args(kind))}" for name, kind in CHOICES.items())
    options = parser.parse()
    try:
        shape, recipe = config_from(options, ModelConfig), config_from(options, TrainConfig)
        require_suited(shape, recipe)
        replaces = replaces_model(options.output)
        data = load_data(options.data, shape.image_size)
        (device,) = find_devices(options.device)[:1]
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    if shape.classes != len(data.classes):
        parser.exit(2, f"--classes is {shape.classes}; the images have {len(data.classes)}\n")
    if replaces:
        print(f"note: the best epoch replaces {options.output}, the model of an earlier training", flush=True)
    if device == "cpu" and recipe.precision == "auto" and bfloat16_fault():
        print(f"note: {bfloat16_fault()}")
    try:
        _train_and_save(shape, recipe, data, device, options.keep, options.output)
    except (FloatingPointError, OSError) as error:
        parser.exit(1, f"{describe(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"interrupted; {options.output} holds the best epoch so far, if one ended\n")


def _train_and_save(shape: ModelConfig, recipe: TrainConfig, data: Data, device: str, keep: str, output: Path) -> None:
    """Print every epoch and save the weights of the best one by the metric `keep`, or of the last."""
    model, best = build_model(shape, recipe.seed), -math.inf
    for epoch in train(model, recipe, data.training, data.validation, device=device):
        training = f"train {epoch.train_loss:.4f} {epoch.train_accuracy:.3f}"
        validation = f"val {epoch.val_loss:.4f} {epoch.val_accuracy:.3f}"
        print(f"epoch {epoch.epoch:3}  {training}  {validation}  {epoch.images_per_second:.0f} images/s", flush=True)
        score = epoch.epoch if keep == "last" else KEEP[keep] * getattr(epoch, keep)
        if score > best:
            best = score
            header = {
                "classes": data.classes,
                "preprocessing": preprocessing(shape.image_size),
                "metrics": {"validation": epoch.figures()},
                "provenance": {"training": asdict(recipe), "data": data.fingerprint},
            }
            save_model(model, output, header)
            kept = epoch.epoch
    print(f"epoch {kept} is in {output}")


if __name__ == "__main__":
    main()
