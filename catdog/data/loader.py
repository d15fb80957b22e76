"""Load batches of images onto the training device."""

import ctypes
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import MADV_WILLNEED, PAGESIZE

import torch
from torch import Tensor

from catdog.data.dataset import ImageSubset

Batch = tuple[Tensor, Tensor]  # (B, S, S, 3) uint8 images, (B,) int64 labels

NUM_PREFETCHED = 3  # batches that are read during a training step
NUM_ADVISED = 8  # batches that the kernel is told to read


def batches(subset: ImageSubset, split: Iterable[Tensor], device: torch.device) -> Iterator[Batch]:
    """Yield on `device` the batches of `split`, whose tensors hold rows of `subset.images`.

    Images on the device are indexed there. Those that do not fit on a GPU (`ImageSubset.to`) are read ahead in a
    thread and copied by this one, since a CUDA graph forbids calls of other threads during its capture.
    """
    if subset.images.device.type == "cpu":
        split = _advise(subset, split)
    if subset.images.device.type == device.type:
        yield from (_take(subset, rows) for rows in split)
        return
    for images, labels in prefetch(subset, split):
        yield (
            images.pin_memory().to(device, non_blocking=True),
            labels.pin_memory().to(device, non_blocking=True),
        )


def _advise(subset: ImageSubset, split: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the rows of batches, after advising the kernel to read the images of the next few.

    Where the mapped images exceed the memory, it reads these from the disk in advance, and no others.
    """
    try:
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):  # no POSIX
        yield from split
        return
    begin, size = subset.images.data_ptr(), math.prod(subset.images.shape[1:])  # bytes
    waiting: deque[Tensor] = deque()
    for rows in split:
        for row in rows.tolist():
            first = begin + row * size
            start = first - first % PAGESIZE
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(first + size - start), MADV_WILLNEED)
        waiting.append(rows)
        if len(waiting) > NUM_ADVISED:
            yield waiting.popleft()
    yield from waiting


def prefetch(subset: ImageSubset, split: Iterable[Tensor]) -> Iterator[Batch]:
    """Yield batches on the CPU, reading the next few in a thread."""
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for rows in split:
            waiting.append(reader.submit(_take, subset, rows))
            if len(waiting) > NUM_PREFETCHED:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _take(subset: ImageSubset, rows: Tensor) -> Batch:
    return subset.images[rows], subset.labels[rows]
