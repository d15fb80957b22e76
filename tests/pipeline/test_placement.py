import os

import pytest

from catdog.data.dataset import load_data
from pipeline.cli import parse
from pipeline.placement import count_cores, measure_workers
from pipeline.plan import make_plan
from pipeline.profiling import network_of
from pipeline.task import TrainTrial

TINY = {"stem_width": 2, "body_width": 4, "batch_size": 8}
HOPELESS = {"stem_width": 2, "body_width": 300_000}  # weights of 3 TB


@pytest.fixture
def plan(tmp_path, monkeypatch, write_space, photographs):
    monkeypatch.chdir(tmp_path)
    options = ["--image-size", "64", "--epochs", "4", "--workers-per-device", "auto", "--devices", "cpu"]
    return make_plan(parse([str(write_space()), "--data", str(photographs), *options]), print)


@pytest.mark.slow
def test_workers_are_measured_once_and_share_the_cores(plan):
    networks, said, num_cores = [network_of(TINY), network_of(HOPELESS)], [], count_cores()
    task = TrainTrial(plan.sweep, plan.source, plan.fixed, load_data(plan.source, 64).fingerprint, {})
    slots = measure_workers(task, ["cpu"], networks, plan.limits, said.append, print)
    number = len(slots)
    assert plan.must_measure
    assert said[0] == "workers: measuring how many to run on a device, which takes a while"
    assert said[1] == "workers: 1 per device train 1.00x as fast together as one"
    assert said[-1] == f"workers: {number} on cpu"
    assert [slot.threads for slot in slots] == [num_cores // number] * number
    again = []
    assert measure_workers(task, ["cpu"], networks, plan.limits, again.append, print) == slots
    (cached,) = again
    assert cached.startswith(f"{said[-1]}, as measured before; delete {os.environ['CATDOG_CACHE']}/workers-")
