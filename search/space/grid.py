"""Propose the points of a grid in a random order. No list of them is made: a grid can be larger than the memory."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

POINT, ENQUEUED = "grid_point", "fixed_params"  # system attributes of a trial; the second is Optuna's
NUM_ROUNDS = 8  # twice those that a random order of a large grid needs: in a small one, a round mixes few bits


class GridSampler(BaseSampler):
    """Proposes the point with number `index` in the order of `seed` or, where a trial has that, the next one."""

    def __init__(self, grid: Mapping[str, Sequence[Any]], seed: int, index: int) -> None:
        self.grid, self.seed, self.index = dict(sorted(grid.items())), seed, index
        self.size = math.prod(len(values) for values in grid.values())

    def point(self, index: int) -> dict[str, Any]:
        """Return the point with number `index`: its digits in a system whose bases are the numbers of values."""
        rest, point = permuted(index % self.size, self.size, self.seed), {}
        for name, values in self.grid.items():
            rest, digit = divmod(rest, len(values))
            point[name] = values[digit]
        return point

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Store the point while no other process can choose one."""
        if POINT in trial.system_attrs or ENQUEUED in trial.system_attrs:
            return
        proposed = [other for other in study.get_trials(deepcopy=False) if ENQUEUED not in other.system_attrs]
        # Trials of earlier versions have no stored point, and another order.
        points = [other.system_attrs.get(POINT, other.params) for other in proposed]
        taken = {tuple(point[name] for name in self.grid) for point in points if point.keys() == self.grid.keys()}
        last = self.index + (self.size if len(taken) < self.size else 0)
        following = (self.point(index) for index in range(self.index, last))
        point = next((point for point in following if tuple(point.values()) not in taken), self.point(self.index))
        study._storage.set_trial_system_attr(trial._trial_id, POINT, point)

    def infer_relative_search_space(self, *_: object) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, *_: object) -> dict[str, Any]:
        return {}

    def sample_independent(self, _: Study, trial: FrozenTrial, name: str, __: BaseDistribution) -> Any:
        return trial.system_attrs[POINT][name]


def permuted(index: int, size: int, seed: int) -> int:
    """Return element `index` of a random order of range(`size`), which is the same wherever it is computed.

    A Feistel network orders the numbers of twice `half` bits. Numbers outside the range are followed by theirs until
    one is inside: "cycle walking", Black and Rogaway, Ciphers with arbitrary finite domains, 2002.
    """
    half = max(1, (size.bit_length() + 1) // 2)
    while True:
        left, right = divmod(index, 1 << half)
        for number in range(NUM_ROUNDS):
            digest = hashlib.blake2b(f"{seed} {number} {right}".encode()).digest()
            left, right = right, left ^ int.from_bytes(digest) % (1 << half)
        index = (left << half) + right
        if index < size:
            return index
