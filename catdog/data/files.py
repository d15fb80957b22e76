"""Write files atomically; list their names."""

import os
from collections.abc import Iterable
from pathlib import Path

from shell.command_line import printable


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content` atomically, also across a power cut. One process at a time may write a path."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = str(path)  # the system names none where the content does not fit
        raise
    finally:
        partial.unlink(missing_ok=True)


def shorten(names: Iterable[str], shown: int) -> str:
    """Join names for display, the first `shown` of them."""
    texts = [printable(name) for name in names]
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + more
