import tracemalloc
from dataclasses import replace
from itertools import product

import optuna
import pytest

from search.space.grid import POINT, permuted
from search.study.warm_start import first_proposals
from tests.servers.counting_sweep import make_sweep

AXIS = {"type": "float", "min": 0, "max": 1, "gridSize": 10_000}
HUGE = {
    "algorithm": "grid",
    "parameters": {"x": AXIS, "y": AXIS, "z": AXIS},
    "spec": {"metric": "best_loss", "maxCombo": 8},
}
SMALL = {
    "algorithm": "grid",
    "parameters": {"x": {"type": "float", "min": 0, "max": 1, "gridSize": 3}, "y": [1, 5], "z": [2.5, 3.5]},
}


@pytest.fixture
def space(tmp_path):
    return lambda **changes: replace(make_sweep(tmp_path / "grid", 8, **changes).space, baseline=None)


def points(trials):
    return [tuple(trial.params[name] for name in "xyz") for trial in trials]


def propose(study, space, number):
    study.sampler = space.sampler(number)
    trial = study.ask()
    space.suggest(trial)
    return trial


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000])
def test_order_is_a_permutation_that_the_seed_gives(size):
    orders = [[permuted(index, size, seed) for index in range(size)] for seed in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(size))] * 2
    assert size < 7 or orders[0] != orders[1] != list(range(size))


def test_every_order_of_a_small_grid_is_as_likely():
    counts = {}
    for seed in range(600):
        order = tuple(permuted(index, 3, seed) for index in range(3))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert min(counts.values()) > 60  # of 100 expected


def test_a_grid_of_10_to_the_12_takes_no_more_memory_than_bayes(space):
    peaks = []
    for algorithm in ("bayes", "grid"):
        tracemalloc.start()
        proposals = first_proposals(space(**{**HUGE, "algorithm": algorithm}), 8)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len({tuple(proposal.values()) for proposal in proposals}) == 8
    assert peaks[1] < peaks[0] + 50e6
    assert space(**HUGE).num_trials == 8
    assert space(**{**HUGE, "spec": {"metric": "best_loss"}}).num_trials == 10**12


def test_first_points_of_a_huge_grid_are_spread(space):
    proposals = first_proposals(space(**HUGE), 64)
    for name in "xyz":
        values = [proposal[name] for proposal in proposals]
        assert 0.35 < sum(values) / 64 < 0.65  # 4 standard errors
        assert len(set(values)) > 60


def test_all_points_of_a_small_grid_are_tried_once(space):
    study, small = optuna.create_study(), space(**SMALL)
    for number in range(12):
        propose(study, small, number)
    assert sorted(points(study.trials)) == sorted(product([0, 0.5, 1], [1, 5], [2.5, 3.5]))


def test_a_trial_that_is_left_behind_keeps_its_point(space):
    study, small = optuna.create_study(), space(**SMALL)
    study.sampler = small.sampler(0)
    left = study.ask()
    propose(study, small, 1)
    study.sampler = small.sampler(0)
    again = optuna.Trial(study, left._trial_id)
    small.suggest(again)
    assert again.params == study.trials[0].system_attrs[POINT]
    assert len(set(points(study.trials))) == 2


@pytest.mark.parametrize("with_baseline", [False, True])
def test_points_that_an_earlier_version_tried_are_not_repeated(space, with_baseline):
    small = space(**SMALL)
    if with_baseline:
        small = replace(small, baseline={"x": 1.0, "y": 5, "z": 2.5})
    study = optuna.create_study(
        sampler=optuna.samplers.GridSampler({n: p.grid(10) for n, p in small.parameters.items()}, seed=5)
    )
    if with_baseline:
        study.enqueue_trial(small.baseline)
    for _ in range(6):
        small.suggest(study.ask())
    for number in range(6, 12 + with_baseline):
        propose(study, small, number)
    assert sorted(points(study.trials[with_baseline:])) == sorted(product([0, 0.5, 1], [1, 5], [2.5, 3.5]))


def test_more_trials_than_points_repeat_points(space):
    study, small = optuna.create_study(), space(**SMALL)
    for number in range(14):
        propose(study, small, number)
    assert len(set(points(study.trials))) == 12
