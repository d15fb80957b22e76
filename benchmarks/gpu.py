"""What training does on a GPU: whether it is right, how fast, how near the limit, how good on photographs.

    python benchmarks/gpu.py --data FOLDER|TAR [--output gpu.json] [--seconds 520] [--step graph] [--only peak,sweep]

Needs torch, torchvision, numpy, Pillow, safetensors and filelock alone. Sections run in the order of their importance,
each within a limit of its own and all within `--seconds`; one that fails says so and the next begins. The JSON file is
written after each. `--small` is the same on tiny networks, for any machine.

Share of peak: images/s x multiply-adds of an image (catdog.model.count_mult_adds) x 2 operations x 3 (forward, and
twice as much backward), over the operations/s of a square bfloat16 matrix product measured in the same run.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from on_gpu.right import agreement, insight, resume
from on_gpu.search import sweep
from on_gpu.speed import first_seed, other_seeds, peak, plain_loop, steps, workers

import catdog.train
from catdog.device import describe_device, find_devices
from catdog.model import ModelConfig


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
    num_images: int = 1024  # of an epoch of workers and steps
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
    epochs=2, batch_size=8, num_seeds=2, matrix=128, sizes=(64,), counts=(1, 2), num_images=16, worker_seconds=0.2,
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
        except (Exception, OutOfTime) as error:  # noqa: BLE001 - whatever it is, the sections after it are wanted
            self.errors[name] = f"{type(error).__name__}: {error}"
            print(f"  FAILED: {self.errors[name]}", flush=True)
            traceback.print_exc()
        rows["seconds of this section"] = time.monotonic() - began
        if self.device != "cpu":
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
        result = {"about": self.about, "sections": self.figures, "errors": self.errors}
        self.output.write_text(json.dumps(result, indent=1))


class OutOfTime(BaseException):
    """No Exception, which compilers catch and wrap."""


@contextmanager
def at_most(seconds):
    """Raise OutOfTime in what runs for longer, and every ten seconds again."""

    def stop(_number, _frame):
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    if seconds <= 1:
        raise OutOfTime("no time was left")
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


SECTIONS = {  # name: (section, seconds at most)
    "agreement": (agreement, 60),
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
    text = "how steps run in every section but those that compare (default eager)"
    parser.add_argument("--step", choices=("eager", "graph"), default="eager", help=text)
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", help=f"some of: {', '.join(SECTIONS)}")
    parser.add_argument("--small", action="store_true", help="tiny networks: a test of this script")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := set(chosen) - SECTIONS.keys():
        parser.error(f"--only names {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    ends = time.monotonic() + options.seconds
    device = find_devices(options.device)[0]
    catdog.train.STEP = options.step
    about = {
        "device": describe_device(device), "cores": os.cpu_count(), "machine": platform.machine(),
        "torch": torch.__version__, "python": platform.python_version(), "step": options.step,
    }  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        source = str(unpacked(options.data, Path(folder)))
        figures = {name: {} for name in SECTIONS}
        scale = SMALL if options.small else Scale()
        bench = Bench(scale, source, device, options.output, ends, figures, about, {})
        for name, (section, limit) in SECTIONS.items():
            if name in chosen:
                bench.run(name, section, limit)
    print(f"{len(bench.errors)} sections failed; figures are in {options.output}")
    sys.exit(bool(bench.errors))


if __name__ == "__main__":
    main()
