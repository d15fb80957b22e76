"""Choose the precision of a device: bfloat16 if the hardware supports it and a check confirms it."""

import hashlib
import os
import platform
import time
import timeit
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses
from filelock import FileLock
from torch import Tensor

from catdog.data.cache import cache_folder
from catdog.data.files import write_file
from catdog.kernels.winograd import convolve

Precision = Literal["auto", "float32", "bfloat16"]

SHAPES = [(8, 64, 16, 16), (128, 64, 3, 3), (8, 128, 16, 16)]  # input, weight and output of a block in mid-network
LARGEST_ERROR = 0.03  # relative to the norm of a convolution or its gradient; rounding to bfloat16 gives 0.002 to 0.004
NUM_ROUNDS = 3  # of timing each precision; the fastest counts


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Autocast to bfloat16 if `precision` asks for it or "auto" chooses it. Weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolved(device, precision) == "bfloat16")


def resolved(device: torch.device, precision: Precision) -> Precision:
    """Return the precision that "auto" chooses on `device`, else `precision`."""
    if precision != "auto":
        return precision
    return "bfloat16" if uses_bfloat16(device) else "float32"


def uses_bfloat16(device: torch.device) -> bool:
    """Return whether "auto" chooses bfloat16 on `device`."""
    return has_bfloat16(device) and not (device.type == "cpu" and bfloat16_fault())


def has_bfloat16(device: torch.device) -> bool:
    """Return whether `device` multiplies bfloat16 natively: CUDA from Ampere on, CPUs with AVX-512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


@cache
def bfloat16_fault() -> str:
    """Return why "auto" is float32 on a CPU that has bfloat16, in one sentence, or "" if bfloat16 is used or missing.

    The check compares the values and the CPU time of a convolution in bfloat16 and in float32. The verdict is cached
    beside the decoded images, per machine, version of PyTorch and settings of its libraries.
    """
    if not has_bfloat16(torch.device("cpu")):
        return ""
    file = verdict_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # two checks at once would disturb each other's timing
            if not file.exists():
                write_file(file, _measured_fault().encode())
            return file.read_text(encoding="utf-8")
    except OSError:  # no writable cache: each process checks for itself
        return _measured_fault()


def verdict_file() -> Path:
    """Return the path of this machine's verdict, a file with the sentence of `bfloat16_fault`."""
    settings = sorted((name, value) for name, value in os.environ.items() if name.startswith(("ONEDNN_", "ATEN_")))
    tried = (platform.node(), torch.cpu.get_capabilities(), torch.__version__, settings)
    return cache_folder() / f"bfloat16-{hashlib.sha256(repr(tried).encode()).hexdigest()[:16]}"


def _measured_fault() -> str:
    """Compare a convolution in bfloat16 with the same in float32."""
    generator = torch.Generator().manual_seed(0)
    x, weight, gradient = (
        torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last) for shape in SHAPES
    )
    both = _in_float32, _in_bfloat16
    exact, found = (convolution(x, weight, gradient) for convolution in both)  # also warms up both
    error = max(float((mine.float() - one).norm() / one.norm()) for mine, one in zip(found, exact, strict=True))
    if not error <= LARGEST_ERROR:  # also if it is nan
        return f"bfloat16 is not used: a convolution in it differs from float32's by {error:.0%} on this machine"
    in_float32, in_bfloat16 = _times([partial(convolution, x, weight, gradient) for convolution in both])
    ratio = in_bfloat16 / in_float32
    if ratio >= 1:
        return f"bfloat16 is not used: a convolution in it takes {ratio:.1f}x as long as in float32 on this machine"
    return ""


def _times(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the least CPU time of each call, in seconds, on one thread: other processes on the cores do not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = [[timeit.timeit(call, number=1, timer=time.thread_time) for call in calls] for _ in range(NUM_ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    return [min(times) for times in zip(*rounds, strict=True)]


def _in_float32(x: Tensor, weight: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return a 3x3 convolution and its gradients to input and weight, as a layer of SHAPES computes them."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        x, weight = (tensor.clone().requires_grad_() for tensor in (x, weight))
        y = convolve(x, weight, torch.zeros(len(weight)))
        return [y.detach(), *torch.autograd.grad(y, (x, weight), gradient)]


def _in_bfloat16(x: Tensor, weight: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the same, computed in bfloat16."""
    x, weight, gradient = (tensor.bfloat16() for tensor in (x, weight, gradient))
    options = None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (True, True, False)  # padding 1; no gradient of a bias
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(gradient, x, weight, *options)
    return [F.conv2d(x, weight, padding=1), of_x, of_weight]
