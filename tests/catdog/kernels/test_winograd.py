import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses

from catdog.kernels.winograd import Conv2d, convolve, weights_transformed_once
from catdog.model import ModelConfig, build_model


def outcome(convolution, x, weight, bias):
    """Return a convolution and its gradients to input, weight and bias, each as float64."""
    x, weight, bias = (tensor.clone().requires_grad_() for tensor in (x, weight, bias))
    y = convolution(x, weight, bias)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return [tensor.detach().double() for tensor in (y, x.grad, weight.grad, bias.grad)]


def direct(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


@pytest.fixture(params=[(3, 32, 32), (40, 8, 8), (5, 7, 14), (2, 4, 5)], ids=str)
def tensors(request):
    num, height, width = request.param
    torch.manual_seed(1)
    x = torch.randn(num, 32, height, width).to(memory_format=torch.channels_last)
    return x, torch.randn(48, 32, 3, 3) / 17, torch.randn(48)


def test_winograd_convolution_and_its_gradients_are_those_of_a_direct_one_in_float64(tensors):
    exact = outcome(direct, *(tensor.double() for tensor in tensors))
    for mine, truth in zip(outcome(convolve, *tensors), exact, strict=True):
        assert (mine - truth).abs().max() < 2e-4 * truth.std()


def test_winograd_convolution_takes_images_in_any_layout(tensors):
    x, weight, bias = tensors
    y = convolve(x.contiguous(), weight, bias)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, convolve(x, weight, bias), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("num", "channels", "size", "way"),
    [(8, 32, 8, "winograd"), (8, 16, 8, "direct"), (99, 32, 2, "direct"), (7, 32, 8, "direct")],
)
def test_layer_takes_the_way_that_its_shape_is_worth(num, channels, size, way):
    y = Conv2d(channels, 64)(torch.randn(num, channels, size, size))
    assert (y.grad_fn.name() == "_ConvolutionBackward") == (way == "winograd")


def test_weight_of_several_convolutions_is_transformed_once_and_anew_when_it_has_changed(tensors):
    x, weight, bias = tensors[0], tensors[1][:32], tensors[2][:32]

    def twice(convolution):
        return lambda x, weight, bias: convolution(convolution(x, weight, bias), weight, bias)

    def transforms(node):
        return {node} if "View" in node.name() else set().union(*(transforms(n) for n, _ in node.next_functions if n))

    with weights_transformed_once():
        shared = outcome(twice(convolve), x, weight, bias)
        weight = weight.requires_grad_()
        assert len(transforms(twice(convolve)(x, weight, bias).grad_fn)) == 1
    assert len(transforms(twice(convolve)(x, weight, bias).grad_fn)) == 2
    for mine, apart in zip(shared, outcome(twice(convolve), x, weight.detach(), bias), strict=True):
        assert (mine - apart).abs().max() < 2e-4 * apart.std()
    model = build_model(ModelConfig(stem_width=32, body_width=64, image_size=64))
    images = torch.randn(8, 3, 64, 64)
    before = model(images)
    with torch.no_grad():
        model.body[0][0].weight.mul_(2)
    assert not torch.allclose(model(images), before)


def test_layer_under_bfloat16_is_a_direct_convolution():
    with torch.autocast("cpu", torch.bfloat16):
        y = Conv2d(32, 64)(torch.randn(8, 32, 8, 8))
    assert y.dtype == torch.bfloat16
    assert y.grad_fn.name() == "ConvolutionBackward0"
