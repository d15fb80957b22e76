"""The network and its configuration. `python -m catdog.model --stem-width 32` prints the layers of a configuration."""

import argparse
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from catdog.kernels.block import Block
from catdog.kernels.winograd import weights_transformed_once

MAX_IMAGE_SIZE = 2048  # pixels; a decoded image takes image_size**2 * 3 bytes of memory
T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of the network. The defaults are the baseline: 2,668,418 parameters at 224 px."""

    stem_width: int = 64  # channels after the first block
    body_width: int = 512  # channels of every later block
    body_repeats: int = 4  # applications of a body_width -> body_width block
    share_body: bool = True  # True: one block for all applications; False: one for each
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
            need = f"{self.num_poolings} poolings need at least {2**self.num_poolings} pixels"
            raise ValueError(f"image_size {self.image_size} is too small for body_repeats {self.body_repeats}: {need}")

    @property
    def num_poolings(self) -> int:
        return self.body_repeats + 2

    @property
    def final_size(self) -> int:
        """Height and width, in pixels, of the last feature map."""
        return int(self.image_size // 2**self.num_poolings)


class CNN(nn.Module):
    """Map normalized images (B, 3, image_size, image_size) to logits (B, classes)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.body_width
        self.stem = Block(3, config.stem_width)
        self.widen = Block(config.stem_width, width)
        num_blocks = 1 if config.share_body else config.body_repeats
        self.body = nn.ModuleList(Block(width, width) for _ in range(num_blocks))
        linear = nn.Linear(width * config.final_size**2, config.classes)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout), linear)

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks in the order in which they are applied, a shared one repeatedly."""
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
    """Build the network with weights drawn from `seed`, without changing the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CNN(config).to(memory_format=torch.channels_last)


def count_mult_adds(config: ModelConfig) -> int:
    """Count the multiply-adds of one image's forward pass, convolutions and linear layer, as torchinfo does."""
    size, width = config.image_size, config.body_width
    widths = [(3, config.stem_width), (config.stem_width, width), *[(width, width)] * config.body_repeats]
    total = 0
    for num_in, num_out in widths:
        total += (9 * num_in + 1) * num_out * size**2 + 2 * num_out  # convolution with bias, BatchNorm's weights
        size //= 2
    return total + (width * size**2 + 1) * config.classes


def layer_table(model: CNN) -> str:
    """Return torchinfo's table of the layers for one image, after running `model` on one where it is."""
    from torchinfo import summary  # noqa: PLC0415 - used by few commands

    size, device = model.config.image_size, next(model.parameters()).device
    table = summary(model, input_size=(1, 3, size, size), device=device, verbose=0)
    return re.sub(r"\(Units\.(.)\w+\)", r"(\1)", str(table))  # torchinfo prints its enum's name since Python 3.11


def count_parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CNN(config).parameters())


def have_same_weights(one: CNN, other: CNN) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """Add an option for each field of a configuration class to `parser`, with the field's default."""
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
    with torch.device("meta"):  # shapes alone, nothing is computed
        print(layer_table(CNN(config)))


if __name__ == "__main__":
    main()
