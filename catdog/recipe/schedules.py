"""Learning-rate schedules."""

import math
from typing import Literal

import torch
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["constant", "cosine", "one_cycle", "linear", "wsd"]

ONE_CYCLE_RISE = 0.25  # share of the steps in which one_cycle rises to the learning rate
RISE_STEPS, MAX_RISE = 200, 0.1  # linear and wsd rise for so many steps, at most for this share of all
DECAY = 0.3  # share of the steps in which wsd falls


def make_scheduler(kind: Schedule, optimizer: torch.optim.Optimizer, num_steps: int, steps_done: int) -> LambdaLR:
    """Build the schedule of `num_steps` steps, of which `steps_done` are taken. `step()` follows the optimizer's."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(kind, step, num_steps), last_epoch=steps_done - 1)


def learning_rate_factor(kind: Schedule, step: int, num_steps: int) -> float:
    """Return the factor, 0 to 1, of the learning rate in `step`, counted from 0, of `num_steps`.

    "linear" and "wsd" (warm-up, stable, decay; Hu et al. 2024, arXiv:2404.06395) rise for 200 steps, at most a tenth of
    all. Then "linear" falls to 0, and "wsd" stays at 1 until the last 30 % of the steps.
    """
    done = step / num_steps
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if kind == "one_cycle":
        if done < ONE_CYCLE_RISE:
            return 0.04 + 0.96 * done / ONE_CYCLE_RISE
        return (1 + math.cos(math.pi * (done - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))) / 2
    rise = min(RISE_STEPS, MAX_RISE * num_steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    if kind == "linear":
        return (num_steps - step) / (num_steps - rise)
    return min(1.0, (1 - done) / DECAY)
