"""Images per second of training: ours beside the usual tutorial's loop and beside the limit, in turn, in one run.

    python benchmarks/training.py [--rounds N] [--networks "baseline 64 px" ...]

Both train the same network on the same drawn images with Adam on every core. The tutorial reads JPEG files with
ImageFolder and a DataLoader of two processes, in float32, channels first. The limit is the network's convolutions and
nothing else: forward and backward, to weights and, but for the first, to data, in the precision of ours. For each layer
and direction it takes the fastest way: channels first, channels last, with prepacked weights (forward alone), which are
oneDNN's, and in float32 Winograd's (catdog/kernels/winograd.py), which transforms the weight of each layer by itself,
though ours transforms one that layers share once. Printed are medians over rounds, for oneDNN's ways alone too.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers.tutorial import plain_network
from catdog.data.dataset import ImageSubset
from catdog.data.synthetic import synthetic
from catdog.kernels.precision import bfloat16_fault, uses_bfloat16
from catdog.kernels.winograd import convolve
from catdog.model import CNN, ModelConfig, build_model
from catdog.train import TrainConfig, train

BATCH, NUM_LOADERS, SKIPPED = 32, 2, 2
JPEG_SIZE = 384  # pixels of the files of the tutorial; those of the Kaggle set have 383 by geometric mean
NETWORKS = {  # name: (configuration, batches a round)
    "baseline 64 px": (ModelConfig(image_size=64), 8),
    "baseline 224 px": (ModelConfig(), 2),
    "32/128 64 px": (ModelConfig(stem_width=32, body_width=128, image_size=64), 24),
}

state: dict[str, Iterator[float]] = {}  # of the process that runs ours and the limit


def main() -> None:
    parser = argparse.ArgumentParser(description="Ours beside the tutorial's training loop and the limit.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    print(describe_machine())
    print(f"{'':15} {'tutorial':>9} {'ours':>9} {'ratio':>7} {'oneDNN':>9} {'share':>7} {'limit':>9} {'share':>7}")
    with tempfile.TemporaryDirectory() as folder:
        images, labels = prepare(Path(folder), BATCH * (SKIPPED + max(batches for _, batches in NETWORKS.values())))
        for name in options.networks:
            config, num_batches = NETWORKS[name]
            tutorial = tutorial_rates(plain_network(config), Path(folder), num_batches)
            with ProcessPoolExecutor(1, get_context("spawn")) as ours:  # of its own: train() tunes its process
                ours.submit(prepare_ours, config, resized(images, config.image_size), labels, num_batches).result()
                rounds = [
                    (next(tutorial), *(ours.submit(next_of, which).result() for which in ("ours", "oneDNN", "limit")))
                    for _ in range(options.rounds)
                ]
            slow, fast, onednn, limit = (statistics.median(rates) for rates in zip(*rounds, strict=True))
            ratio, first, second = (statistics.median(r[1] / r[other] for r in rounds) for other in (0, 2, 3))
            shares = f"{onednn:9.1f} {first:7.1%} {limit:9.1f} {second:7.1%}"
            print(f"{name:15} {slow:9.1f} {fast:9.1f} {ratio:6.2f}x {shares}", flush=True)
    print(f"images/s, median of {options.rounds} rounds; ratio and shares are medians of each round's")


def describe_machine() -> str:
    precision = "bfloat16" if uses_bfloat16(torch.device("cpu")) else "float32"
    if fault := bfloat16_fault():
        print(fault)
    return (
        f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, "
        f"python {platform.python_version()}, batch {BATCH}, ours in {precision}"
    )


def prepare(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Draw `count` images, write them as the tutorial's JPEG files, and return them with their labels."""
    images, labels = synthetic(count, JPEG_SIZE, seed=0)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / ("cat", "dog")[label] / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path, quality=90)
    return torch.from_numpy(images), torch.from_numpy(labels).long()


def resized(images: Tensor, size: int) -> Tensor:
    """Take (B, 384, 384, 3) to (B, size, size, 3)."""
    pixels = torch.arange(size) * JPEG_SIZE // size
    return images[:, pixels][:, :, pixels]


