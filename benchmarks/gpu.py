"""What training does on a GPU: whether it is right, how fast, how near the limit, how good on photographs.

    python benchmarks/gpu.py --data FOLDER|TAR [--output gpu.json] [--seconds 520] [--only peak,"first seed"]

Needs torch, torchvision, numpy, Pillow, safetensors and filelock alone. Sections run in the order of their importance,
each within a limit of its own and all within `--seconds`; one that fails says so and the next begins. The JSON file is
written after each. `--small` is the same on tiny networks, for any machine.

Share of peak: pictures/s x multiply-adds of a picture (catdog.model.count_mult_adds) x 2 operations x 3 (forward, and
twice as much backward), over the operations/s of a square bfloat16 matrix product measured in the same run.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tarfile
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[1]))

from catdog.data import load_data, load_test, preprocessing
from catdog.device import describe_device, find_devices, peak_memory
from catdog.evaluate import evaluate
from catdog.folder import list_photographs
from catdog.insight import look
from catdog.model import ModelConfig, build_model, count_mult_adds, load_model, save_model
from catdog.train import TrainConfig, train

TOLERANCE = 0.02  # nats between the losses of two ways to do the same in float32, in each of three epochs
TOLERANCE_BFLOAT16 = 0.1
TINY = ModelConfig(stem_width=8, body_width=16, body_repeats=2, image_size=64)
TINY_RECIPE = TrainConfig(learning_rate=1e-3, epochs=3, precision="float32", seed=3)


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    network: ModelConfig = ModelConfig()  # noqa: RUF009 - frozen
    epochs: int = 20
    batch_size: int = 32
    num_seeds: int = 3
    matrix: int = 8192  # rows and columns
    plain_epochs: int = 2  # the first is not timed
    sizes: tuple[int, ...] = (64, 128, 224)  # pixels, for workers and steps
    counts: tuple[int, ...] = (1, 2, 4)  # workers on one GPU
    num_pictures: int = 1024  # of an epoch of workers and steps
    worker_seconds: float = 4.0
    sweep_size: int = 128
    stems: tuple[int, ...] = (32, 64)
    bodies: tuple[int, ...] = (256, 384, 512)
    repeats: tuple[int, ...] = (4, 5)
    rungs: tuple[int, ...] = (8, 24)  # epochs
    most_epochs: int = 150  # of the last rung
    most_trials: int = 64  # of the first


SMALL = Scale(
    network=ModelConfig(stem_width=4, body_width=8, body_repeats=2, image_size=64),
    epochs=2, batch_size=8, num_seeds=2, matrix=128, sizes=(64,), counts=(1, 2), num_pictures=16, worker_seconds=0.2,
    sweep_size=64, stems=(4,), bodies=(8,), repeats=(2, 3), rungs=(1, 2), most_epochs=3, most_trials=4,
)  # fmt: skip


@dataclass
class Bench:
    scale: Scale
    source: str
    device: str
    output: Path
    ends: float  # of time.monotonic()
    figures: dict  # section: {figure: value}
    about: dict
    errors: dict  # section: what went wrong

    def run(self, name, section, limit):
        """Print and keep what a section yields, (figure, value), until it is done, fails or has no time left."""
        print(name, flush=True)
        rows, began = self.figures.setdefault(name, {}), time.monotonic()
        try:
            with at_most(min(limit, self.ends - began)):
                for figure, value in section(self):
                    rows[figure] = value
                    print(f"  {figure:64}{value:14,.4g}", flush=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, the sections after it are wanted
            self.errors[name] = f"{type(error).__name__}: {error}"
            print(f"  FAILED: {self.errors[name]}", flush=True)
            traceback.print_exc()
        rows["seconds of this section"] = time.monotonic() - began
        if self.device != "cpu":
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
        result = {"about": self.about, "sections": self.figures, "errors": self.errors}
        self.output.write_text(json.dumps(result, indent=1))


@contextmanager
def at_most(seconds):
    """Raise TimeoutError in what runs for longer."""

    def stop(_number, _frame):
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    if seconds <= 1:
        raise TimeoutError("no time was left")
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def cudnn(**settings):
    """Set flags of torch.backends.cudnn for a while."""
    before = {name: getattr(torch.backends.cudnn, name) for name in settings}
    for name, value in settings.items():
        setattr(torch.backends.cudnn, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


def few(pictures, number):
    """Every k-th picture, so that both classes are there."""
    step = max(1, len(pictures) // number)
    return replace(pictures, rows=pictures.rows[::step][:number])


def tiny_sides(bench):
    data = load_data(bench.source, TINY.image_size)
    return few(data.training, 600), few(data.validation, 200)


def losses_of(sides, device, recipe=TINY_RECIPE):
    epochs = train(build_model(TINY, recipe.seed), recipe, *sides, device=device)
    return [loss for epoch in epochs for loss in (epoch.train_loss, epoch.val_loss)]


def same_training(bench):
    """One training on the CPU, on the GPU, in bfloat16, and by each way to run a step."""
    sides = tiny_sides(bench)
    with cudnn(allow_tf32=False):
        for optimizer in ("adam", "sgd"):
            recipe = replace(TINY_RECIPE, optimizer=optimizer)
            expected = losses_of(sides, "cpu", recipe)
            yield f"{optimizer}: last training loss on the CPU, nats", expected[-2]
            yield from compare(f"{optimizer}: CPU and GPU", expected, losses_of(sides, bench.device, recipe), TOLERANCE)
    bfloat16 = losses_of(sides, bench.device, replace(recipe, precision="bfloat16"))
    yield from compare("sgd: float32 and bfloat16", expected, bfloat16, TOLERANCE_BFLOAT16)


def compare(what, expected, found, tolerance):
    apart = max(abs(one - other) for one, other in zip(expected, found, strict=True))
    yield f"{what}: losses apart at most, nats (limit {tolerance})", apart
    if not apart <= tolerance:
        raise AssertionError(f"{what} disagree by {apart:.4g} nats")


def resume(bench):
    """Go on from a checkpoint; the weights should end bit-identical where cuDNN is told to be deterministic."""
    sides = tiny_sides(bench)
    recipe = replace(TINY_RECIPE, augmentation="color", schedule="one_cycle", precision="auto")
    models = [build_model(replace(TINY, dropout=0.2), recipe.seed) for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder, cudnn(deterministic=True):
        options = {"device": bench.device, "checkpoint": Path(folder) / "checkpoint.pt"}
        list(train(models[0], recipe, *sides, device=bench.device))
        list(islice(train(models[1], recipe, *sides, **options), 1))
        list(train(models[2], recipe, *sides, **options))
    pairs = zip(models[0].state_dict().values(), models[2].state_dict().values(), strict=True)
    apart = max((one.double() - other.double()).abs().max().item() for one, other in pairs)
    yield "weights of a resumed and a whole run: apart at most", apart
    if apart:
        raise AssertionError("a resumed run does not end with the same bits")


def insight(bench):
    """One look with heat map at pictures on both devices."""
    images = tiny_sides(bench)[1].images[:32]
    model = build_model(TINY).eval()
    one = look(model, images, torch.device("cpu"), heat=True)
    other = look(model.to(bench.device), images, torch.device(bench.device), heat=True)
    for name in ("logits", "traits", "heat"):
        apart = (getattr(one, name) - getattr(other, name)).abs()
        yield f"{name} on CPU and GPU: apart on average", apart.mean().item()
        assert apart.mean() < 0.05, f"{name} disagree"


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
    """The README network and recipe on all pictures."""
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
    yield f"seed {seed}: training pictures/s", rate
    yield f"seed {seed}: share of peak (goal 0.5)", share_of_peak(bench, network, rate)
    yield f"seed {seed}: peak memory of tensors, GB", peak_memory(bench.device) / 1e9
    test = load_test(bench.source, network.image_size).pictures
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
        self.photographs = list_photographs(Path(source)).training
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
    yield "training pictures/s", len(files) / typical
    yield f"seconds of {scale.epochs} epochs, extrapolated from {len(seconds)}", typical * scale.epochs
    ours = bench.figures["first seed"].get("seed 0: training pictures/s", math.nan)
    yield "ours is faster by the factor", ours * typical / len(files)


def running(source, device, network, num_pictures, batch_size):
    """Train the network without end on the first pictures."""
    data = load_data(source, network.image_size)
    recipe = TrainConfig(epochs=10**6, batch_size=batch_size)
    sides = few(data.training, num_pictures), few(data.validation, batch_size)
    return train(build_model(network), recipe, *sides, device=device)


def steps(bench):
    """Pictures/s of each way to run a step, and what it costs once."""
    scale = bench.scale
    for size in reversed(scale.sizes):
        network = replace(scale.network, image_size=size)
        for searched in (False, True):
            with cudnn(benchmark=searched):
                epochs = running(bench.source, bench.device, network, scale.num_pictures, scale.batch_size)
                first, *others = islice(epochs, 6)
            rate = statistics.median(epoch.images_per_second for epoch in others)
            what = f"{size} px, eager{', cudnn.benchmark' if searched else ''}"
            yield f"{what}: pictures/s", rate
            yield f"{what}: share of peak", share_of_peak(bench, network, rate)
            yield f"{what}: seconds to start", first.seconds - statistics.median(epoch.seconds for epoch in others)


shared = {}  # of a worker's process: the barriers


def start_worker(barriers):
    shared.update(barriers)
    if torch.cuda.device_count() == 0:
        torch.set_num_threads(1)


def work(count, seconds, task):
    """Train for some seconds, beginning together with the other workers; return pictures/s."""
    epochs, num_pictures = running(*task), task[3]
    next(epochs)
    shared[count].wait(60)
    began, num_epochs = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(epochs)
        num_epochs += 1
    return num_epochs * num_pictures / (time.perf_counter() - began)


def workers(bench):
    """Pictures/s of 1, 2 and 4 processes that train the README network on one device at the same time, in sum."""
    scale, context = bench.scale, multiprocessing.get_context("spawn")
    barriers = {count: context.Barrier(count) for count in scale.counts}
    for size in scale.sizes:
        load_data(bench.source, size)  # decoded before the clock runs
    with context.Pool(max(scale.counts), start_worker, (barriers,)) as pool:
        for size in sorted(scale.sizes, key=lambda size: abs(size - scale.sweep_size)):
            network = replace(scale.network, image_size=size)
            task = bench.source, bench.device, network, scale.num_pictures, scale.batch_size
            for count in scale.counts:
                tasks = [pool.apply_async(work, (count, scale.worker_seconds, task)) for _ in range(count)]
                yield f"{size} px, workers {count}: pictures/s in sum", sum(task.get(120) for task in tasks)


def candidate(scale, rng):
    """Draw a network and a recipe."""
    pick = lambda values: values[rng.integers(len(values))]  # noqa: E731 - a name for two words
    network = ModelConfig(
        stem_width=pick(scale.stems),
        body_width=pick(scale.bodies),
        body_repeats=pick(scale.repeats),
        share_body=False,
        dropout=float(rng.uniform(0, 0.4)),
        image_size=scale.sweep_size,
    )
    recipe = TrainConfig(
        learning_rate=float(10 ** rng.uniform(-3, -2.3)),
        batch_size=pick((scale.batch_size, 2 * scale.batch_size, 4 * scale.batch_size)),
        optimizer="adamw",
        weight_decay=float(10 ** rng.uniform(-2.5, -0.7)),
        schedule="one_cycle",
        augmentation=pick(("crop", "color", "color")),
        label_smoothing=float(rng.uniform(0, 0.15)),
    )
    return network, recipe


class Search:
    """Random search; the best go on to the next rung and are trained anew for more epochs, until time is up."""

    def __init__(self, scale, source, device, seed, seconds, output):
        self.scale, self.device, self.output = scale, device, output
        self.rng, self.seed = np.random.default_rng(seed), seed
        self.began, self.seconds = time.monotonic(), seconds
        self.data = load_data(source, scale.sweep_size)
        self.best, self.num_trials = 0.0, 0

    def left(self, share):
        """Seconds until `share` of all is used."""
        return self.began + share * self.seconds - time.monotonic()

    def run(self):
        """Return the best validation accuracy and the number of trials; the best weights are in the file."""
        tried = [self.trial(*candidate(self.scale, self.rng), self.scale.rungs[0])]
        while self.left(0.3) > tried[-1][1] and len(tried) < self.scale.most_trials:
            tried.append(self.trial(*candidate(self.scale, self.rng), self.scale.rungs[0]))
        short, long = self.scale.rungs
        again = []
        for _, seconds, network, recipe in sorted(tried, key=lambda one: -one[0])[: max(2, len(tried) // 4)]:
            if not again or self.left(0.6) > seconds * long / short:
                again.append(self.trial(network, recipe, long))
        _, seconds, network, recipe = max(again, key=lambda one: one[0])
        most = min(self.scale.most_epochs, int(0.9 * self.left(1) / (seconds / long)))
        if most > long:
            self.trial(network, recipe, most)
        return self.best, self.num_trials

    def trial(self, network, recipe, num_epochs):
        """Train from scratch; return the best validation accuracy, the seconds, and what was trained."""
        self.num_trials += 1
        recipe = replace(recipe, epochs=num_epochs, seed=1000 * self.seed + self.num_trials)
        began, best = time.monotonic(), 0.0
        model = build_model(network, recipe.seed)
        try:
            for epoch in train(model, recipe, self.data.training, self.data.validation, device=self.device):
                best = max(best, epoch.val_accuracy)
                if epoch.val_accuracy > self.best:
                    self.best = epoch.val_accuracy
                    self.save(model, recipe, epoch)
                if self.left(1) < 0:
                    break
        except FloatingPointError:
            best = 0.0
        return best, time.monotonic() - began, network, recipe

    def save(self, model, recipe, epoch):
        header = {
            "classes": self.data.classes,
            "preprocessing": preprocessing(self.scale.sweep_size),
            "metrics": {"validation": epoch.figures()},
            "provenance": {"training": asdict(recipe), "data": self.data.fingerprint},
        }
        save_model(model, self.output, header)


def search(*arguments):
    return Search(*arguments).run()


def workers_that_pay(bench):
    """The fastest number of workers of those measured at the sweep's size; 2 where none was."""
    scale, rows = bench.scale, bench.figures.get("workers", {})
    rates = {count: rows.get(f"{scale.sweep_size} px, workers {count}: pictures/s in sum") for count in scale.counts}
    if not all(rates.values()):
        return 2
    return next(count for count in scale.counts if rates[count] > 0.9 * max(rates.values()))


