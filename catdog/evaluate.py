"""A network and pictures -> loss, accuracy and one row of logits per picture."""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses
from torch import Tensor

from catdog.data.dataset import MEAN, STD, Pictures
from catdog.data.loader import batches
from catdog.kernels.precision import Precision, autocast
from catdog.model import CNN

__all__ = ["Scores", "confusion", "evaluate", "losses", "normalise"]

BATCH_PIXELS = 250 * 64 * 64  # of the pictures judged at once; README widths then need about 1 GB


@dataclass(frozen=True)
class Scores:
    """How a network does on pictures."""

    loss: float  # mean cross-entropy, nats
    accuracy: float  # 0 to 1
    logits: Tensor  # (N, classes) float32, on the CPU


@torch.inference_mode()
def evaluate(
    model: CNN, pictures: Pictures, *, device: str | torch.device = "cpu", precision: Precision = "auto"
) -> Scores:
    """Judge `model` on every picture, without augmentation. The model is left in eval mode, on `device`."""
    device = torch.device(device)
    model.to(device).eval()
    logits = []
    size = pictures.images.shape[1]
    split = torch.split(pictures.rows, max(1, BATCH_PIXELS // size**2))
    for images, _ in batches(pictures, split, device):
        with autocast(device, precision):
            logits.append(model(normalise(images)).float())
    scores = torch.cat(logits).cpu()  # once: a GPU is waited for here
    y = pictures.y.cpu()
    correct = (scores.argmax(1) == y).double().mean().item()
    return Scores(F.cross_entropy(scores, y).item(), correct, scores)


def losses(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each picture, (N,) nats, from (N, classes) logits and (N,) labels."""
    return F.cross_entropy(logits, y, reduction="none")


def confusion(logits: Tensor, y: Tensor) -> list[list[int]]:
    """Count pictures by true class (rows) and predicted class (columns)."""
    classes = logits.shape[1]
    counts = torch.bincount(y * classes + logits.argmax(1), minlength=classes**2)
    matrix: list[list[int]] = counts.view(classes, classes).tolist()
    return matrix


def normalise(images: Tensor) -> Tensor:
    """Turn (B, S, S, 3) bytes into (B, 3, S, S) float32 of about zero mean and unit variance, channels-last."""
    mean, std = _scale(images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


@cache
def _scale(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of bytes, kept on `device`: to copy them there anew, a step would wait for the GPU."""
    with torch.inference_mode(mode=False):
        return torch.tensor(MEAN, device=device) * 255, torch.tensor(STD, device=device) * 255
