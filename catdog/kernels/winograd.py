"""3x3 convolutions in float32 on CPUs by Winograd's minimal filtering F(4x4, 3x3): a quarter of the multiplications.

Each 4x4 tile of the output depends on a 6x6 tile of the input. Transformed, the convolution of a tile is 36 products,
and that of all tiles and channels is 36 matrix products (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", 2015, arXiv:1509.09308, with the interpolation points 0, 1, -1, 2, -2). The result differs from a direct
convolution's by less than 2e-4 standard deviations (tests/catdog/kernels/test_winograd.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TILE, EDGE = 4, 6  # pixels of an output tile, and of the input tile that it depends on
ONES = EDGE + 1  # the product that is added once to each pixel of its output tile, like a bias
CHUNK_TILES = 128  # transformed together, per thread: fits the cache, with enough rows for a matrix product
# Below these limits a direct convolution is as fast, forward and backward together (benchmarks/convolutions.py).
MIN_TILES, MIN_SIZE = 32, 4
MIN_CHANNELS = [32, 64]  # the smaller and the larger of the numbers in and out

INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
WEIGHT = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
          [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
# The same for flattened tiles: (36, 36), (36, 9), (16, 36).
FLAT_INPUT, FLAT_WEIGHT, FLAT_OUTPUT = (
    torch.tensor(np.kron(m, m)).float() for m in map(np.array, (INPUT, WEIGHT, OUTPUT))
)


class Conv2d(nn.Conv2d):
    """A 3x3 convolution of padding 1: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        in_float32 = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not (in_float32 and self.is_faster(*x.shape)):
            return super().forward(x)
        assert self.bias is not None
        return convolve(x, self.weight, self.bias)

    def is_faster(self, num: int, channels: int, height: int, width: int) -> bool:
        """Return whether Winograd is faster than a direct convolution, its transforms included."""
        fewer, more = sorted((channels, self.out_channels))
        has_width = fewer >= MIN_CHANNELS[0] and more >= MIN_CHANNELS[1]
        num_tiles = num * _num_tiles(height) * _num_tiles(width)
        return has_width and min(height, width) >= MIN_SIZE and num_tiles >= MIN_TILES


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the 3x3 convolution, padding 1: (B, C, H, W), (K, C, 3, 3), (K,) -> (B, K, H, W), all channels-last."""
    transformed = _transformed.get({})
    if weight not in transformed:
        transformed[weight] = _transform_weight(weight)
    return cast("Tensor", _Convolution.apply(x, transformed[weight], bias))


@contextmanager
def weights_transformed_once() -> Iterator[None]:
    """Transform each weight once inside this context, in which no weight may change."""
    token = _transformed.set({})
    try:
        yield
    finally:
        _transformed.reset(token)


_transformed: ContextVar[dict[Tensor, Tensor]] = ContextVar("transformed weights")  # by weight


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, transformed: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, transformed)
        shape = len(x), transformed.shape[2], *x.shape[2:]
        y = torch.empty(shape, memory_format=torch.channels_last)
        x, pixels = _channels_last(x), _channels_last(y)
        for part in _chunks(x):
            products = torch.bmm(_transform_input(x[part]).transpose(0, 1), transformed)  # (36, tiles, K)
            products[ONES] += bias
            _write_output(products, pixels[part])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Apply the transposed transforms."""
        x, transformed = ctx.saved_tensors
        grad_x = torch.empty_like(x, memory_format=torch.channels_last) if ctx.needs_input_grad[0] else None
        x, gradient = _channels_last(x), _channels_last(gradient)
        grad_transformed: Tensor | None = None  # stays None if the weights are not trained
        grad_bias = transformed.new_zeros(transformed.shape[2])
        for part in _chunks(x):
            grad_tiles = _transform_gradient(gradient[part]).transpose(0, 1)
            grad_bias += grad_tiles[ONES].sum(0)
            if grad_transformed is not None:
                grad_transformed.baddbmm_(_transform_input(x[part]).permute(1, 2, 0), grad_tiles)
            elif ctx.needs_input_grad[1]:
                grad_transformed = torch.bmm(_transform_input(x[part]).permute(1, 2, 0), grad_tiles)
            if grad_x is not None:
                _add_overlapping(torch.bmm(grad_tiles, transformed.transpose(1, 2)), _channels_last(grad_x)[part])
        return grad_x, grad_transformed, grad_bias


