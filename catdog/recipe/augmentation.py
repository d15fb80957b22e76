"""Random changes of the training images, on their device."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses
from torch import Tensor

Augmentation = Literal["none", "flip", "crop", "color", "strong"]

Draw = Callable[..., Tensor]


def augment(x: Tensor, kind: Augmentation, generator: torch.Generator, size: int | None = None) -> Tensor:
    """Transform normalized images (B, 3, S, S) at random, each by its own draw, and resize them to `size` pixels.

    Cumulative: "flip" mirrors, "crop" zooms and shifts, "color" changes contrast and brightness. "strong" mirrors, cuts
    out a rectangle (sides 0.53 to 1 of the image's, 0.6 to 1 in their geometric mean), and changes contrast, brightness
    and the balance of the colors. "crop" and later resize without antialiasing.
    """
    size = size or x.shape[2]
    if kind not in ("none", "flip"):
        return _resampled(x, kind, partial(_draw, len(x), generator), size)
    if size != x.shape[2]:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    if kind == "none":
        return x
    keep = _draw(len(x), generator, -1, 1) >= 0
    return torch.where(keep.view(-1, 1, 1, 1), x, x.flip(3))


def _resampled(x: Tensor, kind: Augmentation, draw: Draw, size: int) -> Tensor:
    mirror = (draw(-1, 1) >= 0).float() * 2 - 1
    if kind == "strong":
        zoom, shape = draw(0.6, 1), (draw(-0.25, 0.25) / 2).exp()
        width, height = (zoom * shape).clamp_max(1), (zoom / shape).clamp_max(1)
        right, down = draw(-1, 1) * (1 - width), draw(-1, 1) * (1 - height)
    else:
        width = height = draw(0.85, 1.05)
        right, down = draw(-0.1, 0.1), draw(-0.1, 0.1)
    zero = torch.zeros_like(width)
    theta = torch.stack((width * mirror, zero, right, zero, height, down), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(x), 3, size, size], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if kind == "color":
        x = x * draw(0.7, 1.3).view(-1, 1, 1, 1) + draw(-0.3, 0.3).view(-1, 1, 1, 1)
    elif kind == "strong":
        shift = draw(-0.4, 0.4).view(-1, 1, 1, 1) + draw(-0.2, 0.2, 3).view(-1, 3, 1, 1)
        x = x * draw(0.6, 1.4).view(-1, 1, 1, 1) + shift
    return x.contiguous(memory_format=torch.channels_last)


def erase(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Make a square of images (B, 3, S, S) gray, 2 to 33 % of the area before the borders cut it off.

    A simple form of random erasing (Zhong et al. 2017).
    """
    draw = partial(_draw, len(x), generator)
    side = draw(0.02, 0.33).sqrt() * (draw(0, 1) < probability) / 2
    places = (torch.arange(x.shape[2], device=x.device) + 0.5) / x.shape[2]
    rows, columns = ((places - draw(0, 1).unsqueeze(1)).abs() < side.unsqueeze(1) for _ in "yx")
    return torch.where((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0, x)


def _draw(num: int, generator: torch.Generator, low: float, high: float, each: int = 1) -> Tensor:
    """Draw (num * each,) uniform numbers."""
    return torch.rand(num * each, generator=generator, device=generator.device) * (high - low) + low
