"""Milliseconds of a 3x3 convolution in float32, forward and backward: oneDNN's ways beside Winograd's.

    python benchmarks/convolutions.py [--rounds 5]

Shapes are those of networks at 64 px, batch 32, and of one image that is asked about. Each way runs in turn in every
round, with one thread; printed is the fastest call's CPU time, which other programs hardly disturb.
catdog/kernels/winograd.py has its limits from here.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses

sys.path.insert(0, str(Path(__file__).parents[1]))

from catdog.device import keep_freed_memory
from catdog.kernels.winograd import Conv2d, convolve

SHAPES = [  # images, channels in and out, pixels
    *((32, 16, 64, 32), (32, 32, 64, 32), (32, 32, 128, 32), (32, 64, 256, 32), (32, 64, 512, 32)),
    *((32, 32, 32, 16), (32, 64, 64, 16), (32, 128, 128, 16), (32, 256, 256, 16), (32, 512, 512, 16)),
    *((32, 64, 64, 8), (32, 128, 128, 8), (32, 512, 512, 8), (32, 128, 128, 4), (32, 512, 512, 4), (64, 512, 512, 4)),
    *((1, 64, 512, 112), (1, 512, 512, 56), (1, 512, 512, 28), (1, 512, 512, 14)),
]
WAYS = ("channels first", "channels last", "Winograd")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{torch.backends.cpu.get_cpu_capability()}, one thread, torch {torch.__version__}; forward + backward, ms")
    print(f"{'':18}" + "".join(f"{way:>20}" for way in WAYS) + "   taken")
    for num, num_in, num_out, size in SHAPES:
        ways = [way for kind in WAYS for way in calls(kind, num, num_in, num_out, size)]
        rounds = [[milliseconds(way) for way in ways] for _ in range(1 + options.rounds)][1:]
        best = [min(column) for column in zip(*rounds, strict=True)]
        pairs = "".join(f"{best[i]:11.2f} + {best[i + 1]:6.2f}" for i in range(0, len(best), 2))
        taken = "Winograd" if Conv2d(num_in, num_out).is_faster(num, num_in, size, size) else "direct"
        print(f"{num:3} {num_in:3} {num_out:4} {size:4}  {pairs}   {taken}", flush=True)


def calls(kind, num, num_in, num_out, size):
    """Return a forward and a backward pass."""
    layout = torch.contiguous_format if kind == "channels first" else torch.channels_last
    shapes = [(num, num_in, size, size), (num_out, num_in, 3, 3), (num, num_out, size, size)]
    x, weight, gradient = (torch.randn(shape).contiguous(memory_format=layout) for shape in shapes)
    convolution = convolve if kind == "Winograd" else lambda *tensors: F.conv2d(*tensors, padding=1)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, torch.zeros(num_out))]
    outcome = convolution(*leaves)
    plain = [leaf.detach() for leaf in leaves]
    return (
        lambda: convolution(*plain),
        lambda: torch.autograd.grad(outcome, leaves, gradient, retain_graph=True),
    )


def milliseconds(call):
    began = time.process_time()
    call()
    return (time.process_time() - began) * 1000


if __name__ == "__main__":
    main()
