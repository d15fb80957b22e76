"""Training on more images than memory holds, beside as many that it does.

    python benchmarks/larger.py [--images 100000] [--rounds 3]

A file of random images of 64 px is mapped as the decoded ones are, and a narrow network is trained for an epoch on a
random fifth of them, in a process of its own in a memory cgroup (root and Linux): once with room for all, read before,
and once where its cgroup has room for a third of the file beside the process itself, none of it read before. In turn;
images per second, medians.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SIZE, OWN = 64, 500 * 2**20  # pixels; bytes that a process needs for itself
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
ROWS = ("all in memory", "a third of them")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        return train_on(options.train)
    print(f"{os.cpu_count()} cores, {platform.machine()}, python {platform.python_version()}, torch {version('torch')}")
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        path = Path(folder, "images.npy")
        draw(path, options.images)
        size = path.stat().st_size
        print(f"{options.images:,} images, {size / 1e6:,.0f} MB; {options.rounds} rounds in turn")
        rates = [
            [measure(path, OWN + 4 * size, warm=True), measure(path, OWN + size // 3)] for _ in range(options.rounds)
        ]
    whole, part = (statistics.median(rate) for rate in zip(*rates, strict=True))
    print(f"{ROWS[0]:16} {whole:8.0f} images/s")
    print(f"{ROWS[1]:16} {part:8.0f} images/s, {statistics.median(b / a for a, b in rates):.2f}x")
    return 0


def draw(path, number):
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (number, SIZE, SIZE, 3))
    random = np.random.default_rng(0)
    for first in range(0, number, 1000):
        part = images[first : first + 1000]
        part[:] = random.integers(0, 256, part.shape, dtype=np.uint8)
    images.flush()


def measure(path, limit, *, warm=False):
    """Train in a process that may have `limit` bytes, pages of files included; return its images per second."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with cgroup(limit) as group:
        code = f'echo $$ > {group}/cgroup.procs; {f"cat {path} > /dev/null;" if warm else ""} exec "$@"'
        command = ["sh", "-c", code, "sh", sys.executable, __file__, "--train", path]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr}status {done.returncode}")
    return float(done.stdout)


@contextmanager
def cgroup(limit):
    """Make a cgroup of processes that together may have `limit` bytes of memory."""
    base, name = (V1, "memory.limit_in_bytes") if V1.is_dir() else (V2, "memory.max")
    group = base / f"larger-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(limit))
    except OSError as error:
        sys.exit(f"no memory cgroup can be made ({error}); this needs root on Linux")
    try:
        yield group
    finally:
        group.rmdir()


def train_on(path):
    """Print the images per second of one epoch."""
    import torch

    from catdog.data.dataset import ImageSubset
    from catdog.model import ModelConfig, build_model
    from catdog.train import TrainConfig, train

    images = torch.from_numpy(np.load(path, mmap_mode="c"))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    training, validation = order[: len(images) // 5], order[:100]
    labels = torch.arange(len(images)) % 2
    model = build_model(ModelConfig(stem_width=16, body_width=64, image_size=SIZE))
    (epoch,) = train(
        model, TrainConfig(epochs=1), ImageSubset(images, labels, training), ImageSubset(images, labels, validation)
    )
    print(epoch.images_per_second)
    return 0


if __name__ == "__main__":
    sys.exit(main())
