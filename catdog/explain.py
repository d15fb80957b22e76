"""Extract features, saliency maps and out-of-distribution distances of images in one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catdog.data.preprocess import normalize
from catdog.kernels.precision import autocast
from catdog.kernels.winograd import weights_transformed_once
from catdog.model import CNN, ModelConfig

LAYERS_PER_BLOCK = 4  # convolution, ReLU, BatchNorm, pooling
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
    return [config.stem_width] * 2 + [config.body_width] * 2 * (config.body_repeats + 1)


def extract_features(model: CNN, images: Tensor, device: torch.device, *, saliency: bool = False) -> Features:
    """Run `model`, in eval mode on `device`, on (B, S, S, 3) uint8. `saliency` costs a part of a backward pass."""
    layers, cut = [layer for block in model.blocks() for layer in block], _saliency_layer(model.config)
    statistics: list[Tensor] = []
    with autocast(device, "auto"), weights_transformed_once():
        with torch.no_grad():
            maps = _apply(layers[:cut], normalize(images.to(device)), statistics)
        with torch.set_grad_enabled(saliency):
            x = _apply(layers[cut:], maps.requires_grad_(saliency), statistics)
            logits = model.head(x).float()
    heat = _hires_cam(maps, margin_of(logits)) if saliency else torch.zeros(len(images), 0, 0)
    return Features(logits.detach().cpu(), torch.cat(statistics, dim=1).cpu(), heat.cpu())


def margin_of(logits: Tensor) -> Tensor:
    """Return the log odds of the likeliest class, (B,), from (B, classes) logits: confidence on an unbounded scale."""
    best, predicted = logits.max(1)
    return best - logits.scatter(1, predicted[:, None], -torch.inf).logsumexp(1)


def _saliency_layer(config: ModelConfig) -> int:
    """Return the number of layers before the last map that is large enough; a pooling follows it."""
    blocks = [block for block in range(config.num_poolings) if config.image_size >> block >= MIN_SALIENCY_SIZE]
    return LAYERS_PER_BLOCK * max(blocks, default=0) + LAYERS_PER_BLOCK - 1


def _apply(layers: Sequence[nn.Module], x: Tensor, statistics: list[Tensor]) -> Tensor:
    """Apply layers in order. Append each channel's mean and standard deviation after each pooling to `statistics`."""
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            positions = x.detach().permute(0, 2, 3, 1).flatten(1, 2)  # (B, h * w, C): the order in memory
            mean, square = (moment.mean(1, dtype=torch.float32) for moment in (positions, positions.square()))
            several = positions.shape[1] > 1  # one position has no deviation, only bfloat16's rounding error
            std = (square - mean**2).clamp_min(0).sqrt() if several else torch.zeros_like(mean)
            statistics += [mean, std]
    return x


def _hires_cam(maps: Tensor, margins: Tensor) -> Tensor:
    """Return where (B, C, h, w) maps support the predicted class, (B, h, w), 0 to 1.

    This is HiResCAM (Draelos and Carin 2020): Grad-CAM (Selvaraju et al. 2017) without the gradient's mean over the
    positions. That mean suits networks that average their last map. In this network, which does not, it points beside
    the animal.
    """
    (gradient,) = torch.autograd.grad(margins.sum(), maps)
    heat = (maps.detach() * gradient).float().sum(1).relu()
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)


def _rounded(values: Tensor) -> Tensor:
    """Round to four significant digits, since a header is text."""
    return torch.tensor([float(f"{value:.4g}") for value in values.tolist()])
