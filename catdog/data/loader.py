"""Load batches of images onto the training device."""

import ctypes
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from mmap import MADV_WILLNEED, PAGESIZE
from typing import TypeVar

import torch
from torch import Tensor

from catdog.data.dataset import ImageSubset

Batch = tuple[Tensor, Tensor]  # (B, S, S, 3) uint8 images, (B,) int64 labels

NUM_PREFETCHED = 3  # batches that are read during a training step
NUM_ADVISED = 8  # batches that the kernel is advised to read

T = TypeVar("T")


def batches(subset: ImageSubset, split: Iterable[Tensor], device: torch.device) -> Iterator[Batch]:
    """Yield on `device` the batches of `split`, whose tensors hold rows of `subset.images`.

    Images on the device are indexed there. Images that do not fit on a GPU (`ImageSubset.to`) are prefetched by a
    thread and copied by this one, since a CUDA graph forbids calls of other threads during its capture.
    """
    if subset.images.device.type == "cpu":
        split = _delay(_advise(subset, split), NUM_ADVISED)
    if subset.images.device.type == device.type:
        yield from (_take(subset, rows) for rows in split)
        return
    for images, labels in prefetch(subset, split):
        yield images.pin_memory().to(device, non_blocking=True), labels.pin_memory().to(device, non_blocking=True)


def _delay(items: Iterable[T], num: int) -> Iterator[T]:
    """Yield each item once the next `num` have been produced."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > num:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _advise(subset: ImageSubset, split: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the rows of batches, after advising the kernel to read their mapped images ahead, and no others."""
    madvise = ctypes.CDLL(None).madvise
    begin, size = subset.images.data_ptr(), math.prod(subset.images.shape[1:])  # bytes
    for rows in split:
        for row in rows.tolist():
            first = begin + row * size
            start = first - first % PAGESIZE
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(first + size - start), MADV_WILLNEED)
        yield rows


def prefetch(subset: ImageSubset, split: Iterable[Tensor]) -> Iterator[Batch]:
    """Yield batches on the CPU, reading the next few in a thread."""
    with ThreadPoolExecutor(1) as reader:
        for batch in _delay((reader.submit(_take, subset, rows) for rows in split), NUM_PREFETCHED):
            yield batch.result()


def _take(subset: ImageSubset, rows: Tensor) -> Batch:
    return subset.images[rows], subset.labels[rows]
