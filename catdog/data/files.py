"""Write files atomically."""

import os
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content` atomically, also across a power cut. One process at a time may write a path."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
