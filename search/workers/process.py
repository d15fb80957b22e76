"""The first moments of a worker's process: it is watched before anything slow is imported."""

import ctypes
import os
import signal
import threading
import time
from contextlib import suppress

__all__ = ["begin"]

PR_SET_PDEATHSIG = 1  # of prctl(2)
WATCH_SECONDS = 0.5  # how often a worker looks whether its parent lives


def begin(parent: int) -> None:
    """Be a process that lives as long as the parent. Ctrl-C, which reaches the whole process group, is the parent's."""
    with suppress(OSError, AttributeError):  # Linux alone: a process that is stopped cannot look for its parent
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _die_with(parent)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # blocked as this process was started


def _die_with(parent: int) -> None:
    """End this process when its parent has gone: whoever resumes the sweep must find the device idle."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
