from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState, create_trial

from catdog.data.dataset import load_data
from pipeline.cli import parse
from pipeline.forecast import Forecast, NetworkCost, _cost, _whole_cost, describe_forecast, forecast
from pipeline.plan import make_plan

TINY = {"stem_width": 2, "body_width": 4, "batch_size": 8}
HOPELESS = {"stem_width": 2, "body_width": 300_000}  # weights of 3 TB


@pytest.fixture
def plan(tmp_path, monkeypatch, write_space, photographs):
    monkeypatch.chdir(tmp_path)
    options = ["--image-size", "64", "--epochs", "4", "--workers", "1", "--tracking", "off", "--confirm", "1"]
    return make_plan(parse([str(write_space()), "--data", str(photographs), *options]), print)


@pytest.mark.slow
def test_each_network_is_profiled_once_and_one_that_does_not_fit_is_no_obstacle(plan):
    before, shown = {*Path().iterdir(), Path("cache")}, []
    proposals = [TINY, HOPELESS, {**TINY, "learning_rate": 0.002}]
    outlook = forecast(plan, load_data(plan.source, 64), proposals, shown.append)
    assert shown[-1] == "profiling networks: 2 of 2"
    assert len(outlook.faults) == 1
    assert "allocate" in outlook.faults[0]
    assert 0 < outlook.low <= outlook.seconds <= outlook.high
    assert outlook.search + outlook.confirmation < outlook.seconds
    assert outlook.search > outlook.confirmation > 0  # three trials, two runs
    assert 200e6 < outlook.memory < 3e9  # this process and a worker
    assert set(Path().iterdir()) == before


def test_training_and_what_follows_it_are_measured_apart():
    trial = create_trial(state=TrialState.COMPLETE, value=1.0)
    trial.datetime_start = datetime.now()  # noqa: DTZ005 - as Optuna does
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=20)
    # Epochs of 2 s to train, 1 s to validate and 0.5 s for files; the first one counts for nothing else.
    rates = [1.0, 32.0, 32.0]
    epochs = [
        {"images_per_second": rate, "seconds": 3.0, "ended": 100 + 3.5 * number} for number, rate in enumerate(rates)
    ]
    data = SimpleNamespace(training=range(640), validation=range(100))
    assert _cost(trial, epochs, data, 64, 50) == NetworkCost(fixed=20 - 3 * 3.5, training=20.0, rest=2.5)


def test_only_training_is_cheaper_where_images_grow(plan):
    network = NetworkCost(fixed=1.0, training=8.0, rest=2.0)
    parameters = {"body_repeats": 2, "global_pool": "true", "start_scale": 0.5}
    growing = _whole_cost(network, parameters, plan)  # images of 32, 48, 64 and 64 pixels
    assert [growing.seconds_of(number) for number in range(1, 5)] == [8 * 0.25 + 2, 8 * 0.5625 + 2, 10, 10]
    assert (growing.fixed, growing.epoch, growing.epochs) == (1, 10, 4)
    fixed = _whole_cost(network, TINY, plan)
    assert [fixed.seconds_of(number) for number in range(1, 5)] == [10] * 4


def test_what_a_sweep_costs_is_said_in_a_few_sentences(plan):
    outlook = Forecast(190.0, 140.0, 40.0, 160.0, 230.0, 2_100_000_000, {}, ())
    (first, second) = describe_forecast(outlook, plan)
    assert first == (
        "expected: about 3 min 10 s on this worker (trials 2 min 20 s, confirmation 40 s more, "
        "start and end 10 s); peak memory about 2.1 GB"
    )
    assert second.startswith(
        "in 8 of 10 sweeps 2 min 40 s to 3 min 50 s: it depends on the trials that the pruner stops"
    )
    greedy = replace(outlook, memory=10**15, faults=("RuntimeError: too large",))
    *_, fault, memory = describe_forecast(greedy, replace(plan, confirm=0, engine="comet", slots=plan.slots * 2))
    assert fault == "note: a network could not be profiled: RuntimeError: too large"
    assert memory.startswith("note: that is more than the ")
    assert memory.endswith("use fewer --workers or a smaller --image-size")
