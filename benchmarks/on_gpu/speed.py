"""How fast a GPU trains, and how near its limit."""

import math
import multiprocessing
import os
import statistics
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from on_gpu.right import cudnn, few, stepping
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import catdog.train
from catdog.data.dataset import load_data, load_test
from catdog.data.sources import list_images
from catdog.device import peak_memory
from catdog.evaluate import evaluate
from catdog.model import build_model, count_mult_adds
from catdog.train import TrainConfig, train


def peak(bench):
    n = bench.scale.matrix
    a, b = (torch.randn(n, n, device=bench.device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(10):
            c = a @ b
        c[0, 0].item()  # waits for the GPU
        seconds.append((time.perf_counter() - began) / 10)
    yield "bfloat16 matrix product, operations/s", 2 * n**3 / statistics.median(seconds[3:])


def share_of_peak(bench, network, rate):
    best = bench.figures["peak"].get("bfloat16 matrix product, operations/s")
    return rate * count_mult_adds(network) * 2 * 3 / best if best else math.nan


def readme(bench, seed):
    """The baseline on all images."""
    scale, began = bench.scale, time.perf_counter()
    network = scale.network
    data = load_data(bench.source, network.image_size)
    yield f"seed {seed}: seconds to decode, or to map what was decoded", time.perf_counter() - began
    recipe = TrainConfig(epochs=scale.epochs, batch_size=scale.batch_size, seed=seed)
    if bench.device != "cpu":
        torch.cuda.reset_peak_memory_stats(bench.device)
    began, epochs, best = time.perf_counter(), [], {}
    model = build_model(network, seed)
    for epoch in train(model, recipe, data.training, data.validation, device=bench.device):
        if not epochs or epoch.val_accuracy > max(earlier.val_accuracy for earlier in epochs):
            best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        epochs.append(epoch)
    seconds, rate = time.perf_counter() - began, statistics.median(epoch.images_per_second for epoch in epochs)
    yield f"seed {seed}: seconds a run of {scale.epochs} epochs, validation included", seconds
    yield f"seed {seed}: seconds an epoch, validation included", statistics.median(epoch.seconds for epoch in epochs)
    yield f"seed {seed}: training images/s", rate
    yield f"seed {seed}: share of peak (goal 0.5)", share_of_peak(bench, network, rate)
    yield f"seed {seed}: peak memory of tensors, GB", peak_memory(bench.device) / 1e9
    test = load_test(bench.source, network.image_size).subset
    yield f"seed {seed}: last training loss, nats", epochs[-1].train_loss
    yield f"seed {seed}: validation accuracy, best", max(epoch.val_accuracy for epoch in epochs)
    yield f"seed {seed}: test accuracy of the last epoch", evaluate(model, test, device=bench.device).accuracy
    model.load_state_dict(best)
    accuracy = evaluate(model, test, device=bench.device).accuracy
    yield f"seed {seed}: test accuracy of the best epoch by validation", accuracy


def first_seed(bench):
    yield from readme(bench, 0)


def other_seeds(bench):
    for seed in range(1, bench.scale.num_seeds):
        yield from readme(bench, seed)
    rows = bench.figures["first seed"] | bench.figures["other seeds"]
    for which in ("last epoch", "best epoch by validation"):
        found = [value for name, value in rows.items() if name.endswith(f"test accuracy of the {which}")]
        yield f"mean test accuracy of {len(found)} seeds, {which} (goal 0.93)", statistics.mean(found)


class Files(Dataset):
    """The files themselves, opened at each use, as the usual tutorial does."""

    def __init__(self, source, size):
        self.photographs = list_images(Path(source)).training
        self.transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])

    def __len__(self):
        return len(self.photographs)

    def __getitem__(self, index):
        photograph = self.photographs[index]
        return self.transform(Image.open(photograph.path).convert("RGB")), photograph.label


