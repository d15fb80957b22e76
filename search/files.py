"""Write files atomically: a path holds either its old content or all of the new one."""

import os
from pathlib import Path

__all__ = ["write_bytes", "write_text"]


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
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, mode: int = 0o666, concurrent: bool = False) -> None:
    """Write text as UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode(), mode=mode, concurrent=concurrent)
