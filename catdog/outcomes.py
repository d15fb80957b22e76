"""How a network did on each validation picture -> files in a trial's folder, for comparisons and for people."""

import json
from base64 import b64encode
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from catdog.data.dataset import Data
from catdog.evaluate import confusion, losses
from catdog.files import write_file

__all__ = ["thumbnail", "write_outcomes"]

OUTCOMES = "outcomes.npz"
NUM_MISTAKES, THUMBNAIL = 12, 112  # how many are kept, and of how many pixels


def write_outcomes(folder: Path, data: Data, logits: Tensor) -> None:
    """Write how a network did on the validation pictures, from its (N, classes) logits, into a trial's folder.

    outcomes.npz: loss and correctness of each picture. confusion.json: their counts. mistakes.json: the pictures that
    it is surest and wrong about.
    """
    y, columns = data.validation.y, BytesIO()
    correct = logits.argmax(1) == y
    np.savez(columns, val_loss=losses(logits, y).numpy(), val_accuracy=correct.float().numpy())
    write_file(folder / OUTCOMES, columns.getvalue())
    matrix = {"labels": data.classes, "matrix": confusion(logits, y)}
    write_file(folder / "confusion.json", json.dumps(matrix).encode())
    sure, called = logits.softmax(1).max(1)
    worst = [int(row) for row in sure.argsort(descending=True) if not correct[row]][:NUM_MISTAKES]
    mistakes = [
        {
            "label": data.classes[int(y[row])],
            "predicted": data.classes[int(called[row])],
            "probability": float(sure[row]),
            "picture": thumbnail(data.validation.images[data.validation.rows[row]].numpy()),
        }
        for row in worst
    ]
    write_file(folder / "mistakes.json", json.dumps(mistakes).encode())


def thumbnail(image: np.ndarray) -> str:
    """Return (S, S, 3) bytes as a data address of a small JPEG."""
    picture, file = Image.fromarray(image), BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
