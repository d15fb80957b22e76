"""Batches of pictures on the device that trains, whether all the pictures lie there or not."""

import ctypes
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import MADV_WILLNEED, PAGESIZE

import torch
from torch import Tensor

from catdog.data.dataset import Pictures

__all__ = ["batches", "prefetch"]

Batch = tuple[Tensor, Tensor]  # (B, S, S, 3) uint8 pictures, (B,) int64 labels

NUM_AHEAD = 3  # batches that are fetched while one is trained on
NUM_ANNOUNCED = 8  # batches that the kernel reads meanwhile


def batches(pictures: Pictures, split: Iterable[Tensor], device: torch.device) -> Iterator[Batch]:
    """Yield on `device` the batches that `split` names, each by its rows of `pictures.images`.

    Pictures that lie on the device are taken there. Of those too many for a GPU (`Pictures.to`) the next ones are
    read in a thread, and copied by this one: a CUDA graph bears no other thread's calls while it is recorded.
    """
    if pictures.images.device.type == "cpu":
        split = _announced(pictures, split)
    if pictures.images.device.type == device.type:
        yield from (_take(pictures, rows) for rows in split)
        return
    for images, labels in prefetch(pictures, split):
        yield (
            images.pin_memory().to(device, non_blocking=True),
            labels.pin_memory().to(device, non_blocking=True),
        )


def _announced(pictures: Pictures, split: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the rows of batches, the pictures of the next few being announced to the kernel.

    Where the mapped pictures are more than memory holds, it reads these from the disk meanwhile, and no others.
    """
    try:
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):  # no POSIX
        yield from split
        return
    begin, size = pictures.images.data_ptr(), math.prod(pictures.images.shape[1:])  # bytes
    waiting: deque[Tensor] = deque()
    for rows in split:
        for row in rows.tolist():
            first = begin + row * size
            start = first - first % PAGESIZE
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(first + size - start), MADV_WILLNEED)
        waiting.append(rows)
        if len(waiting) > NUM_ANNOUNCED:
            yield waiting.popleft()
    yield from waiting


def prefetch(pictures: Pictures, split: Iterable[Tensor]) -> Iterator[Batch]:
    """Yield batches from where the pictures lie, the next few being read meanwhile."""
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for rows in split:
            waiting.append(reader.submit(_take, pictures, rows))
            if len(waiting) > NUM_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _take(pictures: Pictures, rows: Tensor) -> Batch:
    return pictures.images[rows], pictures.labels[rows]
