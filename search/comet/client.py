"""Comet's client without side effects: no telemetry, no output, its errors translated to ours."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from comet_settings import leave_out_unreadable_files, settings_exist
from search.durable import retry_while_unreachable

# Nothing is sent, printed or patched that we did not ask for: no telemetry, no probes of clouds, no hooks in torch.
ENVIRONMENT = {
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_ERROR_TRACKING_ENABLE": "false",
    "COMET_INTERNAL_REPORTING": "false",
    "COMET_LOGGING_CONSOLE": "CRITICAL",
    "COMET_DISPLAY_SUMMARY_LEVEL": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_TOTAL": "2",  # the next command sends what failed
    "COMET_HTTP_SESSION_RETRY_TOTAL": "2",
    "COMET_TIMEOUT_CLEANING": "15",  # seconds that the end of an experiment waits for its uploads
    "COMET_AUTO_LOG_CODE": "false",
    "COMET_AUTO_LOG_GIT_PATCH": "false",
    "COMET_AUTO_LOG_CLI_ARGUMENTS": "false",
    "COMET_AUTO_LOG_OUTPUT_LOGGER": "",
}
MAX_PAUSE_SECONDS = 60.0  # between two attempts to reach Comet
T = TypeVar("T")


class ServiceDownError(ConnectionError):
    """Comet gives no usable answer at present."""


def quiet_client() -> Any:
    """Import comet_ml without its side effects. Raises ValueError for a setting whose value it refuses."""
    os.environ.update(ENVIRONMENT)
    for name in ("COMET_OPTIMIZER_ID", "COMET_EXPERIMENT_KEY"):  # they would override our arguments
        os.environ.pop(name, None)
    leave_out_unreadable_files()
    from everett import ConfigurationError  # noqa: PLC0415 - comes with comet_ml

    try:
        import comet_ml  # noqa: PLC0415 - takes a second, and few need it
    except ConfigurationError as error:
        names = re.findall(r"COMET_\w+", str(error))
        raise ValueError(f"Comet's client refuses the value of {' '.join(names[-1:])}; correct that setting") from error
    return comet_ml


def has_api_key() -> bool:
    """Say whether an API key is set: in the environment or in a .comet.config."""
    if "COMET_API_KEY" in os.environ:
        return bool(os.environ["COMET_API_KEY"])
    return settings_exist() and bool(api_key())


@cache
def optimizer_api(timeout_seconds: float) -> Any:
    """Return a connection to the Optimizer. The client has no public way to report results without an experiment."""
    quiet_client()
    from comet_ml.connection.connection_factory import get_optimizer_api  # noqa: PLC0415

    api = get_optimizer_api(api_key())
    api.low_level_api_client.default_timeout = timeout_seconds
    return api


def wait_for_comet(ask: Callable[[], T], patience_seconds: float, say: Callable[[str], None]) -> T:
    """Return `ask()`. While Comet is down, retry with growing pauses, for `patience_seconds` at most."""
    was_down = False

    def is_down(error: Exception) -> bool:
        return isinstance(error, ServiceDownError)

    def announce(error: Exception, _: int, pause_seconds: float) -> None:
        nonlocal was_down
        was_down = True
        times = f"asking again in {pause_seconds:.0f} s, giving up after {patience_seconds:.0f} s"
        say(f"Comet does not answer ({error}); {times}")

    try:
        answer = retry_while_unreachable(ask, patience_seconds, is_down, announce, MAX_PAUSE_SECONDS)
    except ServiceDownError as error:
        raise ServiceDownError(f"Comet did not answer for {patience_seconds / 60:.0f} minutes ({error})") from error
    if was_down:
        say("Comet answers again")
    return answer


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the client's errors into one sentence: ServiceDownError, or ValueError where a retry cannot help."""
    from requests import RequestException  # noqa: PLC0415 - comes with comet_ml

    comet_ml = quiet_client()
    try:
        yield
    except comet_ml.exceptions.OptimizerException as error:
        raise ValueError(str(error)) from error
    except RequestException as error:
        status = getattr(error.response, "status_code", None)
        raise ServiceDownError(f"HTTP {status}" if status else type(error).__name__) from error
    except (ValueError, KeyError, TypeError) as error:
        if "COMET_API_KEY" in str(error):
            raise ValueError("Comet refuses the API key; set COMET_API_KEY to one that is valid") from error
        raise ServiceDownError(f"unusable answer: {error}") from error


def api_key() -> str:
    quiet_client()
    from comet_ml.config import get_api_key, get_config  # noqa: PLC0415

    return get_api_key(None, get_config()) or ""
