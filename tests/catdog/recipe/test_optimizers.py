import pytest
import torch
from torch import nn

from catdog.recipe.optimizers import make_optimizer, orthogonalized


@pytest.mark.parametrize("shape", [(16, 144), (64, 9), (32, 32)])
def test_orthogonalized_matrix_keeps_its_directions(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonalized(matrix) @ v.T  # in the matrix's own directions
    values = found.diagonal()
    assert (found - values.diag()).abs().max() < 0.02
    large = s > 0.05 * s[0]
    assert values[large].min() > 0.6
    assert values[large].max() < 1.3


def test_muon_is_that_of_torch_for_convolutions_and_adamw_for_the_rest():
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(8, 16, 3, bias=False), nn.Linear(4, 2)
    matrix, other = nn.Parameter(convolution.weight.detach().flatten(1).clone()), nn.Linear(4, 2)
    other.load_state_dict(linear.state_dict())
    mine = make_optimizer("muon", [convolution.weight, *linear.parameters()], 0.01, 0.1, None)
    theirs = torch.optim.Muon([matrix], 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(other.parameters(), 0.01, weight_decay=0.1)
    for _ in range(3):
        for one, same in ((convolution.weight, matrix), *zip(linear.parameters(), other.parameters(), strict=True)):
            gradient = torch.randn(one.shape)
            one.grad, same.grad = gradient, gradient.view(same.shape).clone()
        for optimizer in (mine, theirs, adamw):
            optimizer.step()
    torch.testing.assert_close(convolution.weight.flatten(1), matrix, rtol=0, atol=5e-4)  # theirs is in bfloat16
    torch.testing.assert_close(linear.weight, other.weight)
    torch.testing.assert_close(linear.bias, other.bias)
