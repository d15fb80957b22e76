"""What is run, recorded and replayed when; a stand-in takes CUDA's place."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from catdog.kernels.cuda_graph import CUDAGraphStep, NoGraphWarning


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


class Graph:
    replay = staticmethod(lambda: None)


@pytest.fixture
def said(monkeypatch):
    """What happened: batches as the step saw them, and the recording around one of them."""
    said = []

    @contextmanager
    def recording(graph):
        said.append("record")
        yield
        graph.replay = lambda: said.append("replay")

    fakes = {
        "Stream": Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": Stream,
        "device": lambda device: nullcontext(),
        "CUDAGraph": Graph,
        "graph": recording,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return said


def batch(size, value):
    return torch.full((size, 1), float(value)), torch.zeros(size)


def test_whole_batches_are_replayed_and_the_smaller_last_one_is_run(said):
    replayed = CUDAGraphStep(4, torch.device("cpu"))

    def step(x, y):
        said.append(int(x[0]))
        return x.sum()

    for number, size in enumerate((4, 4, 4, 4, 2, 4)):
        replayed(step, *batch(size, number))
    assert said == [0, 1, 2, "record", 3, "replay", 4, "replay"]
    assert replayed.x[0] == 5  # what the last replay read


def test_step_that_cannot_be_recorded_is_run_after_one_warning(said):
    replayed = CUDAGraphStep(4, torch.device("cpu"))

    def step(x, y):
        if said and said[-1] == "record":
            said.append("failed")
            raise RuntimeError("operation not permitted when stream is capturing")
        said.append(int(x[0]))
        return x.sum()

    for number in range(3):
        replayed(step, *batch(4, number))
    with pytest.warns(NoGraphWarning, match="continues without a CUDA graph: operation not permitted"):
        replayed(step, *batch(4, 3))
    replayed(step, *batch(4, 4))
    assert said == [0, 1, 2, "record", "failed", 3, 4]


def test_larger_images_are_recorded_again(said):
    replayed = CUDAGraphStep(4, torch.device("cpu"))
    for size in [4] * 3 + [8] * 5 + [16] * 5:
        replayed(lambda x, _: said.append(x.shape[1]), torch.zeros(4, size), torch.zeros(4))
    assert said == [*[4] * 3, *[8] * 3, "record", 8, "replay", "replay", *[16] * 3, "record", 16, "replay", "replay"]
