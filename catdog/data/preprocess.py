"""Preprocessing: uint8 images -> the network's input."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

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
