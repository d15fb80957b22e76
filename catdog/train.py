"""TrainConfig; train(): a generator of epochs.

`python -m catdog.train --data PATH --image-size 64 --epochs 8` trains one network and saves its best epoch.
"""

import argparse
import io
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses
from torch import Tensor

from catdog.compiler import put_off_compiler
from catdog.data.dataset import Data, Pictures, load_data, preprocessing
from catdog.data.loader import batches
from catdog.device import find_devices, is_process_lost, keep_freed_memory
from catdog.evaluate import evaluate, normalise
from catdog.files import write_file
from catdog.kernels.cuda_graph import CUDAGraphStep
from catdog.kernels.precision import Precision, autocast, bfloat16_fault, has_bfloat16, resolved
from catdog.model import CNN, ModelConfig, add_options, build_model, config_from, save_model

__all__ = ["Epoch", "TrainConfig", "train"]

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "one_cycle"]
Augmentation = Literal["none", "flip", "crop", "color"]
Step = Literal["eager", "graph", "compile", "compile+graph"]

KEEP = {"val_loss": -1, "val_accuracy": 1, "train_loss": -1, "train_accuracy": 1, "last": 1}  # 1: more is better
STEP: Step = "eager"  # how a GPU runs a step; benchmarks/gpu.py measures all
WARM_UP = 0.25  # share of the steps in which one_cycle rises to the learning rate


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained. The defaults are the README recipe."""

    learning_rate: float = 1e-4  # the schedule's peak
    batch_size: int = 32  # pictures
    epochs: int = 20
    weight_decay: float = 0.0
    optimizer: Optimizer = "adam"  # sgd: Nesterov momentum 0.9
    schedule: Schedule = "constant"
    augmentation: Augmentation = "none"  # each name adds to the one before: mirror, zoom and shift, light
    label_smoothing: float = 0.0  # 0 <= s < 1
    precision: Precision = "auto"  # bfloat16 where the device does it well, else float32
    seed: int = 0  # of weights, order, augmentation and dropout

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        for name, kind in CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(kind))}")


CHOICES = {
    "optimizer": Optimizer,
    "schedule": Schedule,
    "augmentation": Augmentation,
    "precision": Precision,
}


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training pictures gave."""

    epoch: int  # from 1
    train_loss: float  # mean cross-entropy in nats, with label smoothing, while the weights moved
    train_accuracy: float  # 0 to 1, likewise
    val_loss: float  # mean cross-entropy in nats, no smoothing, after the epoch
    val_accuracy: float  # 0 to 1
    learning_rate: float  # of the last step
    seconds: float  # wall clock, validation included
    images_per_second: float  # training pictures, validation left out
    # Of the validation pictures, (N, classes) float32 on the CPU. None in an epoch that is replayed from the checkpoint
    # of a later one: the network's weights are not this epoch's.
    logits: Tensor | None = field(default=None, compare=False, repr=False)

    def figures(self) -> dict[str, float]:
        """Return every field but the logits."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "logits"}


def train(
    model: CNN,
    config: TrainConfig,
    training: Pictures,
    validation: Pictures,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place; yield one record after each epoch. To stop early, ask for no more.

    With a `checkpoint` path the state is written there before each epoch is yielded. Where the file exists, its
    epochs are yielded again first (all but the last without logits) and training goes on after them; on a CPU, with
    the same number of threads, the weights then end bit-identical to those of an uninterrupted run.

    Raises FloatingPointError, naming the epoch, when a loss is not finite.
    """
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    if "compile" not in STEP:
        put_off_compiler()
    model.to(device)
    run = _Run(model, config, training.to(device), validation.to(device), torch.device(device))
    history = run.restore(checkpoint) if checkpoint else []
    yield from history
    for number in range(len(history) + 1, config.epochs + 1):
        history = [*(replace(epoch, logits=None) for epoch in history), run.epoch(number)]
        if checkpoint:
            run.save(checkpoint, history)
        yield history[-1]


