"""ModelConfig -> network; one safetensors file that holds the weights and everything needed to judge them.

`python -m catdog.model --stem-width 32 --body-width 128` prints the layers of any configuration.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from catdog.files import write_file
from catdog.kernels.block import Block
from catdog.kernels.winograd import weights_transformed_once

__all__ = [
    "CNN",
    "ModelConfig",
    "build_model",
    "count_mult_adds",
    "count_parameters",
    "have_same_weights",
    "load_model",
    "read_header",
    "save_model",
]

Header = dict[str, Any]
MAX_IMAGE_SIZE = 2048  # pixels; a picture is decoded to image_size**2 * 3 bytes that stay in memory
T = TypeVar("T")

ENTRIES = {"model", "classes", "preprocessing", "metrics", "provenance"}  # of every header, beside the hash


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. The defaults are the README network: 2,668,418 parameters at 224 px."""

    stem_width: int = 64  # channels after the first block
    body_width: int = 512  # channels of every later block
    body_repeats: int = 4  # how often a body_width -> body_width block is applied
    share_body: bool = True  # one block re-applied (True), or one block for each application
    dropout: float = 0.0  # probability of zeroing a feature before the linear layer, 0 <= p < 1
    image_size: int = 224  # height and width of the input, pixels
    classes: int = 2

    def __post_init__(self) -> None:
        for name in ("stem_width", "body_width", "body_repeats", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.image_size > MAX_IMAGE_SIZE:
            raise ValueError(f"image_size is {self.image_size}; it must be at most {MAX_IMAGE_SIZE} pixels")
        if self.final_size < 1:
            raise ValueError(
                f"image_size {self.image_size} is too small for body_repeats {self.body_repeats}: "
                f"{self.num_poolings} poolings need at least {2**self.num_poolings} pixels"
            )

    @property
    def num_poolings(self) -> int:
        return self.body_repeats + 2

    @property
    def final_size(self) -> int:
        """Height and width, in pixels, of the last feature map."""
        return int(self.image_size // 2**self.num_poolings)


class CNN(nn.Module):
    """Map normalised pictures (B, 3, image_size, image_size) to logits (B, classes)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.body_width
        self.stem = Block(3, config.stem_width)
        self.widen = Block(config.stem_width, width)
        num_blocks = 1 if config.share_body else config.body_repeats
        self.body = nn.ModuleList(Block(width, width) for _ in range(num_blocks))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(width * config.final_size**2, config.classes)
        )

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks in the order in which they are applied, a shared one again and again."""
        yield from (self.stem, self.widen)
        for repeat in range(self.config.body_repeats):
            yield cast("Block", self.body[0 if self.config.share_body else repeat])

    def forward(self, x: Tensor) -> Tensor:
        with weights_transformed_once() if x.device.type == "cpu" else nullcontext():
            for block in self.blocks():
                x = block(x)  # half as high and wide
        logits: Tensor = self.head(x)
        return logits


def build_model(config: ModelConfig, seed: int = 0) -> CNN:
    """Build the network with weights drawn from `seed`, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CNN(config).to(memory_format=torch.channels_last)


def count_mult_adds(config: ModelConfig) -> int:
    """Count the multiply-adds of one picture's forward pass, convolutions and linear layer, as torchinfo does."""
    size, width = config.image_size, config.body_width
    widths = [(3, config.stem_width), (config.stem_width, width), *[(width, width)] * config.body_repeats]
    total = 0
    for num_in, num_out in widths:
        total += (9 * num_in + 1) * num_out * size**2 + 2 * num_out  # convolution with bias, BatchNorm's weights
        size //= 2
    return total + (width * size**2 + 1) * config.classes


def layer_table(config: ModelConfig) -> str:
    """Return torchinfo's table of the layers that one picture passes."""
    from torchinfo import summary  # noqa: PLC0415 - wanted now and then

    with torch.device("meta"):  # shapes alone, nothing is computed
        model = CNN(config)
    for layer in model.modules():
        if not list(layer.children()):
            layer.forward = partial(_shaped, layer)
    table = summary(model, input_size=(1, 3, config.image_size, config.image_size), device="meta", verbose=0)
    return re.sub(r"\(Units\.(.)\w+\)", r"(\1)", str(table))  # torchinfo prints its enum's name since Python 3.11


def _shaped(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a tensor of the shape that a layer makes of `x`. PyTorch's own way imports its compiler for that."""
    if isinstance(layer, nn.Conv2d):
        return x.new_empty(len(x), layer.out_channels, *x.shape[2:])
    if isinstance(layer, nn.MaxPool2d):
        return x.new_empty(*x.shape[:2], *(size // 2 for size in x.shape[2:]))
    if isinstance(layer, nn.Linear):
        return x.new_empty(len(x), layer.out_features)
    return x.flatten(1) if isinstance(layer, nn.Flatten) else x


def count_parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CNN(config).parameters())


def have_same_weights(one: CNN, other: CNN) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def save_model(model: CNN, path: Path, header: Mapping[str, Any]) -> None:
    """Write `model` and `header` to one safetensors file, all or nothing.

    `header` holds the JSON-able entries `classes`, `preprocessing`, `metrics` and `provenance`; `model` (the
    configuration) and `sha256` (over tensors and every other entry) are added here, also in place of those that a
    header had which was read from a file.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    entries = {key: value for key, value in header.items() if key != "sha256"} | {"model": asdict(model.config)}
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in entries.items()}
    metadata["sha256"] = _digest(tensors, metadata)
    write_file(path, serialize(tensors, metadata=metadata))


def load_model(path: Path) -> tuple[CNN, Header]:
    """Read, verify and rebuild a saved network (in eval mode) with its header.

    Raises ValueError, in one sentence, for a file that is missing, torn, altered or of another shape.
    """
    tensors, header = _read(path)
    try:
        with torch.device("meta"):
            model = CNN(ModelConfig(**header["model"]))
        model.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} does not hold the network its header describes; train it again") from error
    return model.to(memory_format=torch.channels_last).eval(), header


def read_header(path: Path) -> Header:
    """Return the verified header of a saved network, JSON decoded. Raises ValueError like `load_model`."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Tensor], Header]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; train a model first, python run_sweep.py for one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file; restore or promote it again") from error
    claimed = metadata.pop("sha256", None)
    if claimed != _digest(tensors, metadata):
        raise ValueError(f"{path} was altered: its sha256 does not match; restore or promote it again")
    if missing := ENTRIES - metadata.keys():
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))} in its header; train it again")
    return tensors, {"sha256": claimed, **{key: json.loads(value) for key, value in metadata.items()}}


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """Give `parser` one option for each field of a configuration class, with the field's default."""
    for field in fields(config):
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        if kind is bool:
            text = f"default {'yes' if field.default else 'no'}"
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            parser.add_argument(flag, type=kind, default=field.default, help=f"default {field.default}")


def config_from(options: argparse.Namespace, config: type[T]) -> T:
    """Build a configuration from parsed `add_options`. Raises ValueError for a value out of range."""
    return config(**{field.name: getattr(options, field.name) for field in fields(config)})  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m catdog.model", description="Print a network's layers.")
    add_options(parser, ModelConfig)
    try:
        config = config_from(parser.parse_args(), ModelConfig)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    print(layer_table(config))


if __name__ == "__main__":
    main()
