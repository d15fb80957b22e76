"""Capture a training step in a CUDA graph and replay it: one launch instead of one for each kernel."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]  # trains on a batch, returns its metrics

NUM_WARM_UPS = 3  # steps before the capture, in which libraries choose their kernels and allocate memory


class NoGraphWarning(UserWarning):
    """A step could not be captured, and runs eagerly."""


class CUDAGraphStep:
    """Run a step as a CUDA graph for batches of `batch_size` images, and eagerly for others.

    The first steps run eagerly, on a side stream as PyTorch requires. They update the weights like any other step. The
    capture executes nothing, so each batch is used once. The step must not wait for the GPU or leave gradients, and may
    read only constants from the CPU: the learning rate is a tensor on the device. If the capture fails, warn once and
    run every step eagerly.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size, self.device = batch_size, device
        self.side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.num_warm_ups, self.failed = 0, False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.shape: torch.Size | None = None  # of the images that it is for

    def __call__(self, step: Step, x: Tensor, y: Tensor) -> Tensor:
        """Return `step(x, y)`. `step` must be the same in all calls; the next call overwrites the result."""
        if self.failed or len(y) != self.batch_size:
            return step(x, y)
        with torch.cuda.device(self.device):
            if x.shape != self.shape:  # the images have grown
                self.shape, self.graph, self.num_warm_ups = x.shape, None, 0
            if self.num_warm_ups < NUM_WARM_UPS:
                self.num_warm_ups += 1
                return self._run_on_side_stream(step, x, y)
            if not self.graph:
                self._capture(step, x, y)
            if not self.graph:
                return step(x, y)
            self.x.copy_(x)
            self.y.copy_(y)
            self.graph.replay()
            return self.result

    def _run_on_side_stream(self, step: Step, x: Tensor, y: Tensor) -> Tensor:
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            result = step(x, y)
        current.wait_stream(self.side)
        return result

    def _capture(self, step: Step, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x.clone(), y.clone()  # a replay reads its batch from these
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.result = step(self.x, self.y)
        except RuntimeError as error:  # a broken CUDA context fails again in the next step
            self.failed = True
            warnings.warn(f"training continues without a CUDA graph: {error}", NoGraphWarning, stacklevel=2)
            return
        self.graph = graph
