import signal

import pytest


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder to run in, with SIGTERM as it was afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    yield tmp_path / "home"
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def with_baseline(write_space, photographs):
    """Arguments of a sweep whose first trial is the baseline network."""
    options = ["--image-size", "64", "--epochs", "2", "--name", "small", "--tracking", "off", "--confirm", "0"]
    return [str(write_space()), "--data", str(photographs), "--workers", "1", *options]


@pytest.fixture
def small(with_baseline):
    """Arguments of a sweep of a few seconds."""
    return [*with_baseline, "--no-baseline"]
