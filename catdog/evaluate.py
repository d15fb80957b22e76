"""A network and pictures -> loss, accuracy and one row of logits per picture."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses
from torch import Tensor

from catdog.data import MEAN, STD, Pictures
from catdog.device import Precision, autocast
from catdog.model import CNN

__all__ = ["Scores", "accuracy_interval", "evaluate", "normalise"]

BATCH_PIXELS = 250 * 64 * 64  # of the pictures judged at once; README widths then need about 1 GB


@dataclass(frozen=True)
class Scores:
    """How a network does on pictures."""

    loss: float  # mean cross-entropy, nats
    accuracy: float  # 0 to 1
    logits: Tensor  # (N, classes) float32, on the CPU
    confusion: list[list[int]]  # pictures by true class (rows) and predicted class (columns)


@torch.inference_mode()
def evaluate(
    model: CNN, pictures: Pictures, *, device: str | torch.device = "cpu", precision: Precision = "auto"
) -> Scores:
    """Judge `model` on every picture, without augmentation. The model is left in eval mode, on `device`."""
    device = torch.device(device)
    model.to(device).eval()
    logits = []
    size = pictures.images.shape[1]
    for batch in torch.split(pictures.rows, max(1, BATCH_PIXELS // size**2)):
        with autocast(device, precision):
            logits.append(model(normalise(pictures.images[batch].to(device))).float().cpu())
    scores = torch.cat(logits)
    y = pictures.labels[pictures.rows].cpu()
    predicted, classes = scores.argmax(1), scores.shape[1]
    correct = (predicted == y).double().mean().item()
    confusion = torch.bincount(y * classes + predicted, minlength=classes**2).view(classes, classes)
    return Scores(F.cross_entropy(scores, y).item(), correct, scores, confusion.tolist())


def normalise(images: Tensor) -> Tensor:
    """Turn (B, S, S, 3) bytes into (B, 3, S, S) float32 of about zero mean and unit variance, channels-last."""
    mean = torch.tensor(MEAN, device=images.device) * 255
    std = torch.tensor(STD, device=images.device) * 255
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def accuracy_interval(accuracy: float, num_pictures: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (E. B. Wilson, JASA 22, 1927), both ends in 0 to 1."""
    z, n = 1.959964, num_pictures
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
