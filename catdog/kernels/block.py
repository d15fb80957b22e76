"""The block that the network is made of, and its gradient for CPUs."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from catdog.kernels.winograd import Conv2d

__all__ = ["Block"]

aten = torch.ops.aten


class Block(nn.Sequential):
    """Conv3x3 -> ReLU -> BatchNorm -> MaxPool2: (B, in, H, W) -> (B, out, H // 2, W // 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            Conv2d(in_channels, out_channels),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(out_channels),
            nn.MaxPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm = self[0], cast("nn.BatchNorm2d", self[2])
        plain = not self.training or x.device.type != "cpu" or torch.are_deterministic_algorithms_enabled()
        if plain or not bool((norm.weight > 0).all()):
            return cast("Tensor", super().forward(x))  # type: ignore[no-untyped-call]
        return cast("Tensor", _Tail.apply(convolution(x), norm.weight, norm.bias, norm))


class _Tail(torch.autograd.Function):
    """ReLU -> BatchNorm -> MaxPool2, where BatchNorm's weight is above 0.

    The largest of four numbers is then the largest before and after BatchNorm: it is applied to a quarter of them, and
    the sums in its gradient run over a quarter. Each result is that of the layers but for the last bits; of numbers
    that BatchNorm makes equal in bfloat16 another one may get the gradient. (PyTorch counts max_unpool2d among what is
    not deterministic; with windows that do not overlap it is.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """Take (B, C, H, W), which no gradient of a convolution needs and which is overwritten, and twice (C,)."""
        x.relu_()
        assert norm.momentum is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        mean, variance = torch.batch_norm_update_stats(x, norm.running_mean, norm.running_var, norm.momentum)
        pooled, index = aten.max_pool2d_with_indices(x, [2, 2])
        inverse = (variance + norm.eps).rsqrt()
        ctx.save_for_backward(x, pooled, index, weight, mean, inverse)
        scale = weight * inverse
        return _affine(pooled, scale, bias - mean * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, pooled, index, weight, mean, inverse = ctx.saved_tensors
        _, of_weight, of_bias = aten.native_batch_norm_backward(
            gradient, pooled, weight, None, None, mean, inverse, True, 0.0, [False, True, True]
        )
        # BatchNorm's gradient is scale * (gradient - of_bias / N - normalised x * of_weight / N)
        scale, num = weight * inverse, x.numel() // x.shape[1]
        slope = -scale * inverse * of_weight / num
        of_x = _affine(x, slope, -scale * of_bias / num - slope * mean)
        of_x += aten.max_unpool2d(_affine(gradient, scale, torch.zeros_like(scale)), index, x.shape[2:])
        aten.threshold_backward.grad_input(of_x, x, 0, grad_input=of_x)
        return of_x, of_weight, of_bias, None


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return scale * x + shift, by channel and in one pass: what BatchNorm does in eval mode."""
    mean, variance = torch.zeros_like(scale), torch.ones_like(scale)
    return torch.native_batch_norm(x, scale, shift, mean, variance, False, 0.0, 0.0)[0]