class _Run:
    """The state that moves while a network trains: weights, optimizer and random states."""

    def __init__(
        self, model: CNN, config: TrainConfig, training: Pictures, validation: Pictures, device: torch.device
    ) -> None:
        self.model, self.config, self.device = model, config, device
        self.training, self.validation = training, validation
        way = STEP if device.type == "cuda" else "eager"
        self.optimizer = _optimizer(config, model, device if "graph" in way else None)
        self.network = torch.compile(model, dynamic=False) if "compile" in way else model
        self.replayed = CUDAGraphStep(config.batch_size, device) if "graph" in way else None
        self.optimizer.zero_grad(set_to_none=True)  # what somebody else may have left
        self.precision = resolved(device, config.precision)  # to the end of the training, wherever it goes on
        self.order = torch.Generator().manual_seed(config.seed)  # the same pictures in a batch on every kind of device
        on_cpu = device.type == "cpu"
        self.generator = self.order if on_cpu else torch.Generator(device).manual_seed(config.seed)  # augmentation's
        torch.manual_seed(config.seed)  # dropout draws from the global state
        self.steps_per_epoch = math.ceil(len(training) / config.batch_size)

    def epoch(self, number: int) -> Epoch:
        began = time.perf_counter()
        loss, accuracy = self._pass(number)
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
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            seconds=time.perf_counter() - began,
            images_per_second=len(self.training) / trained,
            logits=scores.logits,
        )

    def _pass(self, number: int) -> tuple[float, float]:
        """Take one optimizer step per batch; return mean loss and accuracy."""
        self.model.train()
        rows = self.training.rows
        order = rows[torch.randperm(len(rows), generator=self.order).to(rows.device)]
        # BatchNorm cannot normalise a single picture of one pixel
        split = [batch for batch in torch.split(order, self.config.batch_size) if len(batch) > 1 or len(order) == 1]
        total, num_seen = torch.zeros(2, device=self.device), 0  # summed loss, number correct
        for step, (images, y) in enumerate(batches(self.training, split, self.device)):
            done = ((number - 1) * self.steps_per_epoch + step) / (self.config.epochs * self.steps_per_epoch)
            self._set_rate(self.config.learning_rate * _schedule(self.config.schedule, done))
            total += self._step(images, y)
            num_seen += len(y)
        loss, num_correct = total.tolist()
        return loss / num_seen, num_correct / num_seen

    def _step(self, images: Tensor, y: Tensor) -> Tensor:
        """Train on (B, S, S, 3) bytes and (B,) labels; return the summed loss and the number correct: (2,)."""
        x = augment(normalise(images), self.config.augmentation, self.generator)
        return self.replayed(self._update, x, y) if self.replayed else self._update(x, y)

    def _update(self, x: Tensor, y: Tensor) -> Tensor:
        """Move the weights by what (B, 3, S, S) floats say; a graph may record all of it."""
        network = self.network if len(y) == self.config.batch_size else self.model  # compiled for one shape
        with autocast(self.device, self.precision):
            logits = network(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=self.config.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack((loss.detach() * len(y), (logits.detach().argmax(1) == y).sum()))

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def save(self, path: Path, history: list[Epoch]) -> None:
        buffer = io.BytesIO()  # torch.save to a full disk raises RuntimeError; write_file raises OSError
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "device": self.device.type,
            "precision": self.precision,
            "random": self._random_states(),
            "history": [vars(epoch) for epoch in history],
        }
        torch.save(state, buffer)
        if path.exists():
            path.replace(_before(path))
        write_file(path, buffer.getvalue())

    def restore(self, path: Path) -> list[Epoch]:
        """Load the state that `save` wrote and return its epochs; none where there is none.

        A file that is torn, as a power cut or a bad disk leaves it, gives way to the one before it.
        """
        state = _read_checkpoint(path)
        if not state:
            path.unlink(missing_ok=True)  # or `save` would put it in the place of the good one
            state = _read_checkpoint(_before(path))
        if not state:
            return []
        if state["config"] != asdict(self.config):
            raise ValueError(f"{path} belongs to other settings; remove it to start over")
        self.model.load_state_dict(state["model"])
        settings = self.optimizer.state_dict()["param_groups"]  # this device's; the configuration is the same
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": settings})
        if state["device"] != self.device.type:  # random states of another kind of device mean nothing here
            for generator in (self.order, self.generator):
                generator.manual_seed(self.config.seed + len(state["history"]))
            return [Epoch(**record) for record in state["history"]]
        kept = state.get("precision", self.precision)
        if kept == "float32" or has_bfloat16(self.device):  # else it would take many times as long here
            self.precision = kept
        self.order.set_state(state["random"]["order"])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda":
            self.generator.set_state(state["random"]["augmentation"])
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        return [Epoch(**record) for record in state["history"]]

    def _random_states(self) -> dict[str, Tensor]:
        states = {"order": self.order.get_state(), "cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["augmentation"] = self.generator.get_state()
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states


def _before(path: Path) -> Path:
    return path.with_name(f"{path.name}.before")


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds; nothing where there is none that can be read."""
    if not path.exists():
        return {}
    content = io.BytesIO(path.read_bytes())
    try:
        state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has its own
        if is_process_lost(error):
            raise
        return {}
    return state


def augment(x: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """Vary normalised pictures (B, 3, S, S), each by its own draw; the shape stays."""
    if kind == "none":
        return x

    def draw(low: float, high: float) -> Tensor:  # (B,)
        return torch.rand(len(x), generator=generator, device=x.device) * (high - low) + low

    mirror = (draw(-1, 1) >= 0).float() * 2 - 1
    if kind == "flip":
        return torch.where(mirror.view(-1, 1, 1, 1) > 0, x, x.flip(3))
    zoom, right, down = draw(0.85, 1.05), draw(-0.1, 0.1), draw(-0.1, 0.1)
    zero = torch.zeros_like(zoom)
    theta = torch.stack((zoom * mirror, zero, right, zero, zoom, down), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if kind == "color":
        x = x * draw(0.7, 1.3).view(-1, 1, 1, 1) + draw(-0.3, 0.3).view(-1, 1, 1, 1)
    return x.contiguous(memory_format=torch.channels_last)


def _optimizer(config: TrainConfig, model: CNN, recorded: torch.device | None) -> torch.optim.Optimizer:
    """Build the optimizer, for a CUDA graph of the device `recorded` where there is one."""
    rate = config.learning_rate if recorded is None else torch.tensor(config.learning_rate, device=recorded)
    settings: dict[str, Any] = {"lr": rate, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, **settings)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), capturable=recorded is not None, **settings)


def _schedule(kind: Schedule, done: float) -> float:
    """Share of the learning rate to use when `done` (0 to 1) of all steps are taken."""
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if done < WARM_UP:
        return 0.04 + 0.96 * done / WARM_UP
    return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m catdog.train", description="Train one network.")
    parser.add_argument("--data", default="synthetic", help="synthetic, kaggle or a folder of pictures")
    parser.add_argument("--device", default="auto", help="cpu, cuda:0, ...; auto is the first GPU, else the CPU")
    text = "whose weights are kept: the best epoch's in this column, or the last's (default val_loss)"
    parser.add_argument("--keep", choices=KEEP, default="val_loss", help=text)
    parser.add_argument("--output", type=Path, default=Path("model.safetensors"), help="file for the best epoch")
    add_options(parser, ModelConfig)
    add_options(parser, TrainConfig)
    parser.epilog = "; ".join(f"{name}: {', '.join(get_args(kind))}" for name, kind in CHOICES.items())
    options = parser.parse_args()
    try:
        shape, recipe = config_from(options, ModelConfig), config_from(options, TrainConfig)
        data = load_data(options.data, shape.image_size)
        (device,) = find_devices(options.device)[:1]
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    if not options.output.resolve().parent.is_dir():
        parser.exit(2, f"--output {options.output} is in no folder that exists; make it first\n")
    if shape.classes != len(data.classes):
        parser.exit(2, f"--classes is {shape.classes}; the pictures have {len(data.classes)}\n")
    if device == "cpu" and recipe.precision == "auto" and bfloat16_fault():
        print(f"note: {bfloat16_fault()}")
    try:
        _train_and_save(shape, recipe, data, device, options)
    except (FloatingPointError, OSError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"interrupted; {options.output} holds what was kept so far, if anything\n")


def _train_and_save(
    shape: ModelConfig, recipe: TrainConfig, data: Data, device: str, options: argparse.Namespace
) -> None:
    """Print every epoch and keep the weights of the one that `--keep` asks for."""
    model, best = build_model(shape, recipe.seed), -math.inf
    for epoch in train(model, recipe, data.training, data.validation, device=device):
        print(
            f"epoch {epoch.epoch:3}  train {epoch.train_loss:.4f} {epoch.train_accuracy:.3f}"
            f"  val {epoch.val_loss:.4f} {epoch.val_accuracy:.3f}  {epoch.images_per_second:.0f} pictures/s",
            flush=True,
        )
        worth = epoch.epoch if options.keep == "last" else KEEP[options.keep] * getattr(epoch, options.keep)
        if worth > best:
            best = worth
            header = {
                "classes": data.classes,
                "preprocessing": preprocessing(shape.image_size),
                "metrics": {"validation": epoch.figures()},
                "provenance": {"training": asdict(recipe), "data": data.fingerprint},
            }
            save_model(model, options.output, header)
            kept = epoch.epoch
    print(f"epoch {kept} is in {options.output}")


if __name__ == "__main__":
    main()
