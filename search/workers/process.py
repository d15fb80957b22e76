"""The start of a worker process: tie it to its parent before anything slow is imported."""

import ctypes
import os
import signal
import threading
import time
from contextlib import suppress

from shell.redact import redact_tracebacks

PR_SET_PDEATHSIG = 1  # of prctl(2)
CHECK_SECONDS = 0.5  # between two checks whether the parent lives


def initialize(parent: int) -> None:
    """End this process when process `parent` ends. Leave Ctrl-C, sent to the whole process group, to the parent."""
    redact_tracebacks()
    with suppress(OSError, AttributeError):  # Linux only: a stopped process cannot check for its parent
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # it was blocked while this process started


def _exit_with(parent: int) -> None:
    """Exit when the parent has ended: a command that resumes the sweep needs the device."""
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    os._exit(1)
