"""Preprocessing and augmentation: uint8 images -> the network's input."""

from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses
from torch import Tensor

Augmentation = Literal["none", "flip", "crop", "color"]

MEAN = (0.5, 0.5, 0.5)  # of pixels in 0 to 1; the first BatchNorm adapts to the data
STD = (0.25, 0.25, 0.25)


def preprocessing(image_size: int) -> dict[str, Any]:
    """Describe, for a model's header, how an image becomes the network's input."""
    return {"image_size": image_size, "resize": "stretch", "color": "RGB", "mean": [*MEAN], "std": [*STD]}


def normalize(images: Tensor) -> Tensor:
    """Turn (B, S, S, 3) uint8 into (B, 3, S, S) float32 of about zero mean and unit variance, channels-last."""
    mean, std = _mean_and_std(images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


@cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of bytes on `device`. Copying them in each step would wait for the GPU."""
    with torch.inference_mode(mode=False):
        return torch.tensor(MEAN, device=device) * 255, torch.tensor(STD, device=device) * 255


def augment(x: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """Transform normalized images (B, 3, S, S) at random, each by its own draw. The shape stays."""
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
