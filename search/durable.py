"""Operations that survive faults: atomic writes of files, retries while a service is unreachable."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PAUSE_SECONDS = 1.0  # before the first retry
T = TypeVar("T")


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666, concurrent: bool = False) -> None:
    """Write a file beside `path` and rename it. `mode`: permissions of a new file, before the umask.

    Set `concurrent` where several processes may write `path` at once: each then writes a partial file of its own.
    """
    owner = f".{os.getpid()}" if concurrent else ""
    partial = path.with_name(f".{path.name}{owner}.partial")
    try:
        partial.touch(mode)
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # the system names none where the content does not fit
        raise


def write_text(path: Path, text: str, *, mode: int = 0o666, concurrent: bool = False) -> None:
    """Write text as UTF-8, as `write_bytes` does. Bytes of file names that are not UTF-8 become escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"), mode=mode, concurrent=concurrent)


def what_blocks(folder: Path) -> str:
    """Return, as a sentence, what stands in the way of a folder; empty if nothing does."""
    others = (path for path in (folder, *folder.parents) if os.path.lexists(path) and not path.is_dir())
    return next((f"{path} is not a folder; move it away" for path in others), "")


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