def plain_loop(bench):
    """The tutorial's loop: DataLoader over files, float32 as PyTorch has it (TF32 in convolutions), channels first."""
    scale, seconds = bench.scale, []
    files = Files(bench.source, scale.network.image_size)
    loader = DataLoader(
        files, scale.batch_size, shuffle=True, num_workers=min(16, os.cpu_count()), persistent_workers=True
    )
    model = build_model(scale.network).to(bench.device, memory_format=torch.contiguous_format).train()
    optimizer, loss_of = torch.optim.Adam(model.parameters(), lr=1e-4), nn.CrossEntropyLoss()
    for _ in range(scale.plain_epochs):
        began = time.perf_counter()
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_of(model(x.to(bench.device)), y.to(bench.device))
            loss.backward()
            optimizer.step()
            loss.item()
        seconds.append(time.perf_counter() - began)
    typical = statistics.median(seconds[1:])
    yield "seconds of a typical epoch, no validation", typical
    yield "training images/s", len(files) / typical
    yield f"seconds of {scale.epochs} epochs, extrapolated from {len(seconds)}", typical * scale.epochs
    ours = bench.figures["first seed"].get("seed 0: training images/s", math.nan)
    yield "ours is faster by the factor", ours * typical / len(files)


def running(source, device, network, num_images, batch_size):
    """Train the network without end on the first images."""
    data = load_data(source, network.image_size)
    recipe = TrainConfig(epochs=10**6, batch_size=batch_size)
    sides = few(data.training, num_images), few(data.validation, batch_size)
    return train(build_model(network), recipe, *sides, device=device)


WAYS = {  # name: (how a step runs, whether cuDNN searches its kernels)
    "eager": ("eager", False),
    "cudnn.benchmark": ("eager", True),
    "graph": ("graph", False),
    "graph, cudnn.benchmark": ("graph", True),
    "compile": ("compile", False),
    "compile, graph": ("compile+graph", False),
}


def steps(bench):
    """Images/s of each way to run a step, and what it costs once; those that compile come last."""
    scale, failed = bench.scale, []
    cases = [(size, name) for name in WAYS for size in reversed(scale.sizes)]
    for size, name in sorted(cases, key=lambda case: "compile" in case[1]):
        way, searches = WAYS[name]
        network = replace(scale.network, image_size=size)
        torch.compiler.reset()
        try:
            with cudnn(benchmark=searches), stepping(way):
                epochs = running(bench.source, bench.device, network, scale.num_images, scale.batch_size)
                first, *others = islice(epochs, 6)
        except (RuntimeError, Warning) as error:  # the other ways are wanted all the same
            failed.append(f"{size} px, {name}: {error}")
            continue
        rate = statistics.median(epoch.images_per_second for epoch in others)
        yield f"{size} px, {name}: images/s", rate
        yield f"{size} px, {name}: share of peak", share_of_peak(bench, network, rate)
        yield f"{size} px, {name}: seconds to start", first.seconds - statistics.median(one.seconds for one in others)
        yield f"{size} px, {name}: training loss of the sixth epoch, nats", others[-1].train_loss
    if failed:
        raise RuntimeError("; ".join(failed))


shared = {}  # of a worker's process: the barriers


def start_worker(way, barriers):
    """Begin a process: steps as in its parent, one thread on a CPU."""
    catdog.train.STEP = way
    shared.update(barriers)
    if torch.cuda.device_count() == 0:
        torch.set_num_threads(1)


def work(count, seconds, task):
    """Train for some seconds, beginning together with the other workers; return images/s."""
    epochs, num_images = running(*task), task[3]
    next(epochs)
    shared[count].wait(60)
    began, num_epochs = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(epochs)
        num_epochs += 1
    return num_epochs * num_images / (time.perf_counter() - began)


def workers(bench):
    """Images/s of 1, 2 and 4 processes that train the baseline network on one device at the same time, in sum."""
    scale, context = bench.scale, multiprocessing.get_context("spawn")
    barriers = {count: context.Barrier(count) for count in scale.counts}
    for size in scale.sizes:
        load_data(bench.source, size)  # decoded before the clock runs
    with context.Pool(max(scale.counts), start_worker, (catdog.train.STEP, barriers)) as pool:
        for size in sorted(scale.sizes, key=lambda size: abs(size - scale.sweep_size)):
            network = replace(scale.network, image_size=size)
            task = bench.source, bench.device, network, scale.num_images, scale.batch_size
            for count in scale.counts:
                tasks = [pool.apply_async(work, (count, scale.worker_seconds, task)) for _ in range(count)]
                yield f"{size} px, workers {count}: images/s in sum", sum(task.get(120) for task in tasks)
