"""Ask a service again while it is out of reach."""

import math
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["retry_while_unreachable"]

PAUSE_SECONDS = 1.0  # before the first retry
T = TypeVar("T")


def retry_while_unreachable(
    ask: Callable[[], T],
    patience_seconds: float,
    is_passing: Callable[[Exception], bool],
    on_wait: Callable[[Exception, int, float], None] = lambda *_: None,
    max_pause_seconds: float = PAUSE_SECONDS,
) -> T:
    """Return `ask()`. Retry errors that are `is_passing`, for `patience_seconds` after the first, then raise the last.

    Pauses double up to `max_pause_seconds`. `on_wait(error, num_failures, pause_seconds)` is called before each.
    """
    num_failures, pause, deadline = 0, PAUSE_SECONDS, math.inf
    while True:
        try:
            return ask()
        except Exception as error:
            num_failures, deadline = num_failures + 1, min(deadline, time.monotonic() + patience_seconds)
            if not is_passing(error) or time.monotonic() >= deadline:
                raise
            on_wait(error, num_failures, pause)
        time.sleep(pause)
        pause = min(2 * pause, max_pause_seconds)
