"""The environment of every command: interpreter, packages, encoding, standard streams, limits of the system.

run_sweep.py calls `prepare` before it imports anything else; catdog/ and search/ do when one of their modules is run
with `python -m`. Old versions of Python must be able to import this file, to say which version is needed.
"""

import errno
import io
import locale
import os
import resource
import shlex
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)  # version of Python, as in pyproject.toml
WORDS = {  # by error of the system, how libraries and SQLite put it
    errno.EAGAIN: ("can't start new thread",),
    errno.ENOMEM: ("failed to map segment",),
    errno.ENOSPC: ("disk is full",),
    errno.EROFS: ("readonly database",),
    errno.EFBIG: ("disk I/O error",),
}
NUM_FILES = 1024  # that a process may open, where the system allows it


def prepare() -> None:
    """Prepare this process for a command.

    - An old interpreter ends in one sentence, and so does every error of the environment that nothing else catches.
    - Names of files and texts are UTF-8 in every locale.
    - Closed standard streams become /dev/null: otherwise the next file to be opened would take their place.
    - Output replaces characters that the terminal lacks. When nobody reads it any more, the command goes on without.
    """
    if sys.version_info < OLDEST:
        needed = ".".join(map(str, OLDEST))
        sys.exit(f"Python {needed} or newer is needed, this is {sys.version.split()[0]}; {_how_to_start()}")
    from shell.redact import redact_tracebacks  # noqa: PLC0415 - old versions of Python cannot import it

    redact_tracebacks()
    sys.excepthook = _end_in_one_sentence
    _open_closed_streams()
    _use_utf8()
    warnings.filterwarnings("ignore", ".*joblib will operate in serial mode")  # it is refused in a sentence of its own
    sys.stdout, sys.stderr = _writer(1, sys.stdout), _writer(2, sys.stderr)
    with suppress(OSError, ValueError):  # the usual soft limit of macOS is 256
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = NUM_FILES if hard == resource.RLIM_INFINITY else min(hard, NUM_FILES)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def module_command(name: str) -> str:
    """Return the beginning of a command that runs a module of ours from the current directory."""
    if Path("shell").resolve() == ROOT / "shell" and not os.environ.get("PYTHONSAFEPATH"):
        return f"python -m {name}"
    return f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -m {name}"


def is_environments(error: BaseException) -> bool:
    """Return whether the machine, its limits or its installation caused an error: any other work would fail too."""
    if isinstance(error, (OSError, ImportError, UnicodeError)):
        return True
    return isinstance(error, RuntimeError) and bool(remedy_of(error))


def describe(error: BaseException) -> str:
    """Describe an error in one sentence, with the remedy if it is one of the environment, and without secrets."""
    from shell.redact import redact  # noqa: PLC0415 - as in `prepare`

    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        return f"the package {package} is not installed for {sys.executable}; {_how_to_start()}"
    nameless = "not enough memory" if isinstance(error, MemoryError) else type(error).__name__
    text = " ".join(redact(error).split()) or nameless
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    remedy = remedy_of(error)
    return f"{text}; {remedy}" if remedy and remedy not in text else text


def remedy_of(error: BaseException) -> str:
    """Return what to do about an error of the machine or its limits; empty if it is none that is known here."""
    number, text = getattr(error, "errno", None), str(error)
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    for code, remedy in _remedies().items():
        words = (os.strerror(code), *WORDS.get(code, ()))
        if remedy and (number == code or any(word.lower() in text.lower() for word in words)):
            return remedy
    return ""


def _remedies() -> "dict[int, str]":
    """Return what to do about each error of the system. A limit that is not set is not the cause."""
    files, processes, memory, size = (_limit(name) for name in ("NOFILE", "NPROC", "AS", "FSIZE"))
    return {
        errno.EMFILE: f"raise the number of open files, now {files}, for example with: ulimit -n 1024",
        errno.EAGAIN: f"raise the number of processes and threads, now {processes} (ulimit -u), or end some",
        errno.ENOMEM: f"raise the memory of a process, now {memory} bytes (ulimit -v)" if memory else "free memory",
        errno.EFBIG: f"raise the size of files, now {size} bytes (ulimit -f)" if size else "",
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space, or have your quota raised",
        errno.EISDIR: "move that folder away",
        errno.EROFS: "use a folder that can be written",
    }


def _limit(name: str) -> str:
    """Return a limit of this process; empty if there is none."""
    soft = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
    return "" if soft == resource.RLIM_INFINITY else str(soft)


def _how_to_start() -> str:
    """Say how to start this command with an interpreter that has all packages."""
    own, make = ROOT / ".venv/bin/python", f"make -C {shlex.quote(str(ROOT))} .venv/installed"
    if Path(sys.prefix) == ROOT / ".venv":
        return f"remove .venv/installed and run {make}"
    return f"start it with {own}" if own.exists() else f"run {make}, then start it with {own}"


def _end_in_one_sentence(kind: "type[BaseException]", error: BaseException, traceback: "TracebackType | None") -> None:
    """Print an error of the environment as one sentence; the exit status is 1. Other errors are mistakes of ours."""
    from shell.redact import show_traceback  # noqa: PLC0415 - as in `prepare`

    if is_environments(error) or isinstance(error, MemoryError):
        sys.stderr.write(f"{describe(error)}\n")
    else:
        show_traceback(kind, error, traceback)


def _open_closed_streams() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115


def _use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if the locale is not UTF-8, as Python itself does for "C"."""
    own = locale.getpreferredencoding(do_setlocale=False)
    is_utf8 = sys.flags.utf8_mode or own.lower().replace("-", "") == "utf8"
    if is_utf8 or sys.flags.ignore_environment or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ.setdefault("PYTHONIOENCODING", f"{own}:backslashreplace")  # of the terminal
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


class _Stream(io.FileIO):
    """Standard output or standard error, which may lose its reader."""

    def write(self, content: Any) -> int:
        """Write to the stream. After a failure it is /dev/null, also for processes that are started later."""
        try:
            return super().write(content)
        except OSError as error:
            descriptor = self.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)
            if descriptor == 1:
                sys.stderr.write(f"standard output is lost ({error.strerror}); the command goes on without it\n")
            return len(content)


def _writer(descriptor: int, stream: Any) -> io.TextIOWrapper:
    """Return a text stream for a descriptor, with the encoding of the present `stream` if there is one."""
    encoding = (stream and stream.encoding) or "utf-8"
    raw = io.BufferedWriter(_Stream(descriptor, "w", closefd=False))
    is_line_buffered = descriptor == 2 or os.isatty(descriptor)
    return io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=is_line_buffered)
