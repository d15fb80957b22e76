"""Evaluate a network on images: loss, accuracy, logits, and the files that a trial keeps of them."""

import json
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses
from PIL import Image
from torch import Tensor

from catdog.data.dataset import Data, ImageSubset
from catdog.data.files import write_file
from catdog.data.loader import batches
from catdog.data.preprocess import normalize
from catdog.kernels.precision import Precision, autocast
from catdog.model import CNN

BATCH_PIXELS = 250 * 64 * 64  # of all images of a batch; the baseline network then needs about 1 GB
NUM_MISTAKES, THUMBNAIL = 12, 112  # number of images in mistakes.json, and their size in pixels


@dataclass(frozen=True)
class Scores:
    """Results of a network on images."""

    loss: float  # mean cross-entropy, nats
    accuracy: float  # 0 to 1
    logits: Tensor  # (N, classes) float32, on the CPU


@torch.inference_mode()
def evaluate(
    model: CNN, subset: ImageSubset, *, device: str | torch.device = "cpu", precision: Precision = "auto"
) -> Scores:
    """Evaluate `model` on every image, without augmentation. Leave the model in eval mode, on `device`."""
    device = torch.device(device)
    model.to(device).eval()
    split = torch.split(subset.rows, max(1, BATCH_PIXELS // subset.images.shape[1] ** 2))
    with autocast(device, precision):
        parts = [model(normalize(images)).float() for images, _ in batches(subset, split, device)]
    logits = torch.cat(parts).cpu()  # once: this waits for the GPU
    y = subset.y.cpu()
    accuracy = (logits.argmax(1) == y).double().mean().item()
    return Scores(F.cross_entropy(logits, y).item(), accuracy, logits)


def losses(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each image, (N,) nats, from (N, classes) logits and (N,) labels."""
    return F.cross_entropy(logits, y, reduction="none")


def confusion(logits: Tensor, y: Tensor) -> list[list[int]]:
    """Count images by true class (rows) and predicted class (columns)."""
    classes = logits.shape[1]
    counts = torch.bincount(y * classes + logits.argmax(1), minlength=classes**2)
    matrix: list[list[int]] = counts.view(classes, classes).tolist()
    return matrix


def write_outcomes(folder: Path, data: Data, logits: Tensor) -> None:
    """Write the results on the validation images, from their (N, classes) logits, to a trial's folder.

    outcomes.npz: loss and correctness of each image. confusion.json: the confusion matrix. mistakes.json: the wrong
    answers with the highest probability.
    """
    y, columns = data.validation.y, BytesIO()
    np.savez(columns, val_loss=losses(logits, y).numpy(), val_accuracy=(logits.argmax(1) == y).float().numpy())
    write_file(folder / "outcomes.npz", columns.getvalue())
    matrix = {"labels": data.classes, "matrix": confusion(logits, y)}
    write_file(folder / "confusion.json", json.dumps(matrix).encode())
    write_file(folder / "mistakes.json", json.dumps(_find_mistakes(data, logits)).encode())


def _find_mistakes(data: Data, logits: Tensor) -> list[dict[str, object]]:
    validation, y = data.validation, data.validation.y
    confidence, predicted = logits.softmax(1).max(1)
    order = confidence.argsort(descending=True)
    return [
        {
            "label": data.classes[int(y[row])],
            "predicted": data.classes[int(predicted[row])],
            "probability": float(confidence[row]),
            "picture": thumbnail(validation.images[validation.rows[row]].numpy()),
        }
        for row in order[(predicted != y)[order]][:NUM_MISTAKES].tolist()
    ]


def thumbnail(image: np.ndarray) -> str:
    """Return (S, S, 3) uint8 as the data URL of a small JPEG."""
    small, file = Image.fromarray(image), BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
