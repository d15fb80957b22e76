"""The Comet Optimizer as an Optuna sampler, and the quiet client that everything of Comet here goes through.

Comet keeps a search under an id; whoever knows the id asks for the next parameters, and each answer is a ticket: the
parameters and what to report the result under. A ticket is kept with its trial, so a trial that is taken up again
reports under the ticket it had.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

__all__ = [
    "ENVIRONMENT",
    "CometSampler",
    "ServiceDownError",
    "create_search",
    "has_api_key",
    "patiently",
    "quiet_client",
    "read_search",
]

# Nothing is sent, printed or patched that we did not ask for: no telemetry, no probes of clouds, no hooks in torch.
ENVIRONMENT = {
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_ERROR_TRACKING_ENABLE": "false",
    "COMET_INTERNAL_REPORTING": "false",
    "COMET_LOGGING_CONSOLE": "CRITICAL",
    "COMET_DISPLAY_SUMMARY_LEVEL": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_TOTAL": "2",  # we come back to what could not be sent
    "COMET_HTTP_SESSION_RETRY_TOTAL": "2",
    "COMET_TIMEOUT_CLEANING": "15",  # seconds to wait at the end for what is still to be sent
    "COMET_AUTO_LOG_CODE": "false",
    "COMET_AUTO_LOG_GIT_PATCH": "false",
    "COMET_AUTO_LOG_CLI_ARGUMENTS": "false",
    "COMET_AUTO_LOG_OUTPUT_LOGGER": "",
}
SECONDS_FOR_NEXT, SECONDS_FOR_UPDATE = 30.0, 4.0  # a proposal may have to be thought out; a result is only taken
MAX_REPEATS = 5  # answers in a row that hand out what a trial holds already
T = TypeVar("T")
TICKET, WAITING = "comet_ticket", "comet_next"  # user attributes: of a trial, and of the study


class ServiceDownError(ConnectionError):
    """Comet gives no usable answer at present."""


def quiet_client() -> Any:
    """Import comet_ml so that it does nothing of its own accord."""
    os.environ.update(ENVIRONMENT)
    for name in ("COMET_OPTIMIZER_ID", "COMET_EXPERIMENT_KEY"):  # they would override what we pass
        os.environ.pop(name, None)
    import comet_ml  # noqa: PLC0415 - takes a second, and few need it

    return comet_ml


def has_api_key() -> bool:
    """Say whether Comet's users' ways of setting an API key hold one: environment or a .comet.config."""
    places = [Path(os.environ.get("COMET_CONFIG", ".comet.config")), Path(".env"), Path.home() / ".comet.config"]
    if "COMET_API_KEY" in os.environ:
        return bool(os.environ["COMET_API_KEY"])
    return any(place.is_file() for place in places) and bool(_key())


def create_search(content: Mapping[str, Any], max_combo: int) -> str:
    """Have Comet begin a search over `content` (optimizer.json) for at most `max_combo` proposals; return its id.

    Raises ValueError for what Comet refuses and ServiceDownError where it does not answer.
    """
    spec = {**content.get("spec", {}), "maxCombo": max_combo, "retryAssignLimit": 0}
    with _faults():
        search = quiet_client().Optimizer({**content, "spec": spec, "verbose": 0})
        return str(search.get_id())


def read_search(search_id: str) -> dict[str, Any]:
    """Return the search of that id as an optimizer.json would hold it.

    Raises ValueError where Comet knows none and ServiceDownError where it does not answer.
    """
    with _faults():
        status = _api(SECONDS_FOR_NEXT).optimizer_status(search_id)
    if "parameters" not in status:
        raise ValueError(f"Comet knows no search {search_id} ({status.get('message', 'no reason given')})")
    return {key: status[key] for key in ("algorithm", "name", "trials", "parameters", "spec") if status.get(key)}


def patiently(ask: Callable[[], T], patience: float, say: Callable[[str], None]) -> T:
    """Return what `ask` returns, asking again in growing pauses while Comet is down, for `patience` seconds at most."""
    began, pause = time.monotonic(), 1.0
    while True:
        try:
            answer = ask()
        except ServiceDownError as error:
            if time.monotonic() - began >= patience:
                raise ServiceDownError(f"Comet did not answer for {patience / 60:.0f} minutes ({error})") from error
            say(f"Comet does not answer ({error}); asking again in {pause:.0f} s, giving up after {patience:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, 60.0)
        else:
            if pause > 1:
                say("Comet answers again")
            return answer


class CometSampler(BaseSampler):
    """Proposes what the Comet Optimizer proposes, and tells it the results."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], search_id: str) -> None:
        self.distributions = dict(distributions)
        self.search_id = search_id

    def reserve(self, study: optuna.Study) -> bool:
        """Have the next trial's parameters handed out, before that trial exists; False when the search is over.

        Raises ServiceDownError, and nothing has changed.
        """
        if self._reserved(study):
            return True
        self.report_left(study)  # bayes proposes from results
        ticket = self._next(study)
        if ticket is not None:
            study.set_user_attr(WAITING, ticket)
        return ticket is not None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        del study
        return {} if "fixed_params" in trial.system_attrs else self.distributions  # the baseline is ours

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        ticket = trial.user_attrs.get(TICKET)
        if ticket is None:
            if not self.reserve(study):
                raise RuntimeError("Comet's search is over")
            ticket = study.user_attrs[WAITING]
            study._storage.set_trial_user_attr(trial._trial_id, TICKET, ticket)
        return {name: ticket["parameters"][name] for name in search_space}

    def sample_independent(self, *_: object) -> Any:
        raise RuntimeError("the Comet Optimizer proposes all parameters at once")

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._report(study, trial, state, values[0] if values else None)

    def report_left(self, study: optuna.Study) -> int:
        """Report results that Comet has not taken yet; return how many it still has not."""
        done = study.user_attrs
        left = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.state.is_finished() and TICKET in trial.user_attrs and _reported(trial) not in done
        ]
        while left and self._report(study, left[0], left[0].state, left[0].value):
            left.pop(0)
        return len(left)

    def _report(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, value: float | None) -> bool:
        """Tell Comet one result. A trial that has no score of its own, pruned or failed, is aborted there."""
        if (ticket := trial.user_attrs.get(TICKET)) is None:
            return True
        status, score = ("completed", value) if state == TrialState.COMPLETE else ("aborted", None)
        if not self._send(ticket, status, score):
            return False  # report_left comes back to it
        study.set_user_attr(_reported(trial), status)
        return True

    def _send(self, ticket: Mapping[str, Any], status: str, score: float | None) -> bool:
        try:
            with _faults():
                api = _api(SECONDS_FOR_UPDATE)
                api.optimizer_update(self.search_id, ticket["pid"], ticket["trial"], status=status, score=score)
        except (ServiceDownError, ValueError):
            return False
        return True

    def _reserved(self, study: optuna.Study) -> dict[str, Any] | None:
        """Return what was handed out and taken by no trial."""
        ticket: dict[str, Any] | None = study.user_attrs.get(WAITING)
        return None if ticket is None or _name(ticket) in _tickets(study) else ticket

    def _next(self, study: optuna.Study) -> dict[str, Any] | None:
        """Ask for a ticket whose parameters fit the space and that no trial holds; None when there are no more."""
        for _ in range(MAX_REPEATS):
            with _faults():
                answer = _api(SECONDS_FOR_NEXT).get_request("next", params={"id": self.search_id})
                if answer["code"] != HTTPStatus.OK:
                    self._check_end(answer)
                    return None
                ticket = {key: answer["parameters"][key] for key in ("pid", "trial", "count", "parameters")}
            if _name(ticket) in _tickets(study):
                continue
            try:
                proposed = ticket["parameters"]
                ticket["parameters"] = {
                    name: _fitted(name, proposed[name], d) for name, d in self.distributions.items()
                }
            except (KeyError, TypeError, ValueError):
                self._send(ticket, "aborted", None)
                continue
            return ticket
        raise ServiceDownError("it hands out again and again what has been tried or lies outside the space")

    def _check_end(self, answer: Mapping[str, Any]) -> None:
        """Return where the search is over; raise what `_faults` takes for a fault where it only does not answer."""
        if answer["code"] == HTTPStatus.NO_CONTENT:
            return
        if _api(SECONDS_FOR_NEXT).optimizer_status(self.search_id).get("status") != "completed":
            raise ValueError(f"no parameters, code {answer['code']}")


