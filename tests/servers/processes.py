"""What the tests start ends with them, whatever becomes of them; and they wait for events, never for a time.

A process inherits the mark of whoever started it in its environment, where /proc shows it. So all that descends from a
process is found, its grandchildren, what changed its process group, and orphans. `guard` has a process of its own end
what this one left, also when this one is killed; `start` marks a process of its own, for `end`.
"""

import functools
import itertools
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "STARTED_BY"
_started = {}  # what `start` started: process -> its mark
_numbers = itertools.count()


@functools.cache
def guard():
    """Mark all that this process starts from here on, and have it ended when this process has gone."""
    mark = f"{os.environ.get(MARK, '')}{uuid.uuid4().hex}."  # whoever started this process ends all of it too
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    # Its standard input ends with this process. A session of its own: Ctrl-C and signals to the group are not for it.
    command, quiet = [sys.executable, "-S", __file__, mark], subprocess.DEVNULL
    options = {"stdin": subprocess.PIPE, "stdout": quiet, "stderr": quiet, "start_new_session": True}
    os.environ[MARK] = mark
    return subprocess.Popen(command, env=unmarked, **options)  # kept in the cache, as is its end of the pipe


def start(command, *, env=None, **options):
    """Start a process that does not outlive the test, or the `all_ended`, in which it is started."""
    guard()
    mark = f"{os.environ[MARK]}{next(_numbers)}."
    environment = {**(os.environ if env is None else env), MARK: mark}
    process = subprocess.Popen([*map(str, command)], env=environment, **options)
    _started[process] = mark
    return process


def end(*processes):
    """Kill processes that `start` started, with all that descends from them."""
    _kill_marked({_started.pop(process) for process in processes if process in _started})
    for process in processes:
        process.wait()
        for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
            stream.close()


@contextmanager
def all_ended():
    """End what is started within."""
    before = set(_started)
    try:
        yield
    finally:
        end(*(_started.keys() - before))


def wait_until(condition, process=None):
    """Wait for a condition and return what it returns; where a process is to bring it about, not beyond its end.

    As long as it takes: what ends a hang is the time limit of the test (pyproject.toml).
    """
    while True:
        has_ended = process is not None and process.poll() is not None
        if found := condition():
            return found
        assert not has_ended, f"{process.args} ended with status {process.returncode}, and it had not happened"
        time.sleep(0.02)


def is_alive(pid):
    """Say whether a process runs; one that waits for its parent, or for init, to hear of its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _kill_marked(marks):
    """Kill whatever bears one of the marks, or a mark that begins with it, until nothing does."""
    begin = tuple(f"{MARK}={mark}".encode() for mark in marks)
    while begin and (pids := list(_bearers(begin))):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _bearers(begin):
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has gone, or is somebody else's
            if any(entry.startswith(begin) for entry in file.read_bytes().split(b"\0")):
                yield int(file.parent.name)


if __name__ == "__main__":
    sys.stdin.read()
    _kill_marked({sys.argv[1]})
