"""Decoded images per second: ours beside what the usual tutorial does in each epoch, on one core and on all.

    python benchmarks/decoding.py [--rounds 5] [--data FOLDER] [--size 64]

Ours is load_data with an empty cache: JPEG files are decoded at a part of their size, on a thread for each core, and
written to the cache, the hashes of their contents included. The tutorial is ImageFolder, Resize, ToTensor and a
DataLoader with a process for each core (none for one core). The files are 2,400, of 200 drawn JPEG images of 384 px
where no FOLDER of photographs is given. Both take turns, each in a new process; medians over rounds.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from catdog.data.sources import list_images
from catdog.data.synthetic import synthetic

NUM_FILES, NUM_DRAWN, DRAWN_SIZE = 2400, 200, 384  # pixels: the Kaggle set's have 383 by geometric mean
JPEG = b"\xff\xd8"  # how its files begin
OURS = """
import os, sys, time
os.sched_setaffinity(0, range(int(sys.argv[3])))
os.cpu_count = lambda: int(sys.argv[3])
from catdog.data.dataset import load_data
began = time.perf_counter()
load_data(sys.argv[1], int(sys.argv[2]))
print(time.perf_counter() - began)
"""
TUTORIAL = """
import os, sys, time
os.sched_setaffinity(0, range(int(sys.argv[3])))
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
size, cores = int(sys.argv[2]), int(sys.argv[3])
transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])
loader = DataLoader(ImageFolder(sys.argv[1], transform), 32, num_workers=cores if cores > 1 else 0)
began = time.perf_counter()
for x, y in loader:
    pass
print(time.perf_counter() - began)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder with cats/ and dogs/")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, python {platform.python_version()}, ", end="")
    print(f"pillow {version('pillow')}, torchvision {version('torchvision')}, medians of {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as drawn:
        folder = multiplied(options.data, Path(drawn)) if options.data else draw(Path(drawn))
        number = len(list_images(folder).training)
        print(f"{number} images of {options.data.name if options.data else 'drawn cats and dogs'}", end="")
        print(f" to {options.size} px{'':6}tutorial{'':6}ours{'':5}ratio   images/s")
        for cores in sorted({1, os.cpu_count()}):
            pairs = [
                [seconds(code, folder, options.size, cores) for code in (TUTORIAL, OURS)] for _ in range(options.rounds)
            ]
            slow, fast = (number / statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            print(f"{cores} core{'s' if cores > 1 else ' '}{'':28}{slow:14.0f}{fast:10.0f}{ratio:9.2f}x", flush=True)


def multiplied(source, folder):
    """Copy photographs until there are enough; what follows the end of a file makes each of them different."""
    files = list_images(source).training
    photographs = [
        file for file in files if Path(file.path).read_bytes().startswith(JPEG)
    ]  # the tutorial ends at others
    for index in range(NUM_FILES):
        photograph = photographs[index % len(photographs)]
        path = folder / ("cats", "dogs")[photograph.label] / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(Path(photograph.path).read_bytes() + index.to_bytes(8))
    return folder


def draw(folder):
    images, labels = synthetic(NUM_DRAWN, DRAWN_SIZE, seed=0)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / ("cats", "dogs")[label] / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path, quality=90)
    with tempfile.TemporaryDirectory() as other:
        folder.rename(Path(other, "drawn"))
        folder.mkdir()
        return multiplied(Path(other, "drawn"), folder)


def seconds(code, folder, size, cores):
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "CATDOG_CACHE": cache, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code, str(folder), str(size), str(cores)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout)


if __name__ == "__main__":
    main()
