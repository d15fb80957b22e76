"""Stop the command at Ctrl-C and SIGTERM, but not inside a step that must be completed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_REQUESTED = threading.Event()


def stop_by_signals() -> None:
    """Have Ctrl-C and SIGTERM raise KeyboardInterrupt, at the latest at the next `raise_if_stopped`.

    Python drops exceptions that a handler raises inside a finalizer or a callback of a weak reference.
    """
    STOP_REQUESTED.clear()
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    STOP_REQUESTED.set()
    signal.default_int_handler(number, frame)


def raise_if_stopped() -> None:
    if STOP_REQUESTED.is_set():
        raise KeyboardInterrupt


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Handle signals after the block. They are blocked in this thread and in what it starts; others may get one."""
    received: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in STOP_SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
