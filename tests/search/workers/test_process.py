import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.servers.processes import all_ended, is_alive, start, wait_until

# A process that starts another one, in a session of its own, that ignores every signal that can be ignored; one of both
# says the other's number.
FAMILY = """
import subprocess, sys, time
ignore = "import signal, time; [signal.signal(number, signal.SIG_IGN) for number in (1, 2, 13, 15)]"
child = ignore + "; print(flush=True); time.sleep(1e6)"
started = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
started.stdout.readline()
print(started.pid, flush=True)
{then}
"""
WAITS, ENDS = "time.sleep(1e6)", ""


def family(then):
    process = start([sys.executable, "-c", FAMILY.format(then=then)], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("then", [WAITS, ENDS], ids=["with its parent", "as an orphan"])
def test_process_that_is_left_ends_with_what_started_it(then):
    with all_ended():
        process, child = family(then)
        assert is_alive(child)
    assert process.returncode is not None
    assert not is_alive(child)


CONFTEST = """
import pytest

from tests.servers.processes import all_ended, guard

guard()

@pytest.fixture(autouse=True)
def _nothing_runs_on():
    with all_ended():
        yield
"""
TESTS = """
import sys, time
from pathlib import Path

import pytest

from tests.servers.processes import is_alive, start

@pytest.fixture
def set_up():
    process = start([sys.executable, "-c", "import time; time.sleep(1e6)"])
    Path("pid.partial").write_text(str(process.pid))
    Path("pid.partial").rename("pid")
    time.sleep(1e6)

def test_that_hangs(set_up):
    pass

def test_after_it():
    assert not is_alive(Path("pid").read_text())
"""


@pytest.fixture(params=[(), ("-n", "1")], ids=["alone", "with xdist"])
def hanging(request, tmp_path):
    """Pytest with a test whose set-up hangs, after it started a process: pytest's process, and that one's number."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hanging.py").write_text(TESTS)
    options = ["-s", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, *request.param]
    command = [sys.executable, "-m", "pytest", *options, "test_hanging.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = start(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    wait_until((tmp_path / "pid").exists, process)
    return process, int((tmp_path / "pid").read_text())


def runner_of(pid):
    """The process that runs the test: the parent of what it started."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_time_limit_ends_what_the_test_started_and_the_next_test_goes_on(hanging):
    process, started = hanging
    os.kill(runner_of(started), signal.SIGALRM)  # as the limit does when it is reached
    said = process.communicate()[0]
    assert "Failed: Timeout" in said
    assert "1 passed, 1 error" in said
    assert not is_alive(started)


def test_what_a_test_started_ends_when_its_runner_is_killed(hanging):
    process, started = hanging
    os.kill(runner_of(started), signal.SIGKILL)
    wait_until(lambda: not is_alive(started))
    assert process.wait()
