"""Extract features, saliency maps and out-of-distribution distances of images in one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catdog.data.preprocess import normalize
from catdog.kernels.block import Block, ResidualBlock
from catdog.kernels.precision import autocast
from catdog.kernels.winograd import weights_transformed_once
from catdog.model import CNN, ModelConfig

MIN_SALIENCY_SIZE = 7  # pixels of the map that saliency is computed on: that of the last block at 224 px


@dataclass(frozen=True)
class Features:
    """The outputs of a network for B images, on the CPU."""

    logits: Tensor  # (B, classes) float32
    statistics: Tensor  # (B, T) float32: mean and standard deviation of each channel after each block, block by block
    saliency: Tensor  # (B, h, w) float32, 0 to 1: evidence for the predicted class; (B, 0, 0) unless asked for


@dataclass(frozen=True)
class OODDetector:
    """Detect images unlike those that a network was trained on.

    A simple form of the Mahalanobis distance of Lee et al. (2018): each statistic in standard deviations of the
    training images, squared, and averaged within each group and over the groups. Only early blocks reveal noise and
    plain areas. Only late blocks reveal wrong contents. The softmax reveals neither.
    """

    mean: Tensor  # (T,)
    std: Tensor  # (T,)
    sizes: Sequence[int]  # of the groups that are averaged first; their sum is T
    limit: float  # images at a larger distance are probably none of the classes

    def distance(self, statistics: Tensor) -> Tensor:
        """Return the distance of images, (B,), from their (B, T) statistics. Training images are at about 1."""
        squares = ((statistics - self.mean) / self.std) ** 2
        return torch.stack([group.mean(1) for group in torch.split(squares, list(self.sizes), dim=1)]).mean(0)

    @classmethod
    def fit(cls, statistics: Tensor, config: ModelConfig, limit: float = float("inf")) -> "OODDetector":
        """Fit mean and standard deviation to the (N, T) statistics of training images."""
        sizes = group_sizes(config)
        groups = torch.split(statistics, sizes, dim=1)
        std = [group.std(0).clamp_min(1e-3 * float(group.std()) + 1e-6) for group in groups]
        return cls(_rounded(statistics.mean(0)), _rounded(torch.cat(std)), sizes, limit)

    @classmethod
    def from_header(cls, entry: dict[str, Any], config: ModelConfig) -> "OODDetector":
        return cls(torch.tensor(entry["mean"]), torch.tensor(entry["std"]), group_sizes(config), entry["limit"])

    def for_header(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "limit": self.limit}


def group_sizes(config: ModelConfig) -> list[int]:
    """Return the sizes of the groups of statistics: a block's means, its deviations, the next block's means, ..."""
    first = config.num_poolings - config.residual_blocks  # that a residual block follows
    return [width for number, width in enumerate(config.widths) for _ in range(2 if number < first else 4)]


def extract_features(model: CNN, images: Tensor, device: torch.device, *, saliency: bool = False) -> Features:
    """Run `model`, in eval mode on `device`, on (B, S, S, 3) uint8. `saliency` costs a part of a backward pass."""
    layers, flip, num = _layers(model), model.config.flip_average, len(images)
    if flip:
        images = torch.cat((images, images.flip(2)))
    cut = _saliency_layer(layers, model.config)
    statistics: list[Tensor] = []
    with autocast(device, "auto"), weights_transformed_once():
        with torch.no_grad():
            maps = _apply(layers[:cut], normalize(images.to(device)), statistics)
        with torch.set_grad_enabled(saliency):
            x = _apply(layers[cut:], maps.requires_grad_(saliency), statistics)
            logits = model.head(x).float()
            if flip:
                logits = (logits[:num] + logits[num:]) / 2
    heat = _hires_cam(maps, margin_of(logits), flip=flip) if saliency else torch.zeros(num, 0, 0)
    return Features(logits.detach().cpu(), torch.cat(statistics, dim=1)[:num].cpu(), heat.cpu())


def margin_of(logits: Tensor) -> Tensor:
    """Return the log odds of the likeliest class, (B,), from (B, classes) logits: confidence on an unbounded scale."""
    best, predicted = logits.max(1)
    return best - logits.scatter(1, predicted[:, None], -torch.inf).logsumexp(1)


def _layers(model: CNN) -> list[nn.Module]:
    """Return the layers before the head: those of each block, and residual blocks whole."""
    return [layer for block in model.blocks() for layer in (block if isinstance(block, Block) else [block])]


def _saliency_layer(layers: Sequence[nn.Module], config: ModelConfig) -> int:
    """Return the number of layers before the last pooling of a map that is large enough."""
    poolings = [number for number, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    large = [number for block, number in enumerate(poolings) if config.image_size >> block >= MIN_SALIENCY_SIZE]
    return max(large, default=poolings[0])


def _apply(layers: Sequence[nn.Module], x: Tensor, statistics: list[Tensor]) -> Tensor:
    """Apply layers in order. Append each channel's mean and standard deviation after each block to `statistics`."""
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d | ResidualBlock):
            positions = x.detach().permute(0, 2, 3, 1).flatten(1, 2)  # (B, h * w, C): the order in memory
            mean, square = (moment.mean(1, dtype=torch.float32) for moment in (positions, positions.square()))
            several = positions.shape[1] > 1  # one position has no deviation, only bfloat16's rounding error
            std = (square - mean**2).clamp_min(0).sqrt() if several else torch.zeros_like(mean)
            statistics += [mean, std]
    return x


def _hires_cam(maps: Tensor, margins: Tensor, *, flip: bool) -> Tensor:
    """Return where (B, C, h, w) maps support the predicted class, (B, h, w), 0 to 1.

    This is HiResCAM (Draelos and Carin 2020): Grad-CAM (Selvaraju et al. 2017) without the gradient's mean over the
    positions. That mean suits networks that average their last map. In other networks it points beside the animal.
    With `flip`, the maps are (2 B, C, h, w), the second half of the mirror images.
    """
    (gradient,) = torch.autograd.grad(margins.sum(), maps)
    heat = (maps.detach() * gradient).float().sum(1).relu()
    if flip:
        heat = heat[: len(margins)] + heat[len(margins) :].flip(2)
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)


def _rounded(values: Tensor) -> Tensor:
    """Round to four significant digits, since a header is text."""
    return torch.tensor([float(f"{value:.4g}") for value in values.tolist()])
