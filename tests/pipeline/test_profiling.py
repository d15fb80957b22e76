import os
import subprocess
import sys

import pytest
from optuna.trial import create_trial

from pipeline.profiling import Profile, private_memory, rate_of


def rows_of(seconds, ended):
    return [{"seconds": seconds, "ended": moment, "device_free": 0, "device_total": 0} for moment in ended]


def profile_of(networks, rows, attributes=({},), memory=0):
    trials = [create_trial(value=0.0, user_attrs=dict(entries)) for entries in attributes]
    return Profile(0.0, 1.0, 8, networks, trials, rows, memory)


def test_rate_is_that_of_the_epochs_in_which_all_worked():
    late = [*rows_of(1.0, [5]), *rows_of(2.0, [7, 9, 11])]
    early = [*rows_of(9.0, [1, 2, 3, 4]), *rows_of(4.0, [8])]
    assert rate_of(profile_of([1, 1], [early, late]), [1]) == pytest.approx(1 / 4 + 1 / 2)
    alone = rows_of(0.5, [1, 2, 3])
    assert rate_of(profile_of([1, 1, 2], [early, late, alone]), [1, 2]) == pytest.approx((0.75 * 2) ** 0.5)


def test_network_without_memory_beside_others_is_a_fault_though_it_was_trained_in_the_end():
    rows = [rows_of(1.0, [1, 2])] * 2 + [[]]
    attributes = [{}, {"last_words": ["worker", "out of memory", True]}, {"reason": "RuntimeError: too large"}]
    faults = {2: "out of memory", 3: "RuntimeError: too large"}
    assert profile_of([1, 2, 3], rows, attributes).faults == faults


@pytest.mark.parametrize(
    ("total", "free", "memory", "is_room"),
    [
        (80e9, 60e9, 0, True),
        (80e9, 30e9, 0, False),
        (80e9, 60e9, 10**15, False),
        (0, 0, 1, True),
        (0, 0, 10**15, False),
    ],
    ids=["GPU", "full GPU", "GPU in a full machine", "CPU", "full CPU"],
)
def test_more_workers_are_tried_where_as_much_memory_is_left(total, free, memory, is_room):
    row = {"device_free": free, "device_total": total}
    assert profile_of([1], [[row, row]], memory=memory).leaves_room == is_room


def test_private_memory_is_that_of_all_processes():
    before = private_memory(os.getpid())
    code = "import sys; data = bytearray(200 * 2**20); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        own, all_together = private_memory(process.pid), private_memory(os.getpid())
        process.stdin.close()
    assert 200 * 2**20 < own < 300 * 2**20
    assert all_together > before + 190 * 2**20
    assert private_memory(process.pid) == 0