def sweep(bench):
    """Best test accuracy from scratch that a short search finds; chosen by validation, tested once."""
    count, seconds = workers_that_pay(bench), min(300, bench.ends - time.monotonic() - 15)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(count) as pool:
        files = [Path(folder) / f"{seed}.safetensors" for seed in range(count)]
        common = bench.scale, bench.source, bench.device
        tasks = [pool.apply_async(search, (*common, seed, seconds - 10, file)) for seed, file in enumerate(files)]
        results = [task.get(seconds + 10) for task in tasks]
        best = max(range(count), key=lambda seed: results[seed][0])
        model, header = load_model(files[best])
    bench.about["best of the sweep"] = {"model": header["model"], **header["provenance"], **header["metrics"]}
    print(f"  {json.dumps(bench.about['best of the sweep'])}")
    test = load_test(bench.source, bench.scale.sweep_size).pictures
    accuracy = evaluate(model, test, device=bench.device).accuracy
    low, high = interval(accuracy, len(test))
    yield "processes", count
    yield "seconds given", seconds
    yield "trials", sum(num_trials for _, num_trials in results)
    yield "validation accuracy of the best", results[best][0]
    yield "test accuracy of the best (goal 0.97)", accuracy
    yield "95 % from", low
    yield "95 % to", high


