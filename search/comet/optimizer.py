"""The Comet Optimizer as an Optuna sampler.

Comet stores a search under an id and answers each request for parameters with a ticket: the parameters, and the numbers
under which to report their result. The ticket is stored with the trial, so that another worker can report the result.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from search.comet.client import ServiceDownError, optimizer_api, quiet_client, translated_errors
from shell.redact import redact

PROPOSE_SECONDS, UPDATE_SECONDS = 30.0, 4.0  # time limits: Comet may have to compute a proposal
MAX_REPEATS = 5  # answers in a row that are of no use
TICKET, WAITING = "comet_ticket", "comet_next"  # user attributes: of a trial, and of the study


def create_search(content: Mapping[str, Any], max_combo: int) -> str:
    """Start a search over optimizer.json's `content`; return its id. Raises the errors of `translated_errors`."""
    spec = {**content.get("spec", {}), "maxCombo": max_combo, "retryAssignLimit": 0}
    with translated_errors():
        search = quiet_client().Optimizer({**content, "spec": spec, "verbose": 0})
        return str(search.get_id())


def read_search(search_id: str) -> dict[str, Any]:
    """Return a search as in optimizer.json. Raises ValueError for an unknown id, and as `translated_errors` does."""
    with translated_errors():
        status = dict(optimizer_api(PROPOSE_SECONDS).optimizer_status(search_id))
    if "parameters" not in status:
        raise ValueError(f"Comet knows no search {search_id} ({redact(status.get('message', 'no reason given'))})")
    return {key: status[key] for key in ("algorithm", "name", "trials", "parameters", "spec") if status.get(key)}


class CometSampler(BaseSampler):
    """Proposes the parameters of the Comet Optimizer and reports the results to it."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], search_id: str) -> None:
        self.distributions, self.search_id = dict(distributions), search_id

    def reserve(self, study: optuna.Study) -> bool:
        """Get a ticket before its trial exists; return False when the search is over.

        Raises ServiceDownError; then nothing has changed.
        """
        waiting = study.user_attrs.get(WAITING)
        if waiting and _name(waiting) not in _tickets(study):
            return True
        self.report_left(study)  # bayes proposes from results
        ticket = self._next(study)
        if ticket is not None:
            study.set_user_attr(WAITING, ticket)
        return ticket is not None

    def infer_relative_search_space(self, _: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {} if "fixed_params" in trial.system_attrs else self.distributions  # the baseline is not Comet's

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
        """Report the results that Comet lacks; return how many are still left."""
        done, trials = study.user_attrs, study.get_trials(deepcopy=False)
        finished = [trial for trial in trials if trial.state.is_finished() and TICKET in trial.user_attrs]
        left = [trial for trial in finished if _reported(trial) not in done]
        while left and self._report(study, left[0], left[0].state, left[0].value):
            left.pop(0)
        return len(left)

    def _report(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, value: float | None) -> bool:
        """Report one result. A trial without a score, pruned or failed, is aborted there."""
        if (ticket := trial.user_attrs.get(TICKET)) is None:
            return True
        status, score = ("completed", value) if state == TrialState.COMPLETE else ("aborted", None)
        if not self._send(ticket, status, score):
            return False  # for report_left
        study.set_user_attr(_reported(trial), status)
        return True

    def _send(self, ticket: Mapping[str, Any], status: str, score: float | None) -> bool:
        with suppress(ServiceDownError, ValueError), translated_errors():
            api = optimizer_api(UPDATE_SECONDS)
            api.optimizer_update(self.search_id, ticket["pid"], ticket["trial"], status=status, score=score)
            return True
        return False

    def _next(self, study: optuna.Study) -> dict[str, Any] | None:
        """Ask for a ticket that no trial has and whose parameters fit the space; None when the search is over."""
        for _ in range(MAX_REPEATS):
            with translated_errors():
                answer = optimizer_api(PROPOSE_SECONDS).get_request("next", params={"id": self.search_id})
                if answer["code"] != HTTPStatus.OK:
                    self._check_end(answer)
                    return None
                ticket = {key: answer["parameters"][key] for key in ("pid", "trial", "count", "parameters")}
            if _name(ticket) in _tickets(study):
                continue
            proposed = ticket["parameters"]
            try:
                fitted = {name: _fitted(name, proposed[name], kind) for name, kind in self.distributions.items()}
            except (KeyError, TypeError, ValueError):
                self._send(ticket, "aborted", None)
                continue
            return {**ticket, "parameters": fitted}
        raise ServiceDownError("it repeats proposals that have been tried or lie outside the space")

    def _check_end(self, answer: Mapping[str, Any]) -> None:
        """Return if the search is over. Raises ServiceDownError if it is not."""
        if answer["code"] == HTTPStatus.NO_CONTENT:
            return
        if optimizer_api(PROPOSE_SECONDS).optimizer_status(self.search_id).get("status") != "completed":
            raise ServiceDownError(f"no parameters, code {redact(answer['code'])}")


def _tickets(study: optuna.Study) -> set[tuple[str, int]]:
    trials = study.get_trials(deepcopy=False)
    return {_name(trial.user_attrs[TICKET]) for trial in trials if TICKET in trial.user_attrs}


def _name(ticket: Mapping[str, Any]) -> tuple[str, int]:
    return ticket["pid"], ticket["trial"]


def _reported(trial: FrozenTrial) -> str:
    return f"comet_reported_{trial.number}"


def _fitted(name: str, value: Any, distribution: BaseDistribution) -> Any:
    """Convert a value from Comet to its type in the space, and correct rounding errors at the ends of its range."""
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
