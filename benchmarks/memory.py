"""Peak memory of the command and of a process that trains, with more and more images.

    python benchmarks/memory.py [--numbers 1000 10000 100000]

Small JPEG files, drawn and all different, are decoded at 64 px by the command (run_sweep.py with one worker, ended at
its first trial) and then again taken from the cache by a second one; then `python -m catdog.train` trains a narrow
network for one epoch and evaluates it. Memory is anonymous pages (RssAnon in /proc), sampled every 10 ms: they cannot
be dropped when memory runs short. The mapped images are not in it. Seconds of the second command until it starts its
worker are printed too.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from catdog.data.synthetic import synthetic

SIZE, NUM_DRAWN, TICK = 64, 64, 0.01  # pixels; different drawings; seconds
SWEEP = ["run_sweep.py", "--image-size", str(SIZE), "--workers", "1", "--devices", "cpu", "--tracking", "off"]
NARROW = ["--image-size", str(SIZE), "--epochs", "1", "--stem-width", "4", "--body-width", "8"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=int, nargs="+", default=[1000, 10_000, 100_000])
    numbers = parser.parse_args().numbers
    print(f"{os.cpu_count()} cores, {platform.machine()}, python {platform.python_version()}, ", end="")
    print(f"torch {version('torch')}; one run each")
    print(f"{'images':>9}{'decoded':>10}{'command, decoding':>20}{'from the cache':>17}{'until workers':>16}", end="")
    print(f"{'training':>11}")
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "CATDOG_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
            draw(Path(folder, "data"), number)
            sweep = [*SWEEP, "--data", f"{folder}/data"]
            first, _ = peak([*sweep, "--name", "first"], folder, environment, "started")
            second, seconds = peak([*sweep, "--name", "second"], folder, environment, "started")
            train = ["-m", "catdog.train", "--data", f"{folder}/data", *NARROW, "--output", f"{folder}/model"]
            worker, _ = peak(train, folder, environment)
            size = sum(path.stat().st_size for path in Path(folder, "cache").glob("*/images.npy"))
        print(f"{number:9,}{size / 1e6:7.0f} MB{first / 1e6:17.0f} MB{second / 1e6:14.0f} MB", end="")
        print(f"{seconds:16.2f} s{worker / 1e6:8.0f} MB", flush=True)


def draw(folder, number):
    """Write `number` files of two classes; what follows the end of a JPEG image makes each of them different."""
    images, labels = synthetic(NUM_DRAWN, SIZE, seed=0)
    contents = []
    for image in images:
        buffer = BytesIO()
        Image.fromarray(image).save(buffer, "JPEG")
        contents.append(buffer.getvalue())
    for index in range(number):
        kind = ("cat", "dog")[labels[index % NUM_DRAWN]]
        path = folder / f"{kind}s" / f"{kind}.{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[index % NUM_DRAWN] + index.to_bytes(8))


def peak(arguments, folder, environment, until=None):
    """Run Python until it ends, or says `until`; return the peak of its own anonymous memory, and the seconds."""
    environment = {**environment, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    if arguments[0].endswith(".py"):
        arguments = [str(ROOT / arguments[0]), str(ROOT / "configs/optimizer.json"), *arguments[1:]]
    most, began, said = 0, time.monotonic(), Path(folder, "output")
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=output, stderr=output
        )
        while process.poll() is None and not (until and until in said.read_text()):
            most = max(most, anonymous(process.pid))
            time.sleep(TICK)
        seconds = time.monotonic() - began
        if process.poll() is None:
            process.terminate()
        elif process.returncode:
            sys.exit(said.read_text())
        process.wait()
    return most, seconds


def anonymous(process):
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:  # it has just ended
        return 0
    return 1024 * int(found[1]) if found else 0


if __name__ == "__main__":
    main()
