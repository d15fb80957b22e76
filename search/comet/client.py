"""Comet's client without side effects: no telemetry, no output, its errors translated to ours."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

from search.durable import retry_while_unreachable
from shell.comet_settings import leave_out_unreadable_files, settings_exist
from shell.redact import keep_secret, redact

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
CHECK_SECONDS = 3.0  # that the first answer may take
REFUSAL = "Comet refuses the API key"
NO_ADDRESS = "COMET_URL_OVERRIDE is no address"
T = TypeVar("T")


class ServiceDownError(ConnectionError):
    """Comet gives no usable answer at present."""


class RefusedError(ValueError):
    """Comet refuses what it is asked for: another attempt cannot help."""


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


def hide_credentials_of_git() -> None:
    """Have experiments name the address of a git remote without its password or token."""
    from comet_ml import git_logging  # noqa: PLC0415

    origin: Callable[[Any], str | None] = git_logging.get_origin_url
    vars(git_logging)["get_origin_url"] = lambda repository: re.sub(r"(?<=://)[^/]*@", "", origin(repository) or "")


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
    """Turn the client's errors into one sentence: ServiceDownError, or RefusedError where a retry cannot help."""
    comet_ml = quiet_client()
    try:
        yield
    except (RefusedError, ServiceDownError):
        raise
    except comet_ml.exceptions.OptimizerException as error:
        raise RefusedError(redact(error)) from error
    except (comet_ml.exceptions.CometException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        fault = describe_fault(error)
        if fault.startswith(REFUSAL):
            raise RefusedError(f"{fault}; set COMET_API_KEY to one that is valid") from error
        if fault == NO_ADDRESS:
            raise RefusedError(f"{fault}; set it to https:// and a host, or leave it out") from error
        raise ServiceDownError(fault) from error


def describe_fault(error: Exception) -> str:
    """Describe an error of the client in words of ours: its own may hold the API key, a page or a traceback."""
    from requests import exceptions  # noqa: PLC0415 - comes with comet_ml

    status, kind = getattr(getattr(error, "response", None), "status_code", HTTPStatus.OK), type(error).__name__
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"{REFUSAL} (HTTP {status:d})"
    if kind == "InvalidAPIKey" or "Invalid COMET_API_KEY" in str(error):
        return REFUSAL
    if isinstance(error, exceptions.InvalidHeader | UnicodeEncodeError):
        return f"{REFUSAL}, which has characters that no key has"
    if status != HTTPStatus.OK:
        return f"HTTP {status}"
    if kind == "InvalidWorkspace":
        return "Comet has no workspace as COMET_WORKSPACE names it"
    host = redact(urlsplit(getattr(getattr(error, "request", None), "url", None) or "").hostname or "Comet")
    words = {
        exceptions.InvalidURL | exceptions.InvalidSchema | exceptions.MissingSchema: NO_ADDRESS,
        exceptions.SSLError: f"the certificate of {host} is not valid",
        exceptions.Timeout: f"{host} gave no answer in time",
        exceptions.ConnectionError: f"no connection to {host}",
        ValueError | LookupError | TypeError | AttributeError: "the answer is not one of Comet's",
    }
    return next((text for kinds, text in words.items() if isinstance(error, kinds)), kind)


def check_comet() -> None:
    """Ask Comet once, for CHECK_SECONDS at most, whether it takes the API key. Raises as `translated_errors` does.

    In a thread, as no option limits the time in which the name of a host is looked up.
    """
    quiet_client()
    faults: SimpleQueue[Exception | None] = SimpleQueue()
    Thread(target=lambda: faults.put(_fault_of_account()), daemon=True).start()
    try:
        fault = faults.get(timeout=CHECK_SECONDS)
    except Empty:
        fault = ServiceDownError("it gave no answer in time")
    if fault:
        raise fault


def _fault_of_account() -> Exception | None:
    """Ask Comet for the account of the API key; return the error, if any."""
    import requests  # noqa: PLC0415 - comes with comet_ml
    from comet_ml.config import get_check_tls_certificate, get_comet_root_url, get_config  # noqa: PLC0415

    try:
        with translated_errors():
            headers, config = {"Authorization": api_key()}, get_config()  # a key may name the host
            url, verify = get_comet_root_url(config).rstrip("/"), get_check_tls_certificate(config)
            url = f"{url}/api/rest/v2/account-details"
            answer = requests.get(url, headers=headers, timeout=CHECK_SECONDS, allow_redirects=False, verify=verify)
            if answer.status_code not in (HTTPStatus.OK, HTTPStatus.TOO_MANY_REQUESTS):
                raise requests.HTTPError(response=answer)
            if answer.ok:
                answer.json()
    except (RefusedError, ServiceDownError) as error:
        return error
    return None


def api_key() -> str:
    quiet_client()
    from comet_ml.config import get_api_key, get_config  # noqa: PLC0415

    key = str(get_api_key(None, get_config()) or "")
    keep_secret(key)
    return key
