"""Read the text of optimizer.json, in any encoding of Unicode."""

import errno
import json
import re
from pathlib import Path

from shell.command_line import did_you_mean

MAX_BYTES = 1_000_000


def read_text(path: Path) -> str:
    """Return the text with the line ends of Unix. Raises ValueError, the end of a sentence, if there is none."""
    return _decoded(_content(path))


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"cannot be read ({reason}); {_file_to_name(path, error)}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES:,} bytes; name a search space, which has a few thousand")
    return content


def _file_to_name(path: Path, error: Exception) -> str:
    """Say which file to name instead of one that cannot be read."""
    kind = error.errno if isinstance(error, OSError) else None
    if kind == errno.EISDIR:
        inside = sorted(path.glob("*.json"))
        if inside:
            return f"name a file in it, such as {inside[0]}"
        return f"name the file of a search space, or give --data {path} if it holds images"
    if kind == errno.EACCES:
        return f"make it readable: chmod u+r {path}"
    beside = [str(file) for file in path.parent.glob("*.json")] if kind == errno.ENOENT else []
    return did_you_mean(str(path), beside).removeprefix("; ") or "name an existing search space"


def _decoded(content: bytes) -> str:
    encoding = json.detect_encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8" and not re.search(rb"[\x00-\x08]", content):
            line = content.count(b"\n", 0, error.start) + 1
            raise ValueError(f"line {line} is not UTF-8; save the file with the encoding UTF-8") from error
        raise ValueError("is not text; write it as JSON") from error
    if re.search(r"[\x00-\x08]", text):
        raise ValueError("is not text; write it as JSON")
    return text.replace("\r\n", "\n").replace("\r", "\n")
