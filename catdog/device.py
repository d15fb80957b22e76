"""Devices of this machine and their memory."""

import ctypes
from collections.abc import Iterator
from contextlib import suppress

import torch

# In messages of PyTorch's allocator, oneDNN, CUDA and its libraries
NO_MEMORY = "can't allocate memory", "could not create a primitive", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of mallopt(3)


def find_devices(wanted: str) -> list[str]:
    """Resolve "auto" (every GPU, else the CPU) or a list like "cuda:0,cpu". Raises ValueError for an unknown device."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if wanted == "auto":
        return gpus or ["cpu"]
    devices = [device.strip() for device in wanted.split(",")]
    for device in devices:
        if device not in ("cpu", *gpus):
            known = ", ".join(["cpu", *gpus])
            raise ValueError(f"unknown device {device!r}; this machine has {known}: give auto or one of these")
    return devices


def describe_device(device: str) -> str:
    """Return the name of a device for display: "cuda:0 (NVIDIA H200)", or "cpu"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


def peak_memory(device: str) -> int:
    """Return the peak bytes of this process's tensors on a GPU; 0 for the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0


def gpu_memory(device: str) -> tuple[int, int]:
    """Return the free and the total bytes of a GPU; 0 and 0 for the CPU."""
    return torch.cuda.mem_get_info(device) if device.startswith("cuda") else (0, 0)


def is_process_lost(error: BaseException | None) -> bool:
    """Return whether only a new process can continue: memory ran out, or a GPU's context is broken.

    With a broken context all later calls fail. After an out-of-memory error, memory is fragmented or taken by others.
    """
    return is_out_of_memory(error) or any(isinstance(one, torch.AcceleratorError) for one in _wrapped(error))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether memory ran out, a GPU's or the machine's."""
    return any(
        isinstance(one, MemoryError | torch.OutOfMemoryError)
        or (isinstance(one, RuntimeError) and any(words in str(one) for words in NO_MEMORY))
        for one in _wrapped(error)
    )


def _wrapped(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, since libraries wrap errors."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor instead of returning it to the system.

    Each training step on a CPU frees and allocates the same megabytes; otherwise every page is mapped and cleared
    again. Without glibc this does nothing.
    """
    with suppress(AttributeError, OSError, TypeError):
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
            ctypes.CDLL(None).mallopt(parameter, value)


def release_freed_memory() -> None:
    """Let glibc return freed memory to the system, from the arenas of all threads. Without glibc this does nothing."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
