"""How often a promoted model calls what is no animal "probably neither", and how often its own test images.

    python benchmarks/strange.py [--model best_model/model.safetensors] [--data synthetic]

300 images of each strange kind are made here; `--data` is what the model was trained on. Beside the share that is
called neither stands the share of which the network is at least 90 % sure: what a threshold on the probability would
let pass.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from catdog.checkpoint import CHAMPION
from catdog.data.dataset import load_test
from catdog.data.synthetic import draw
from catdog.predict import Classifier

NUM, BATCH, SURE = 300, 32, 0.9


def strange(size, rng):
    def blurred(cells):
        pixels = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))

    def text():
        page = Image.new("RGB", (256, 256), "white")
        pen = ImageDraw.Draw(page)
        for y in range(4, 250, 14):
            words = "".join(chr(rng.integers(97, 123)) if rng.random() > 0.15 else " " for _ in range(40))
            pen.text((4, y), words, fill="black")
        return np.asarray(page.resize((size, size), Image.Resampling.BILINEAR))

    return {
        "noise": lambda _: rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "a plain colour": lambda _: np.full((size, size, 3), rng.integers(0, 256, 3), dtype=np.uint8),
        "a gradient": lambda _: blurred(2),
        "blotches": lambda _: blurred(8),
        "a page of text": lambda _: text(),
        "drawn animals": lambda index: np.asarray(draw(index % 2, max(32, size), 5000 + index).resize((size, size))),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=CHAMPION)
    parser.add_argument("--data", default="synthetic")
    options = parser.parse_args()
    classify, rng = Classifier(options.model), np.random.default_rng(0)
    test = load_test(options.data, classify.image_size).subset
    sets = {"its test images": test.images[test.rows].numpy()}
    for kind, make in strange(classify.image_size, rng).items():
        sets[kind] = np.stack([make(index) for index in range(NUM)])
    print(f"model {classify.version}, {classify.image_size} px, trained on {options.data}")
    print(f"{'images':20}{'number':>8}{'called neither':>16}{'90 % sure':>11}")
    for kind, images in sets.items():
        answers = [one for batch in np.array_split(images, -(-len(images) // BATCH)) for one in classify.answer(batch)]
        neither = np.mean([not one.familiar for one in answers])
        sure = np.mean([max(one.probabilities.values()) > SURE for one in answers])
        print(f"{kind:20}{len(images):8}{neither:16.1%}{sure:11.1%}")


if __name__ == "__main__":
    main()
