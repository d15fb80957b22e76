"""Classifier: pictures in, probabilities out. `python -m catdog.predict PICTURE...` asks best_model/."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from catdog.data import preprocessing
from catdog.device import autocast
from catdog.evaluate import normalise
from catdog.folder import read_picture
from catdog.model import load_model

__all__ = ["Classifier"]

CHAMPION = Path("best_model/model.safetensors")


class Classifier:
    """A saved network, ready to be asked. Raises ValueError, one sentence, for a file that is not whole and true."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.device = torch.device(device)
        model, self.header = load_model(path)
        self.model = model.to(self.device)
        self.classes: tuple[str, ...] = tuple(self.header["classes"])
        self.image_size = model.config.image_size
        if self.header["preprocessing"] != preprocessing(self.image_size):
            raise ValueError(f"{path} wants pictures prepared in a way that this version does not know; train it again")

    def __call__(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Return the probability of each class, (len(pictures), len(classes)) float32; each row sums to 1.

        A picture is the content of an image file of any format. Raises ValueError for one that cannot be read.
        """
        images = np.stack([self._decode(picture) for picture in pictures])
        with torch.inference_mode(), autocast(self.device, "auto"):
            logits = self.model(normalise(torch.from_numpy(images).to(self.device)))
        probabilities: np.ndarray = logits.float().softmax(1).cpu().numpy()
        return probabilities

    def _decode(self, picture: bytes) -> np.ndarray:
        try:
            return np.array(read_picture(picture, self.image_size))
        except Exception as error:
            raise ValueError("cannot be read as a picture") from error


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
            probabilities = classify([path.read_bytes()])[0]
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"{path}: {reason}; it is left out", file=sys.stderr)
            status = 2
            continue
        shown = "  ".join(f"{name} {p:.1%}" for name, p in zip(classify.classes, probabilities, strict=True))
        print(f"{path}: {classify.classes[probabilities.argmax()]}  ({shown})")
    sys.exit(status)


if __name__ == "__main__":
    main()
