"""Optimizers and learning-rate schedules."""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "one_cycle"]

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
IMPORTING = ("step", "zero_grad", "state_dict", "load_state_dict", "add_param_group")  # they import the compiler
WARM_UP = 0.25  # share of the steps in which one_cycle rises to the learning rate


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


def make_scheduler(kind: Schedule, optimizer: torch.optim.Optimizer, num_steps: int, steps_done: int) -> LambdaLR:
    """Build the schedule of `num_steps` steps, of which `steps_done` are taken. `step()` follows the optimizer's."""
    return LambdaLR(optimizer, lambda step: _factor(kind, step / num_steps), last_epoch=steps_done - 1)


def _factor(kind: Schedule, done: float) -> float:
    """Return the factor of the learning rate when `done` (0 to 1) of all steps are taken."""
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if done < WARM_UP:
        return 0.04 + 0.96 * done / WARM_UP
    return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
