"""The network and its configuration. `python -m catdog.model --stem-width 32` prints the layers of a configuration."""

import argparse
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from catdog.kernels.block import Block, ResidualBlock
from catdog.kernels.winograd import weights_transformed_once
from shell.command_line import CommandLine

MAX_IMAGE_SIZE = 2048  # pixels; a decoded image takes image_size**2 * 3 bytes of memory
MAX_BODY_REPEATS = MAX_IMAGE_SIZE.bit_length() - 3  # each block halves the image, and two come before
T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of the network. The defaults are the baseline: 2,668,418 parameters at 224 px."""

    stem_width: int = 64  # channels after the first block
    body_width: int = 512  # channels of every later block
    body_repeats: int = 4  # number of blocks after the first two
    share_body: bool = True  # True: blocks of body_width -> body_width channels are one block; False: one each
    double_width: bool = False  # True: each block has twice the channels of the one before, up to body_width
    residual_blocks: int = 0  # a residual block follows each of so many blocks, counted from the last
    global_pool: bool = False  # True: the linear layer gets each channel's mean; False: every value of the last map
    dropout: float = 0.0  # probability of zeroing a feature before the linear layer, 0 <= p < 1
    flip_average: bool = False  # True: outside training, the logits are the mean of an image's and its mirror image's
    image_size: int = 224  # height and width of the input, pixels
    classes: int = 2

    def __post_init__(self) -> None:
        for name in ("stem_width", "body_width", "body_repeats", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.body_repeats > MAX_BODY_REPEATS:
            reason = f"the poolings leave no pixel of an image of {MAX_IMAGE_SIZE} pixels"
            raise ValueError(f"body_repeats is {self.body_repeats}; it must be at most {MAX_BODY_REPEATS}: {reason}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.image_size > MAX_IMAGE_SIZE:
            raise ValueError(f"image_size is {self.image_size}; it must be at most {MAX_IMAGE_SIZE} pixels")
        if self.final_size < 1:
            need = f"body_repeats {self.body_repeats} needs an image_size of at least {2**self.num_poolings}"
            deepest = self.image_size.bit_length() - 3
            limit = f"set body_repeats to at most {deepest}, or image_size higher" if deepest > 0 else "set it higher"
            raise ValueError(f"{need}, and not {self.image_size}; {limit}")
        if not 0 <= self.residual_blocks <= self.num_poolings:
            most = f"{self.num_poolings}, the number of blocks (body_repeats + 2)"
            raise ValueError(f"residual_blocks is {self.residual_blocks}; it must be 0 to {most}")

    @property
    def num_poolings(self) -> int:
        return self.body_repeats + 2

    @property
    def final_size(self) -> int:
        """Height and width, in pixels, of the last feature map."""
        return int(self.image_size // 2**self.num_poolings)

    @property
    def widths(self) -> list[int]:
        """Channels after each block."""
        widths = [self.stem_width]
        while len(widths) < self.num_poolings:
            widths.append(min(2 * widths[-1], self.body_width) if self.double_width else self.body_width)
        return widths


class CNN(nn.Module):
    """Map normalized images (B, 3, S, S) to logits (B, classes). S is image_size, or another size with global_pool."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        first, second, *later = config.widths
        self.stem = Block(3, first)
        self.widen = Block(first, second)
        pairs = list(pairwise([second, *later]))
        if config.share_body:  # one block for all of the last kind
            pairs = [pair for pair in pairs if pair != pairs[-1]] + pairs[-1:]
        self.body = nn.ModuleList(Block(*pair) for pair in pairs)
        width = config.widths[-1]
        pool: nn.Module = nn.Flatten()
        if config.global_pool:
            pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), pool)
        features = width if config.global_pool else width * config.final_size**2
        self.head = nn.Sequential(pool, nn.Dropout(config.dropout), nn.Linear(features, config.classes))
        followed = config.widths[config.num_poolings - config.residual_blocks :]
        self.residual = nn.ModuleList(ResidualBlock(width) for width in followed)

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the blocks in the order in which they are applied, a shared one repeatedly."""
        blocks = [self.stem, self.widen, *self.body]
        for number in range(self.config.num_poolings):
            yield blocks[min(number, len(blocks) - 1)]
            following = number - self.config.num_poolings + self.config.residual_blocks
            if following >= 0:
                yield self.residual[following]

    def forward(self, x: Tensor) -> Tensor:
        with weights_transformed_once() if x.device.type == "cpu" else nullcontext():
            logits = self._logits(x)
            if self.config.flip_average and not self.training:
                logits = (logits.float() + self._logits(x.flip(3)).float()) / 2
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        for block in self.blocks():
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def build_model(config: ModelConfig, seed: int = 0) -> CNN:
    """Build the network with weights drawn from `seed`, without changing the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CNN(config).to(memory_format=torch.channels_last)


def count_mult_adds(config: ModelConfig) -> int:
    """Count the multiply-adds of one prediction, convolutions and linear layer, as torchinfo does."""
    size, total, num_in = config.image_size, 0, 3
    for number, width in enumerate(config.widths):
        total += _conv_mult_adds(num_in, width, size)
        size, num_in = size // 2, width
        if number >= config.num_poolings - config.residual_blocks:
            total += 2 * _conv_mult_adds(width, width, size)
    features = num_in if config.global_pool else num_in * size**2
    return (total + (features + 1) * config.classes) * (2 if config.flip_average else 1)


def _conv_mult_adds(num_in: int, num_out: int, size: int) -> int:
    """Count a 3x3 convolution with bias, and the weights of its BatchNorm."""
    return (9 * num_in + 1) * num_out * size**2 + 2 * num_out


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
    """Return whether two networks are the same, so that they give the same answers."""
    mine, theirs = one.state_dict(), other.state_dict()
    return (
        one.config == other.config
        and mine.keys() == theirs.keys()
        and all(torch.equal(mine[name], theirs[name]) for name in mine)
    )


def add_options(parser: CommandLine, config: type) -> None:
    """Add an option for each field of a configuration class to `parser`, with the field's default."""
    for field in fields(config):
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        if kind is bool:
            options: dict[str, Any] = {"nargs": "?", "const": True, "metavar": "true|false"}
            text = f"default {str(field.default).lower()}"
            parser.add_argument(flag, type=bool, default=field.default, help=text, **options)
            parser.add_argument(
                f"--no-{flag[2:]}", dest=field.name, action="store_false", help=f"the same as {flag} false"
            )
        else:
            parser.add_argument(flag, type=kind, default=field.default, help=f"default {field.default}")


def config_from(options: argparse.Namespace, config: type[T]) -> T:
    """Build a configuration from parsed `add_options`. Raises ValueError for a value out of range."""
    return config(**{field.name: getattr(options, field.name) for field in fields(config)})  # type: ignore[arg-type]


def main() -> None:
    parser = CommandLine("python -m catdog.model", "Print a network's layers.")
    add_options(parser, ModelConfig)
    try:
        config = config_from(parser.parse(), ModelConfig)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    with torch.device("meta"):  # shapes alone, nothing is computed
        print(layer_table(CNN(config)))


if __name__ == "__main__":
    main()