def _channels_last(x: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def _num_tiles(size: int) -> int:
    return -(-size // TILE)


def _chunks(x: Tensor) -> Iterator[slice]:
    """Yield slices of the images of (B, H, W, C) that are transformed together."""
    num_tiles = _num_tiles(x.shape[1]) * _num_tiles(x.shape[2])  # of an image
    num = max(1, CHUNK_TILES * torch.get_num_threads() // num_tiles)
    return (slice(begin, begin + num) for begin in range(0, len(x), num))


def _transform_weight(weight: Tensor) -> Tensor:
    """Transform (K, C, 3, 3) to (36, C, K), differentiable by autograd."""
    num_out, num_in = weight.shape[:2]
    return (FLAT_WEIGHT @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(EDGE**2, num_in, num_out)


def _transform_input(x: Tensor) -> Tensor:
    """Transform (B, H, W, C) to (tiles, 36, C)."""
    _, height, width, channels = x.shape
    rows, columns = _num_tiles(height), _num_tiles(width)
    x = F.pad(x, (0, 0, 1, columns * TILE + 1 - width, 1, rows * TILE + 1 - height))
    tiles = x.unfold(1, EDGE, TILE).unfold(2, EDGE, TILE).permute(0, 1, 2, 4, 5, 3)  # (B, rows, columns, 6, 6, C)
    return FLAT_INPUT @ tiles.reshape(-1, EDGE**2, channels)


def _write_output(products: Tensor, y: Tensor) -> None:
    """Transform the products of tiles, (36, tiles, K), into the output, (B, H, W, K)."""
    num, height, width, channels = y.shape
    rows, columns = _num_tiles(height), _num_tiles(width)
    tiles = (FLAT_OUTPUT @ products.transpose(0, 1)).view(num, rows, columns, TILE, TILE, channels)
    tiles = tiles.transpose(2, 3)  # (B, rows, 4, columns, 4, K)
    if height % TILE or width % TILE:
        y.copy_(tiles.reshape(num, rows * TILE, columns * TILE, channels)[:, :height, :width])
    else:
        y.view(tiles.shape).copy_(tiles)


def _transform_gradient(gradient: Tensor) -> Tensor:
    """Transform the gradient of the output, (B, H, W, K), to that of the products, (tiles, 36, K)."""
    num, height, width, channels = gradient.shape
    rows, columns = _num_tiles(height), _num_tiles(width)
    if height % TILE or width % TILE:
        gradient = F.pad(gradient, (0, 0, 0, columns * TILE - width, 0, rows * TILE - height))
    tiles = gradient.reshape(num, rows, TILE, columns, TILE, channels).transpose(2, 3)
    return FLAT_OUTPUT.t() @ tiles.reshape(-1, TILE**2, channels)


def _add_overlapping(grad_tiles: Tensor, grad_x: Tensor) -> None:
    """Transform the gradient of transformed tiles, (36, tiles, C), into that of the input, (B, H, W, C)."""
    num, height, width, channels = grad_x.shape
    rows, columns = _num_tiles(height), _num_tiles(width)
    tiles = (FLAT_INPUT.t() @ grad_tiles.transpose(0, 1)).view(num, rows, columns, EDGE, EDGE, channels)
    tiles = tiles.transpose(2, 3)  # (B, rows, 6, columns, 6, C)
    # A tile shares its last two rows and columns with the next ones.
    whole = grad_x.new_empty(num, rows + 1, TILE, columns + 1, TILE, channels)
    whole[:, -1] = whole[:, :, :, -1] = 0
    whole[:, :-1, :, :-1] = tiles[:, :, :TILE, :, :TILE]
    whole[:, 1:, :2, :-1] += tiles[:, :, TILE:, :, :TILE]
    whole[:, :-1, :, 1:, :2] += tiles[:, :, :TILE, :, TILE:]
    whole[:, 1:, :2, 1:, :2] += tiles[:, :, TILE:, :, TILE:]
    grad_x.copy_(whole.view(num, (rows + 1) * TILE, -1, channels)[:, 1 : height + 1, 1 : width + 1])
