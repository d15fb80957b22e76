"""Classifier: pictures in, probabilities out. `python -m catdog.predict PICTURE...` asks best_model/."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from catdog.data.dataset import preprocessing
from catdog.explain import OODDetector, look, margin_of
from catdog.model import load_model
from catdog.serving.uploads import decode

__all__ = ["CHAMPION", "Answer", "Classifier"]

CHAMPION = Path("best_model/model.safetensors")


@dataclass(frozen=True)
class Answer:
    """What a network says of one picture."""

    label: str  # the likeliest class
    probabilities: dict[str, float]  # of each class; they sum to 1
    familiar: bool  # False: the picture is so unusual that it is probably none of the classes
    distance: float  # how unusual it is; those trained on are at about 1; 0 where the model cannot tell
    margin: float  # log odds of the likeliest class
    heat: np.ndarray  # (h, w) float32, 0 to 1: what spoke for that class; empty where nobody asked


class Classifier:
    """A saved network, ready to be asked. Raises ValueError, one sentence, for a file that is not whole and true."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.device = torch.device(device)
        model, self.header = load_model(path)
        self.model = model.to(self.device).requires_grad_(requires_grad=False)
        self.version: str = self.header["sha256"][:12]
        self.classes: tuple[str, ...] = tuple(self.header["classes"])
        self.image_size = model.config.image_size
        if self.header["preprocessing"] != preprocessing(self.image_size):
            raise ValueError(f"{path} wants pictures prepared in a way that this version does not know; train it again")
        reference = self.header.get("reference")  # a model that was never promoted has none, and never abstains
        self.norm = OODDetector.from_header(reference["norm"], model.config) if reference else None

    def __call__(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Return the probability of each class, (len(pictures), len(classes)) float32; each row sums to 1.

        A picture is the content of an image file of any format. Raises ValueError for one that cannot be read.
        """
        answers = self.answer(np.stack([self.decode(picture) for picture in pictures]))
        return np.array([[*answer.probabilities.values()] for answer in answers], dtype=np.float32)

    def answer(self, images: np.ndarray, *, heat: bool = False) -> list[Answer]:
        """Say what decoded pictures, (B, image_size, image_size, 3) bytes, show; and, with `heat`, where."""
        seen = look(self.model, torch.from_numpy(images), self.device, heat=heat)
        probabilities, called = seen.logits.softmax(1), seen.logits.argmax(1)
        distance = self.norm.distance(seen.traits) if self.norm else torch.zeros(len(images))
        limit = self.norm.limit if self.norm else 0.0
        margins = margin_of(seen.logits)
        return [
            Answer(
                label=self.classes[int(called[row])],
                probabilities=dict(zip(self.classes, probabilities[row].tolist(), strict=True)),
                familiar=bool(distance[row] <= limit),
                distance=float(distance[row]),
                margin=float(margins[row]),
                heat=seen.heat[row].numpy(),
            )
            for row in range(len(images))
        ]

    def decode(self, picture: bytes) -> np.ndarray:
        """Turn the content of an image file into (image_size, image_size, 3) bytes. Raises ValueError, one sentence."""
        return decode(picture, self.image_size)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m catdog.predict", description="Tell cats from dogs.")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    parser.add_argument("--model", type=Path, default=CHAMPION, help=f"default {CHAMPION}")
    options = parser.parse_args()
    try:
        classify = Classifier(options.model)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    status = 0
    for path in options.pictures:
        try:
            (answer,) = classify.answer(classify.decode(path.read_bytes())[None])
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"{path}: {reason}; it is left out", file=sys.stderr)
            status = 2
            continue
        shown = "  ".join(f"{name} {p:.1%}" for name, p in answer.probabilities.items())
        print(f"{path}: {answer.label if answer.familiar else 'probably neither'}  ({shown})")
    sys.exit(status)


if __name__ == "__main__":
    main()
