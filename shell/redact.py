"""Hide keys and passwords in texts that others wrote: errors of libraries and services, tracebacks."""

import os
import re
import sys
import threading
from traceback import format_exception
from types import TracebackType
from urllib.parse import quote

VARIABLES = (  # of the environment
    "COMET_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "KAGGLE_KEY",
    "KAGGLE_API_TOKEN",
    "PGPASSWORD",
    "CATDOG_AUTH",
)
NUM_SHOWN = 3  # characters of a secret that may be shown: clients print the beginnings of keys
PORT = r"\d{1,5}[/\s,)]"  # in an address without a password
_kept: set[str] = set()


def keep_secret(secret: str | None) -> None:
    """Have `redact` hide a secret of a file or an option."""
    _kept.add(secret or "")


def redact(foreign: object) -> str:
    """Return another's text or error without secrets and their beginnings.

    Not for texts of ours: a password may be a common word.
    """
    text = without_password(str(foreign))
    known = {os.environ.get(name, "") for name in VARIABLES} | _kept
    known |= {secret.partition(":")[2] for secret in known}  # user:password
    known |= {quote(secret, safe="") for secret in known}
    parts = {secret[:length] for secret in known for length in range(len(secret), NUM_SHOWN, -1)}
    for part in sorted((known | parts) - {""}, key=len, reverse=True):
        text = text.replace(part, "***")
    return text


def without_password(text: str) -> str:
    """Hide the passwords in addresses such as scheme://user:password@host and ...?password=..."""
    text = re.sub(rf"(:/{{1,2}}[^:/@\s]*):(?!{PORT})[^@]*(@\S*)?(?=@)", r"\1:***", text)  # a path has one slash
    return re.sub(r"(?i)(?<=password=)[^&\s]*", "***", text)


def redact_tracebacks() -> None:
    """Hide secrets in the tracebacks that this process prints."""
    sys.excepthook = show_traceback
    threading.excepthook = lambda args: show_traceback(args.exc_type, args.exc_value, args.exc_traceback)


def show_traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(format_exception(kind, error, trace))))
