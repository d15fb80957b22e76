from dataclasses import replace

import numpy as np
import pytest
from optuna.pruners import ThresholdPruner
from optuna.trial import TrialState

from search.schedule.simulator import SimulatedEpoch, TrialCost, simulate, simulate_confirmation, simulate_search
from tests.servers.counting_sweep import EPOCHS, make_sweep

WHOLE = TrialCost(fixed=2.0, epoch=10.0, epochs=EPOCHS)
GROWING = TrialCost(fixed=2.0, epoch=8.0, epochs=4, shares=[0.25, 0.5, 0.75, 1.0])  # epochs of 2, 4, 6 and 8 s


def playing(sweep, costs, num_workers):
    """Play a sweep through; return its seconds and the trials that were not pruned."""
    values = np.random.default_rng(0).normal(size=(len(costs), EPOCHS + 1)).tolist()
    epochs = list(
        simulate_search(sweep.title, sweep.make_pruner(), costs, lambda trial, n: values[trial][n], num_workers)
    )
    assert [epoch.seconds for epoch in epochs] == sorted(epoch.seconds for epoch in epochs)
    return max(e.seconds for e in epochs) if epochs else 0.0, [
        e.trial for e in epochs if e.state == TrialState.COMPLETE
    ]


@pytest.fixture
def make(tmp_path):
    return lambda number, pruner="none": make_sweep(tmp_path / "runs/one", number, pruner)


def test_workers_take_the_next_trial_when_they_are_free(make):
    long, short = TrialCost(0.0, 30.0, 2), TrialCost(1.0, 9.0, 1)
    assert playing(make(4), [long, short, short, short], 2)[0] == 60
    assert playing(make(4), [long, short, short, short], 1)[0] == 90
    assert playing(make(2), [short, long], 8)[0] == 60
    assert playing(make(0), [], 2) == (0.0, [])


def test_pruner_saves_time_but_never_the_last_epoch(make):
    seconds, complete = playing(make(20), [WHOLE] * 20, 1)
    assert seconds == 20 * 42
    assert sorted(complete) == list(range(20))
    shorter, kept = playing(make(20, "hyperband"), [WHOLE] * 20, 1)
    assert 20 * (2 + 2 * 10) <= shorter < seconds  # two of four epochs before the first decision
    assert 0 < len(kept) < 20
    assert playing(make(20, "hyperband"), [TrialCost(2.0, 10.0, 1)] * 20, 1)[0] == 20 * 12


def test_simulation_draws_the_unknown_trials_and_confirms_the_best(make):
    (only,) = {(d.search, d.confirmation) for d in simulate(make(6), [WHOLE, WHOLE], 2, confirm=3, repeats=2)}
    assert only == (3 * 42, 3 * 42)
    baseline, other = TrialCost(0.0, 1000.0, 1), TrialCost(0.0, 1.0, 1)
    durations = simulate(make(6), [baseline, other], 1, confirm=1, repeats=1)
    assert {d.search for d in durations} == {1005.0}  # the baseline is tried once
    assert {d.confirmation for d in durations} == {1.0, 1000.0}
    assert [d.total for d in durations] == sorted(d.total for d in durations)
    without = replace(make(6), space=replace(make(6).space, baseline=None))
    assert len({d.search for d in simulate(without, [baseline, other], 1, confirm=1, repeats=1)}) > 1
    assert simulate(make(3), [other], 1, confirm=0, repeats=1)[0].total == 3


def test_pruned_trials_of_growing_epochs_cost_the_first_ones_only(make):
    values = [0.0, 9.0, 9.0, 0.0]
    pruner = ThresholdPruner(upper=1.0, n_warmup_steps=2)  # trials 1 and 2, after their second epoch
    epochs = list(simulate_search("growing", pruner, [GROWING] * 4, lambda trial, _: values[trial], 1))
    whole, part = 2 + 2 + 4 + 6 + 8, 2 + 2 + 4
    ends = [(epoch.seconds, epoch.state) for epoch in epochs if epoch.state != TrialState.RUNNING]
    assert ends == [
        (whole, TrialState.COMPLETE),
        (whole + part, TrialState.PRUNED),
        (whole + 2 * part, TrialState.PRUNED),
        (2 * whole + 2 * part, TrialState.COMPLETE),
    ]
    (only,) = {(d.search, d.confirmation) for d in simulate(make(6), [GROWING] * 6, 2, confirm=3, repeats=2)}
    assert only == (3 * whole, 3 * whole)


def test_costly_networks_are_confirmed_more_often_but_not_the_baseline(make):
    small, large = TrialCost(0.0, 1.0, 1), TrialCost(0.0, 10.0, 1)
    durations = simulate(make(9), [large, *[small, large] * 4], 1, confirm=1, repeats=1)
    num_large = sum(d.confirmation == 10 for d in durations)
    assert len(durations) / 2 < num_large < len(durations)
    durations = simulate(make(9), [large, *[small] * 8], 1, confirm=1, repeats=1)
    assert sum(d.confirmation == 10 for d in durations) < len(durations) / 3


def end(seconds, trial, state=TrialState.COMPLETE):
    return SimulatedEpoch(seconds, trial, 1, state)


def test_workers_without_a_trial_confirm_while_the_others_train():
    costs = [TrialCost(0.0, 10.0, 1), TrialCost(0.0, 50.0, 1)]
    ends = [end(10, 0), end(50, 1)]
    assert (
        simulate_confirmation(ends, costs, [0.0, 1.0], 2, confirm=1, repeats=4) == 50
    )  # four runs of 10 beside the last trial
    assert simulate_confirmation(ends, costs, [0.0, 1.0], 2, confirm=1, repeats=6) == 60  # two of six are left
    assert simulate_confirmation(ends, costs, [0.0, 1.0], 2, confirm=0, repeats=1) == 50
    assert (
        simulate_confirmation(ends, costs, [0.0, 1.0], 3, confirm=1, repeats=8) == 50
    )  # one worker had no trial at all
    assert simulate_confirmation([], costs, [], 2, confirm=1, repeats=1) == 0
    failed = [end(10, 0), end(50, 1, TrialState.PRUNED)]
    assert simulate_confirmation(failed, costs, [1.0, 0.0], 2, confirm=1, repeats=4) == 50


def test_run_that_others_displace_costs_its_worker_no_more_than_the_epoch():
    costs = [TrialCost(0.0, 10.0, 10), TrialCost(0.0, 12.0, 1)]
    ends = [end(10, 0), end(25, 1)]
    # Begun at 10, displaced at 25, left at 30; the better one is trained again from 25 to 37, and from 30 to 42.
    assert simulate_confirmation(ends, costs, [1.0, 0.0], 2, confirm=1, repeats=2) == 42
    # Begun at 8, its epochs end at 12, 16, 22 and 30: displaced at 20, it is left at 22; the better one ends at 34.
    costs, ends = [GROWING, TrialCost(0.0, 12.0, 1)], [end(8, 0), end(20, 1)]
    assert simulate_confirmation(ends, costs, [1.0, 0.0], 2, confirm=1, repeats=2) == 34
