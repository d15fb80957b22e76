"""A training step on a GPU, recorded once and then replayed: one launch instead of one for each kernel."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CUDAGraphStep"]

Step = Callable[[Tensor, Tensor], Tensor]  # a batch -> figures, and the weights have moved

NUM_WARM_UPS = 3  # steps before the recording, in which libraries choose their kernels and take their memory


class CUDAGraphStep:
    """Call a step by a CUDA graph where the batch has `batch_size` pictures, as it is where it has not.

    The first steps run as they are, on a side stream as PyTorch asks; they train like any other, and recording does
    nothing but record. So the weights see each batch once. The step must not wait for the GPU, must leave no
    gradients behind, and reads nothing from the CPU but what never changes: a learning rate is a tensor on the
    device. Where recording fails, every step runs as it is, after one warning.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size, self.device = batch_size, device
        self.side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.num_warm_ups, self.gave_up = 0, False
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, step: Step, x: Tensor, y: Tensor) -> Tensor:
        """Return what `step(x, y)` does, always the same `step`; the next call overwrites it."""
        if self.gave_up or len(y) != self.batch_size:
            return step(x, y)
        with torch.cuda.device(self.device):
            if self.num_warm_ups < NUM_WARM_UPS:
                self.num_warm_ups += 1
                return self._aside(step, x, y)
            if not self.graph:
                self._record(step, x, y)
            if not self.graph:
                return step(x, y)
            self.x.copy_(x)
            self.y.copy_(y)
            self.graph.replay()
            return self.result

    def _aside(self, step: Step, x: Tensor, y: Tensor) -> Tensor:
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            result = step(x, y)
        current.wait_stream(self.side)
        return result

    def _record(self, step: Step, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x.clone(), y.clone()  # where a replay reads its batch
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.result = step(self.x, self.y)
        except RuntimeError as error:  # a context that is beyond repair fails again in the step that follows
            self.gave_up = True
            warnings.warn(f"training goes on without a CUDA graph: {error}", stacklevel=2)
            return
        self.graph = graph