def interval(share, n, z=1.96):
    """Wilson's score interval."""
    middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


SECTIONS = {  # name: (section, seconds at most)
    "agreement": (same_training, 60),
    "resume": (resume, 40),
    "insight": (insight, 20),
    "peak": (peak, 20),
    "first seed": (first_seed, 160),
    "plain loop": (plain_loop, 60),
    "steps": (steps, 110),
    "other seeds": (other_seeds, 200),
    "workers": (workers, 130),
    "sweep": (sweep, 400),
}


def unpacked(path, folder):
    """The folder of photographs; a tar's is unpacked to `folder`."""
    if not path.is_file():
        return path
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, or a tar of one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", help=f"some of: {', '.join(SECTIONS)}")
    parser.add_argument("--small", action="store_true", help="tiny networks: a test of this script")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    device = find_devices(options.device)[0]
    about = {
        "device": describe_device(device), "cores": os.cpu_count(), "machine": platform.machine(),
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        source = str(unpacked(options.data, Path(folder)))
        figures = {name: {} for name in SECTIONS}
        scale = SMALL if options.small else Scale()
        bench = Bench(scale, source, device, options.output, ends, figures, about, {})
        for name, (section, limit) in SECTIONS.items():
            if not options.only or name in options.only.split(","):
                bench.run(name, section, limit)
    print(f"{len(bench.errors)} sections failed; figures are in {options.output}")
    sys.exit(bool(bench.errors))


if __name__ == "__main__":
    main()