def tutorial_rates(model: CNN, folder: Path, num_batches: int) -> Iterator[float]:
    """Yield one rate a round; the first batches, while the loader's processes start, are not counted."""
    size = model.config.image_size
    transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])
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


def prepare_ours(config: ModelConfig, images: Tensor, labels: Tensor, num_batches: int) -> None:
    subset = ImageSubset(images, labels, torch.arange(len(images)))
    state["ours"] = our_rates(build_model(config), subset, num_batches)
    state["oneDNN"] = limit_rates(config, num_batches, winograd=False)
    state["limit"] = limit_rates(config, num_batches, winograd=not uses_bfloat16(torch.device("cpu")))


def next_of(which: str) -> float:
    return next(state[which])


def our_rates(model: CNN, subset: ImageSubset, num_batches: int) -> Iterator[float]:
    """Yield one rate a round; the first, in which oneDNN prepares its kernels, is not counted."""
    training = ImageSubset(subset.images, subset.labels, subset.rows[: num_batches * BATCH])
    validation = ImageSubset(subset.images, subset.labels, subset.rows[:BATCH])
    epochs = train(model, TrainConfig(epochs=1000, batch_size=BATCH), training, validation)
    next(epochs)
    for epoch in epochs:
        yield epoch.images_per_second


def limit_rates(config: ModelConfig, num_batches: int, *, winograd: bool) -> Iterator[float]:
    """Yield one rate a round of the network's convolutions alone, a layer after the other."""
    size, width = config.image_size, config.body_width
    widths = [(3, config.stem_width), (config.stem_width, width), *[(width, width)] * config.body_repeats]
    ways = [way for depth, pair in enumerate(widths) for way in convolution(*pair, size >> depth, winograd=winograd)]
    while True:
        began = time.perf_counter()
        for _ in range(num_batches):
            for way in ways:
                way()
        yield num_batches * BATCH / (time.perf_counter() - began)


def convolution(num_in: int, num_out: int, size: int, *, winograd: bool) -> list[Callable[[], object]]:
    """Return the fastest forward pass of a layer's convolution, and the fastest backward pass."""
    dtype = torch.bfloat16 if uses_bfloat16(torch.device("cpu")) else torch.float32
    shapes = [(BATCH, num_in, size, size), (BATCH, num_out, size, size), (num_out, num_in, 3, 3)]
    first = [torch.randn(shape).to(dtype) for shape in shapes]
    last = [tensor.contiguous(memory_format=torch.channels_last) for tensor in first]
    ones, wanted = (1, 1), [num_in != 3, True, False]  # gradients: to data, weights, bias
    x, y, weight = last
    onednn = torch.ops.mkldnn
    packed = onednn._reorder_convolution_weight(weight, ones, ones, ones, 1, x.shape)  # noqa: SLF001 - as inductor does
    pointwise = onednn._convolution_pointwise  # noqa: SLF001 - likewise
    forward = [
        lambda: F.conv2d(first[0], first[2], padding=1),
        lambda: F.conv2d(x, weight, padding=1),
        lambda: pointwise(x, packed, None, ones, ones, ones, 1, "none", [], ""),
    ]

    def direct(x: Tensor, y: Tensor, weight: Tensor) -> Callable[[], object]:
        return lambda: torch.ops.aten.convolution_backward(
            y, x, weight, None, ones, ones, ones, False, (0, 0), 1, wanted
        )

    backward = [direct(*first), direct(*last)]
    if winograd:
        bias, leaves = torch.zeros(num_out), [x.clone().requires_grad_(num_in != 3), weight.clone().requires_grad_()]
        outcome, moved = convolve(*leaves, bias), [leaf for leaf in leaves if leaf.requires_grad]
        forward.append(lambda: convolve(x, weight, bias))
        backward.append(lambda: torch.autograd.grad(outcome, moved, y, retain_graph=True))
    return [fastest(*forward), fastest(*backward)]


def fastest(*ways: Callable[[], object]) -> Callable[[], object]:
    """Return the way whose best call of three is the shortest; the first call of each prepares it."""

    def seconds(way: Callable[[], object]) -> float:
        began = time.perf_counter()
        way()
        return time.perf_counter() - began

    for way in ways:
        way()
    return min(ways, key=lambda way: min(seconds(way) for _ in range(3)))


if __name__ == "__main__":
    main()
