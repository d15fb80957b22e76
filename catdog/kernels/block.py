"""The blocks of the network, with a faster tail for training on CPUs."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from catdog.kernels.winograd import Conv2d

aten = torch.ops.aten


class Block(nn.Sequential):
    """Conv3x3 -> ReLU -> BatchNorm -> MaxPool2: (B, in, H, W) -> (B, out, H // 2, W // 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        convolution, norm = Conv2d(in_channels, out_channels), nn.BatchNorm2d(out_channels)
        super().__init__(convolution, nn.ReLU(inplace=True), norm, nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm = self[0], cast("nn.BatchNorm2d", self[2])
        use_layers = not self.training or x.device.type != "cpu" or torch.are_deterministic_algorithms_enabled()
        if use_layers or not bool((norm.weight > 0).all()):
            return cast("Tensor", super().forward(x))  # type: ignore[no-untyped-call]
        return cast("Tensor", _Tail.apply(convolution(x), norm.weight, norm.bias, norm))


class ResidualBlock(nn.Module):
    """x + branch(x): (B, C, H, W) -> (B, C, H, W). The branch is Conv3x3, ReLU, BatchNorm, twice in a row."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [(Conv2d(channels, channels), nn.ReLU(inplace=True), nn.BatchNorm2d(channels)) for _ in range(2)]
        self.branch = nn.Sequential(*layers[0], *layers[1])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        return x + y


class _Tail(torch.autograd.Function):
    """ReLU -> BatchNorm -> MaxPool2 in one pass, for positive weights of BatchNorm.

    The maximum of a window is then at the same position before and after BatchNorm. So BatchNorm and the sums of its
    gradient need only a quarter of the values. Results equal those of the layers up to rounding. If BatchNorm makes
    values of a window equal in bfloat16, another of them may get the gradient. PyTorch lists max_unpool2d as
    nondeterministic; without overlapping windows it is deterministic.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """Take (B, C, H, W), overwritten since no gradient of a convolution needs its output, and twice (C,)."""
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
        _, grad_weight, grad_bias = aten.native_batch_norm_backward(
            gradient, pooled, weight, None, None, mean, inverse, True, 0.0, [False, True, True]
        )
        # BatchNorm's gradient is scale * (gradient - grad_bias / N - normalised x * grad_weight / N)
        scale, num = weight * inverse, x.numel() // x.shape[1]
        slope = -scale * inverse * grad_weight / num
        grad_x = _affine(x, slope, -scale * grad_bias / num - slope * mean)
        grad_x += aten.max_unpool2d(_affine(gradient, scale, torch.zeros_like(scale)), index, x.shape[2:])
        aten.threshold_backward.grad_input(grad_x, x, 0, grad_input=grad_x)
        return grad_x, grad_weight, grad_bias, None


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return scale * x + shift, by channel and in one pass, as BatchNorm in eval mode."""
    mean, variance = torch.zeros_like(scale), torch.ones_like(scale)
    return torch.native_batch_norm(x, scale, shift, mean, variance, False, 0.0, 0.0)[0]
