from copy import deepcopy

import pytest
import torch
from torch import nn

from catdog.kernels.block import Block


@pytest.fixture
def block():
    torch.manual_seed(3)
    block = Block(3, 8).to(memory_format=torch.channels_last)
    nn.init.uniform_(block[2].weight, 0.2, 2)
    nn.init.normal_(block[2].bias)
    return block


def outcome(forward, block, x, dtype):
    """Return what a step leaves: output, gradients of images and weights, BatchNorm's statistics."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = forward(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return [y.detach().float(), x.grad, *(p.grad for p in block.parameters()), *block.buffers()]


def plain_outcome(block, x, dtype):
    layers = deepcopy(block)
    return outcome(lambda x: nn.Sequential.forward(layers, x), layers, x, dtype)


@pytest.fixture(params=[(16, 16), (7, 10), (2, 2)], ids=str)
def images(request, block):
    return torch.randn(6, 3, *request.param).to(memory_format=torch.channels_last)


def test_block_is_one_function_where_it_learns_on_a_cpu(block):
    x = torch.randn(2, 3, 4, 4)
    assert block(x).grad_fn.name() == "_TailBackward"
    torch.use_deterministic_algorithms(True)
    try:
        assert block(x).grad_fn.name() == "MaxPool2DWithIndicesBackward0"
    finally:
        torch.use_deterministic_algorithms(False)


def test_block_and_its_gradient_are_those_of_its_layers(block, images):
    plain = plain_outcome(block, images, torch.float32)
    for mine, theirs in zip(outcome(block, block, images, torch.float32), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert block[2].num_batches_tracked == 1


def test_block_in_bfloat16_is_as_near_to_float32_as_its_layers(block, images):
    exact, plain = (plain_outcome(block, images, dtype) for dtype in (torch.float32, torch.bfloat16))
    for mine, theirs, truth in zip(outcome(block, block, images, torch.bfloat16), plain, exact, strict=True):
        far, near, size = ((a - b).double().norm() for a, b in ((mine, truth), (theirs, truth), (truth, 0 * truth)))
        assert mine.dtype == theirs.dtype
        assert far <= 1.2 * near + 1e-3 * size


@pytest.mark.parametrize("weight", [-0.5, 0.0, float("nan")])
def test_block_whose_scale_is_not_above_zero_is_the_plain_one(block, weight):
    with torch.no_grad():
        block[2].weight[2] = weight
    x = torch.randn(4, 3, 8, 8)
    plain = plain_outcome(block, x, torch.float32)
    for mine, theirs in zip(outcome(block, block, x, torch.float32), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_block_in_eval_mode_leaves_its_statistics(block):
    before = deepcopy(block.state_dict())
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(block.eval()(x), nn.Sequential.forward(block, x), rtol=0, atol=0)
    assert all(torch.equal(block.state_dict()[name], value) for name, value in before.items())
