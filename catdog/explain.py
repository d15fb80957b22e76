"""One forward pass -> more than logits: how each picture looked to every block, and where the network looked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catdog.evaluate import normalise
from catdog.kernels.precision import autocast
from catdog.kernels.winograd import weights_transformed_once
from catdog.model import CNN, ModelConfig

__all__ = ["Insight", "OODDetector", "look", "margin_of"]

LAYERS_OF_BLOCK = 4  # convolution, ReLU, BatchNorm, pooling
USEFUL_SIZE = 7  # pixels of a map that is to show where: that of the last block at 224 px


@dataclass(frozen=True)
class Insight:
    """What a network makes of B pictures; everything on the CPU."""

    logits: Tensor  # (B, classes) float32
    traits: Tensor  # (B, T) float32: each channel's mean and spread after each block, block by block
    heat: Tensor  # (B, h, w) float32, 0 to 1: what spoke for the class that it calls the picture; (B, 0, 0) unasked


@dataclass(frozen=True)
class OODDetector:
    """What pictures usually look like to a network, and how far from that one may be.

    A simple form of the Mahalanobis distance that Lee et al. (2018) detect strange pictures with: each trait in
    standard deviations of the training pictures, squared, and averaged within each block and over the blocks. Only
    early blocks give away noise and plain areas, only late ones wrong contents; the softmax gives away neither.
    """

    mean: Tensor  # (T,)
    std: Tensor  # (T,)
    sizes: Sequence[int]  # of the groups that are averaged first; their sum is T
    limit: float  # pictures farther away are probably none of the classes

    def distance(self, traits: Tensor) -> Tensor:
        """Return how unusual pictures are, (B,), from their (B, T) traits; those trained on are at about 1."""
        squares = ((traits - self.mean) / self.std) ** 2
        return torch.stack([group.mean(1) for group in torch.split(squares, list(self.sizes), dim=1)]).mean(0)

    @classmethod
    def of(cls, traits: Tensor, shape: ModelConfig, limit: float = float("inf")) -> "OODDetector":
        """Learn from the (N, T) traits of pictures what is usual."""
        sizes = trait_sizes(shape)
        std = [group.std(0).clamp_min(1e-3 * float(group.std()) + 1e-6) for group in torch.split(traits, sizes, dim=1)]
        return cls(_rounded(traits.mean(0)), _rounded(torch.cat(std)), sizes, limit)

    @classmethod
    def from_header(cls, entry: dict[str, Any], shape: ModelConfig) -> "OODDetector":
        return cls(torch.tensor(entry["mean"]), torch.tensor(entry["std"]), trait_sizes(shape), entry["limit"])

    def for_header(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "limit": self.limit}


def trait_sizes(shape: ModelConfig) -> list[int]:
    """Return how many traits belong together: a block's means, its spreads, the next block's means, ..."""
    widths = [shape.stem_width] + [shape.body_width] * (shape.body_repeats + 1)
    return [width for width in widths for _ in ("mean", "spread")]


def look(model: CNN, images: Tensor, device: torch.device, *, heat: bool = False) -> Insight:
    """Show (B, S, S, 3) bytes to `model`, which is in eval mode on `device`; `heat` costs a part of a backward pass."""
    layers, cut = [layer for block in model.blocks() for layer in block], _cut(model.config)
    traits: list[Tensor] = []
    with autocast(device, "auto"), weights_transformed_once():
        with torch.no_grad():
            maps = _run(layers[:cut], normalise(images.to(device)), traits)
        with torch.set_grad_enabled(heat):
            x = _run(layers[cut:], maps.requires_grad_(heat), traits)
            logits = model.head(x).float()
    where = _heat(maps, margin_of(logits)) if heat else torch.zeros(len(images), 0, 0)
    return Insight(logits.detach().cpu(), torch.cat(traits, dim=1).cpu(), where.cpu())


def margin_of(logits: Tensor) -> Tensor:
    """Return the log odds of the likeliest class, (B,), from (B, classes) logits: confidence on an open scale."""
    best, called = logits.max(1)
    rest = logits.scatter(1, called[:, None], -torch.inf).logsumexp(1)
    return best - rest


def _cut(shape: ModelConfig) -> int:
    """Return how many layers come before the last map of a useful size, which a block's pooling then halves."""
    useful = [block for block in range(shape.num_poolings) if shape.image_size >> block >= USEFUL_SIZE]
    return LAYERS_OF_BLOCK * max(useful, default=0) + LAYERS_OF_BLOCK - 1


def _run(layers: Sequence[nn.Module], x: Tensor, traits: list[Tensor]) -> Tensor:
    """Apply layers one after the other; add what the map after each pooling is like to `traits`."""
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            places = x.detach().permute(0, 2, 3, 1).flatten(1, 2)  # (B, h * w, C): as it lies in memory
            mean, square = (moment.mean(1, dtype=torch.float32) for moment in (places, places.square()))
            several = places.shape[1] > 1  # a single place has no spread, but in bfloat16 a rounding error
            traits += [mean, (square - mean**2).clamp_min(0).sqrt() if several else torch.zeros_like(mean)]
    return x


def _heat(maps: Tensor, margins: Tensor) -> Tensor:
    """Return where (B, C, h, w) maps spoke for the class that was called, (B, h, w), 0 to 1.

    This is Grad-CAM (Selvaraju et al. 2017) without its mean over the gradient's places: HiResCAM (Draelos and Carin
    2020). The mean is meant for networks that average their last map. This one reads it place by place, and the
    mean then points beside the animal.
    """
    (gradient,) = torch.autograd.grad(margins.sum(), maps)
    heat = (maps.detach() * gradient).float().sum(1).relu()
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)


def _rounded(values: Tensor) -> Tensor:
    """Keep four digits: a header is text."""
    return torch.tensor([float(f"{value:.4g}") for value in values.tolist()])
