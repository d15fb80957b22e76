"""An exponential moving average of a network's weights."""

import torch
from torch import nn


class MovingAverage:
    """Average the weights of `trained`, and its BatchNorm statistics, into `average`, a network of the same shape.

    Early steps have a lower decay, (1 + n) / (10 + n) in step n, so that the average forgets the initial weights.
    """

    def __init__(self, average: nn.Module, trained: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average, self.trained = (
            [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
            for network in (average, trained)
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after training step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.trained, 1 - decay)
