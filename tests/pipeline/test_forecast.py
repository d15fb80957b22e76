from dataclasses import replace
from pathlib import Path

import pytest

from catdog.data.dataset import load_data
from pipeline.cli import parse
from pipeline.forecast import Forecast, describe_forecast, forecast
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


def test_what_a_sweep_costs_is_said_in_a_few_sentences(plan):
    outlook = Forecast(190.0, 140.0, 40.0, 160.0, 230.0, 2_100_000_000, {}, ())
    (first, second) = describe_forecast(outlook, plan)
    assert first == (
        "expected: about 3 min 10 s on this worker (trials 2 min 20 s, confirmation 0 min 40 s more, "
        "start and end 0 min 10 s); peak memory about 2.1 GB"
    )
    assert second.startswith(
        "in 8 of 10 sweeps 2 min 40 s to 3 min 50 s: it depends on the trials that the pruner stops"
    )
    greedy = replace(outlook, memory=10**15, faults=("RuntimeError: too large",))
    *_, fault, memory = describe_forecast(greedy, replace(plan, confirm=0, engine="comet", slots=plan.slots * 2))
    assert fault == "note: a network could not be profiled: RuntimeError: too large"
    assert memory.startswith("note: that is more than the ")
    assert memory.endswith("use fewer --workers or a smaller --image-size")
