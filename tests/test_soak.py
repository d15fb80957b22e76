"""A few faults of tests/soak, each time others; `make soak` has hundreds."""

import time

from tests.soak.__main__ import soak


def test_random_faults_cost_no_trial(tmp_path):
    faults = soak(tmp_path, faults=3, trials=5, workers=2, each=3, seed=time.time_ns() % 2**32)
    assert 0 < faults.total() <= 3
