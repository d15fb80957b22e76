"""Pictures per second of training: ours beside the loop of the usual tutorial, in turn, in one run.

    python benchmarks/training.py

Both train the same network on the same drawn pictures with Adam on every core. The tutorial reads JPEG files with
ImageFolder and a DataLoader of two processes, in float32, channels first. The median over rounds is printed.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).parents[1]))

from catdog.data import Pictures
from catdog.device import has_bfloat16
from catdog.model import CNN, ModelConfig, build_model
from catdog.synthetic import synthetic
from catdog.train import TrainConfig, train

SIZE, BATCH, NUM_LOADERS, SKIPPED = 64, 32, 2, 2
JPEG_SIZE = 384  # pixels of the files of the tutorial; those of the Kaggle set have 383 by geometric mean
NETWORKS = {  # name: (configuration, batches a round)
    "README 64/512": (ModelConfig(image_size=SIZE), 8),
    "32/128": (ModelConfig(stem_width=32, body_width=128, image_size=SIZE), 24),
}


state: dict[str, Iterator[float]] = {}  # of the process that runs ours


def main() -> None:
    parser = argparse.ArgumentParser(description="Ours beside the tutorial's training loop.")
    parser.add_argument("--rounds", type=int, default=5)
    num_rounds = parser.parse_args().rounds
    print(describe_machine())
    print(f"{'network':15} {'tutorial':>10} {'ours':>10} {'ratio':>7}   pictures/s, median of {num_rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        pictures = prepare(Path(folder), BATCH * (SKIPPED + max(batches for _, batches in NETWORKS.values())))
        for name, (config, num_batches) in NETWORKS.items():
            tutorial = tutorial_rates(build_model(config), Path(folder), num_batches)
            with ProcessPoolExecutor(1, get_context("spawn")) as ours:  # of its own: train() tunes its process
                ours.submit(prepare_ours, config, pictures, num_batches).result()
                pairs = [(next(tutorial), ours.submit(next_of_ours).result()) for _ in range(num_rounds)]
            slow, fast = (statistics.median(rates) for rates in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            print(f"{name:15} {slow:10.1f} {fast:10.1f} {ratio:6.2f}x", flush=True)


def describe_machine() -> str:
    precision = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, python {platform.python_version()}, "
        f"{SIZE} px, batch {BATCH}, ours in {precision}"
    )


def prepare(folder: Path, count: int) -> Pictures:
    """Draw `count` pictures, write them as the tutorial's JPEG files, and return them as ours."""
    images, labels = synthetic(count, JPEG_SIZE, seed=0)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / ("cat", "dog")[label] / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path, quality=90)
    small = torch.stack([torch.from_numpy(image[:: JPEG_SIZE // SIZE, :: JPEG_SIZE // SIZE]) for image in images])
    return Pictures(small, torch.from_numpy(labels).long(), torch.arange(count))


def tutorial_rates(model: CNN, folder: Path, num_batches: int) -> Iterator[float]:
    """Yield one rate a round; the first batches, while the loader's processes start, are not counted."""
    model = model.to(memory_format=torch.contiguous_format)
    transform = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.ToTensor()])
    data = ImageFolder(str(folder), transform)
    optimizer, loss_of = torch.optim.Adam(model.parameters(), lr=1e-4), nn.CrossEntropyLoss()
    model.train()
    while True:
        loader = DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=NUM_LOADERS)
        for number, (x, y) in enumerate(loader):
            if number == SKIPPED:
                began = time.perf_counter()
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            loss.item()
            if number == SKIPPED + num_batches - 1:
                yield num_batches * BATCH / (time.perf_counter() - began)
                break


def prepare_ours(config: ModelConfig, pictures: Pictures, num_batches: int) -> None:
    state["rates"] = our_rates(build_model(config), pictures, num_batches)


def next_of_ours() -> float:
    return next(state["rates"])


def our_rates(model: CNN, pictures: Pictures, num_batches: int) -> Iterator[float]:
    """Yield one rate a round; the first, in which oneDNN prepares its kernels, is not counted."""
    training = Pictures(pictures.images, pictures.labels, pictures.rows[: num_batches * BATCH])
    validation = Pictures(pictures.images, pictures.labels, pictures.rows[:BATCH])
    epochs = train(model, TrainConfig(epochs=1000, batch_size=BATCH), training, validation)
    next(epochs)
    for epoch in epochs:
        yield epoch.images_per_second


if __name__ == "__main__":
    main()
