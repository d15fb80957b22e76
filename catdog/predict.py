"""Classify images with a saved network. `python -m catdog.predict IMAGE...` uses best_model/."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from catdog.checkpoint import CHAMPION, load_model
from catdog.data.decode import decode_image
from catdog.data.preprocess import preprocessing
from catdog.explain import OODDetector, extract_features, margin_of
from shell.command_line import CommandLine, file_path, printable


@dataclass(frozen=True)
class Answer:
    """The classification of one image."""

    label: str  # the likeliest class
    probabilities: dict[str, float]  # of each class; they sum to 1
    familiar: bool  # False: the image is so unusual that it is probably none of the classes
    distance: float  # from the training images, which are at about 1; 0 for a model without a detector
    margin: float  # log odds of the likeliest class
    saliency: np.ndarray  # (h, w) float32, 0 to 1: evidence for that class; empty unless asked for


class Classifier:
    """A saved network, ready to classify. Raises ValueError for a file that fails verification."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.device = torch.device(device)
        model, self.header = load_model(path)
        self.model = model.to(self.device).requires_grad_(requires_grad=False)
        self.version: str = self.header["sha256"][:12]
        self.classes: tuple[str, ...] = tuple(self.header["classes"])
        self.image_size = model.config.image_size
        if self.header["preprocessing"] != preprocessing(self.image_size):
            raise ValueError(f"{path} needs a preprocessing that this version does not have; train it again")
        reference = self.header.get("reference")  # only promoted models have one; others never abstain
        self.detector = OODDetector.from_header(reference["norm"], model.config) if reference else None

    def __call__(self, files: Sequence[bytes]) -> np.ndarray:
        """Return the probability of each class, (len(files), len(classes)) float32; each row sums to 1.

        `files` are the contents of image files of any format. Raises ValueError for one that cannot be read.
        """
        answers = self.answer(np.stack([self.decode(content) for content in files]))
        return np.array([[*answer.probabilities.values()] for answer in answers], dtype=np.float32)

    def answer(self, images: np.ndarray, *, saliency: bool = False) -> list[Answer]:
        """Classify decoded images, (B, image_size, image_size, 3) uint8."""
        features = extract_features(self.model, torch.from_numpy(images), self.device, saliency=saliency)
        probabilities, predicted = features.logits.softmax(1), features.logits.argmax(1)
        distance = self.detector.distance(features.statistics) if self.detector else torch.zeros(len(images))
        limit = self.detector.limit if self.detector else 0.0
        margins = margin_of(features.logits)
        return [
            Answer(
                label=self.classes[int(predicted[row])],
                probabilities=dict(zip(self.classes, probabilities[row].tolist(), strict=True)),
                familiar=bool(distance[row] <= limit),
                distance=float(distance[row]),
                margin=float(margins[row]),
                saliency=features.saliency[row].numpy(),
            )
            for row in range(len(images))
        ]

    def decode(self, content: bytes) -> np.ndarray:
        """Decode an image file to (image_size, image_size, 3) uint8. Raises ValueError if it cannot be read."""
        return decode_image(content, self.image_size)


def main() -> None:
    parser = CommandLine("python -m catdog.predict", "Tell cats from dogs.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--model", type=file_path, default=CHAMPION, help=f"default {CHAMPION}")
    options = parser.parse()
    try:
        classify = Classifier(options.model)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    status = 0
    for path in options.images:
        try:
            (answer,) = classify.answer(classify.decode(path.read_bytes())[None])
        except (ValueError, OSError) as error:
            print(printable(f"{path}: {_problem(path, error)}"), file=sys.stderr)
            status = 2
            continue
        shown = "  ".join(f"{name} {p:.1%}" for name, p in answer.probabilities.items())
        print(printable(f"{path}: {answer.label if answer.familiar else 'probably neither'}  ({shown})"))
    sys.exit(status)


def _problem(path: Path, error: Exception) -> str:
    """Say why there is no answer to a path, and what to give instead."""
    if path.is_dir():
        return f"this is a folder; give the images in it, {path}/*"
    if re.match(r"\w+:/", str(path)):
        return "this is an address; download the image, and give its file"
    if isinstance(error, FileNotFoundError):
        return "there is no such file; correct the path"
    problem = str(error.strerror if isinstance(error, OSError) else error)
    return problem if ";" in problem else f"{problem}; give another image"


if __name__ == "__main__":
    main()
