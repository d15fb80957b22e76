"""The files in which Comet's client looks for settings, .env and .comet.config. Other programs write a .env, too."""

import functools
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

UNREADABLE: dict[str, str] = {}  # by path: what is wrong with a file of which Comet's client took nothing


def settings_exist() -> bool:
    """Return whether Comet's client finds a file of settings. Its API key may be in there."""
    home = os.path.expanduser("~/.comet.config")  # noqa: PTH111 - of a Path it raises where there is no home
    paths = os.environ.get("COMET_CONFIG", ""), ".comet.config", ".env", home
    return any(map(os.path.exists, paths))


def leave_out_unreadable_files() -> None:
    """Have Comet's client, if imported after this, do without a file that it cannot read, as if there were none."""
    from everett.ext.inifile import ConfigIniEnv  # noqa: PLC0415 - of Comet's client
    from everett.manager import ConfigEnvFileEnv  # noqa: PLC0415

    for source in (ConfigEnvFileEnv, ConfigIniEnv):
        if not hasattr(source.__init__, "__wrapped__"):
            source.__init__ = _tolerant(source.__init__)


def _tolerant(read: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    @functools.wraps(read)
    def read_if_possible(source: Any, possible_paths: Any) -> None:
        try:
            read(source, possible_paths)
        except Exception as error:  # noqa: BLE001 - each kind of damage has its own; the source is empty then
            if _may_be_for_comet(Path(source.path)):
                problem = f"{source.path}: {_problem(error)}, so Comet's client does without this file"
                UNREADABLE[source.path] = f"{problem}; correct it, or set COMET_API_KEY"
        else:
            if _has_misplaced_key(getattr(source, "cfg", {})):
                problem = f"{source.path} lacks api_key under a line [comet], so Comet's client finds no API key in it"
                UNREADABLE[source.path] = f"{problem}; correct it, or set COMET_API_KEY"

    return read_if_possible


def _has_misplaced_key(values: Mapping[str, Any]) -> bool:
    """Return whether a .comet.config, as the client read it, has an API key, but not in its section [comet]."""
    return "COMET_API_KEY" not in values and any(name.endswith("API_KEY") for name in values)


def _may_be_for_comet(path: Path) -> bool:
    """Return False for a .env that has nothing to do with Comet."""
    with suppress(OSError):
        return path.name != ".env" or b"COMET" in path.read_bytes()
    return True


def _problem(error: Exception) -> str:
    """Say what is wrong, without quoting the file, which may hold an API key."""
    if isinstance(error, OSError):
        return f"it cannot be read ({error.strerror})"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    line = re.search(r"line (\d+)", str(error))
    return f"line {line[1]} cannot be understood" if line else "it cannot be understood"
