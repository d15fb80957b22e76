import threading

import numpy as np
import pytest
import torch

from catdog.data.dataset import ImageSubset
from catdog.data.loader import batches, prefetch


@pytest.fixture
def subset():
    images = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(20, 2, 2, 3)
    return ImageSubset(images, torch.arange(20) % 2, torch.arange(3, 20))


@pytest.fixture
def split(subset):
    order = subset.rows[torch.randperm(len(subset), generator=torch.Generator().manual_seed(1))]
    return torch.split(order, 3)


def test_batches_that_are_read_ahead_are_those_that_lie_on_the_device(subset, split):
    there, read = list(batches(subset, split, torch.device("cpu"))), list(prefetch(subset, split))
    assert len(there) == len(read) == len(split) == 6
    for (images, labels), (others, their_labels), rows in zip(there, read, split, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)
        assert images[:, 0, 0, 0].tolist() == rows.tolist()
        assert labels.tolist() == (rows % 2).tolist()


def test_batches_of_a_mapped_file_are_its_images(tmp_path):
    whole = np.arange(64 * 3 * 40 * 40, dtype=np.uint32).astype(np.uint8).reshape(64, 40, 40, 3)
    np.save(tmp_path / "images.npy", whole)
    images = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))
    split = torch.split(torch.randperm(64), 4)  # more batches than are announced at once
    taken = list(batches(ImageSubset(images, torch.arange(64), torch.arange(64)), split, torch.device("cpu")))
    assert [labels.tolist() for _, labels in taken] == [rows.tolist() for rows in split]
    assert all(np.array_equal(batch.numpy(), whole[labels.numpy()]) for batch, labels in taken)


def test_no_more_is_read_ahead_than_a_few_batches(subset, split):
    asked = []
    reading = prefetch(subset, (asked.append(rows) or rows for rows in split))
    next(reading)
    assert len(asked) == 4
    reading.close()


def test_a_fault_while_reading_ahead_ends_the_batches_and_the_reader(subset):
    num_threads = threading.active_count()
    with pytest.raises(IndexError):
        list(prefetch(subset, [torch.tensor([1]), torch.tensor([99])]))
    assert threading.active_count() == num_threads


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_too_many_for_a_gpu_give_it_the_same_batches(subset, split):
    device = torch.device("cuda:0")
    resident = subset.to("cuda:0")
    rows_of = {int(row): index for index, row in enumerate(subset.rows)}
    there = [torch.tensor([rows_of[int(row)] for row in rows], device=device) for rows in split]
    pairs = zip(batches(subset, split, device), batches(resident, there, device), strict=True)
    for (images, labels), (others, their_labels) in pairs:
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)
