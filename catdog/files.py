"""Files that are never half written."""

import os
from pathlib import Path

__all__ = ["write_file"]


def write_file(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either its old bytes or all the new ones, also after a power cut.

    One process at a time may write a path.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