@cache
def _api(seconds: float) -> Any:
    """Return the client's connection to the Optimizer. There is no public way to report without an experiment."""
    quiet_client()
    from comet_ml.connection.connection_factory import get_optimizer_api  # noqa: PLC0415

    api = get_optimizer_api(_key())
    api.low_level_api_client.default_timeout = seconds
    return api


def _key() -> str:
    quiet_client()
    from comet_ml.config import get_api_key, get_config  # noqa: PLC0415

    return get_api_key(None, get_config()) or ""


@contextmanager
def _faults() -> Iterator[None]:
    """Turn what the client raises into one sentence: ServiceDownError, or ValueError where asking again is no use."""
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
        raise ServiceDownError(f"an answer that makes no sense: {error}") from error


def _tickets(study: optuna.Study) -> set[tuple[str, int]]:
    trials = study.get_trials(deepcopy=False)
    return {_name(trial.user_attrs[TICKET]) for trial in trials if TICKET in trial.user_attrs}


def _name(ticket: Mapping[str, Any]) -> tuple[str, int]:
    return ticket["pid"], ticket["trial"]


def _reported(trial: FrozenTrial) -> str:
    return f"comet_reported_{trial.number}"


def _fitted(name: str, value: Any, distribution: BaseDistribution) -> Any:
    """Give a value from Comet the type that the space has, and the rounding error of its ends back."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            for choice in choices:
                if choice == value or str(choice) == str(value):
                    return choice
        case IntDistribution(low=low, high=high, step=step):
            nearest = low + step * round((float(value) - low) / step)
            if low <= nearest <= high:
                return nearest
        case FloatDistribution(low=low, high=high):
            inside = min(max(float(value), low), high)
            if math.isclose(inside, float(value), rel_tol=1e-6, abs_tol=1e-9):
                return inside
    raise ValueError(f"Comet proposed {value!r} for {name}, which is outside its range")
