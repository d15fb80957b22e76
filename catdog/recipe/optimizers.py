"""Optimizers."""

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Optimizer = Literal["adam", "adamw", "sgd", "muon"]

IMPORTING = ("step", "zero_grad", "state_dict", "load_state_dict", "add_param_group")  # they import the compiler
MOMENTUM = 0.95  # Muon's
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of a, a^3 and a^5 that raise small singular values fastest


def make_optimizer(
    kind: Optimizer, parameters: Iterable[Tensor], lr: float, weight_decay: float, graph_device: torch.device | None
) -> torch.optim.Optimizer:
    """Build a fused optimizer, for a CUDA graph if `graph_device` is given. "sgd" has Nesterov momentum 0.9."""
    graph = graph_device is not None
    group = {"params": list(parameters), "initial_lr": lr}  # LambdaLR's; a float even if `lr` is a tensor
    settings: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if kind == "sgd" else {"capturable": graph}
    rate = torch.tensor(lr, device=graph_device) if graph else lr  # a graph reads the current rate from a tensor
    return _uncompiled(OPTIMIZERS[kind])([group], lr=rate, weight_decay=weight_decay, fused=True, **settings)


@cache
def _uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Derive an optimizer that does not import PyTorch's compiler. The import takes a second or more.

    PyTorch wraps these methods to keep the compiler out and to turn gradients off. Only the latter is needed here.
    """
    methods = {name: torch.no_grad()(inspect.unwrap(getattr(kind, name))) for name in IMPORTING}
    return type(kind.__name__, (kind,), methods)


class Muon(torch.optim.AdamW):
    """Muon for the weights of convolutions, AdamW for all others.

    Muon (Jordan et al. 2024) replaces the momentum of a weight matrix by the nearest orthogonal matrix. Scaled as by
    Liu et al. (2025, arXiv:2502.16982), its updates are as large as those of AdamW, so that both have one learning
    rate. torch.optim.Muon takes matrices alone, and always multiplies them in bfloat16, which many CPUs emulate.
    """

    def step(self, _: None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient. Inside autocast, the matrix products are in bfloat16."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim == 4 and weight.grad is not None:
                    self._update(weight, group["lr"], group["weight_decay"])
                    weight.grad = None  # AdamW leaves it out
        inspect.unwrap(torch.optim.AdamW.step)(self)

    def _update(self, weight: Tensor, lr: float | Tensor, weight_decay: float) -> None:
        """Update (out, in, 3, 3) weights, as a matrix with a row for each output channel."""
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        if not state:
            state.update(momentum=torch.zeros_like(gradient), step=torch.zeros(()))  # AdamW expects "step" when loaded
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalized(gradient.lerp(momentum, MOMENTUM).flatten(1))
        scale = 0.2 * max(update.shape) ** 0.5
        weight.mul_(1 - lr * weight_decay)
        weight.sub_(lr * scale * update.view(weight.shape))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix with orthonormal rows or columns, by five steps of Newton-Schulz iteration.

    The singular values become 0.7 to 1.2 except very small ones.
    """
    rows, columns = matrix.shape
    x: Tensor = (matrix.T if rows > columns else matrix) / matrix.norm().clamp_min(1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if rows > columns else x).to(matrix.dtype)


OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "muon": Muon}
