"""A sweep's ledger is made, checked against what it was made with, and opened again."""

import json
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import optuna

from search.study.confirmation_study import Runs
from search.study.shared_study import RETRY_SECONDS, SEARCH, Ledger, Owner, insisting, locks_of
from search.study.storage import LedgerError, is_passing, note_storage, open_storage
from search.study.sweep import CHOSEN, Sweep, settings_of
from search.study.trials import CONFIRMS, REPEAT
from search.study.warm_start import WARM_START, Earlier

__all__ = ["begun_study", "create_confirmation", "create_ledger", "open_ledger", "require_settings"]


def create_ledger(
    sweep: Sweep,
    settings: Mapping[str, Any],
    on_wait: Callable[[str], None] = lambda _: None,
    earlier: Earlier | None = None,
) -> Ledger:
    """Open the sweep's ledger, making folder and study where there are none, with what an `earlier` sweep found.

    Raises ValueError, naming them, where the ledger was made with other `settings` (JSON-able), and OSError where
    the folder cannot be written.
    """
    settings = _with_earlier(settings, earlier)
    _require_ledger_of_trials(sweep)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    if sweep.storage:
        open_storage(sweep.folder, sweep.storage)  # another Optuna's tables are refused here, in its own words
    storage = open_storage(sweep.folder, sweep.storage, locking=True)
    try:
        study = optuna.create_study(
            study_name=sweep.name, storage=storage, direction=sweep.space.goal.direction, load_if_exists=True
        )
        if sweep.storage:
            note_storage(sweep.folder, sweep.storage)
        with locks_of(sweep, storage, study).exclusively("claim"):
            if not _is_begun(sweep, study):
                study.set_user_attr("uid", study.user_attrs.get("uid", uuid.uuid4().hex))
                if earlier:
                    study.set_user_attr(WARM_START, asdict(earlier))  # it may be deleted, or go on, while this one runs
                study.set_user_attr("settings", dict(settings))
                (sweep.folder / "sweep.json").write_text(json.dumps(settings, indent=2))  # for people; nothing reads it
            else:
                require_settings(sweep, study, settings)
    finally:
        storage.engine.dispose()
    return Ledger(sweep, on_wait)


def begun_study(sweep: Sweep) -> optuna.Study | None:
    """Open the study of a sweep for reading, where one of that name was begun; make nothing. Raises ValueError."""
    _require_ledger_of_trials(sweep)
    if not (sweep.storage or (sweep.folder / "ledger.db").is_file()):
        return None
    try:
        study = optuna.load_study(study_name=sweep.name, storage=open_storage(sweep.folder, sweep.storage))
    except KeyError:
        return None
    return study if _is_begun(sweep, study) else None


def _is_begun(sweep: Sweep, study: optuna.Study) -> bool:
    """Say whether the settings of a study are there to stay."""
    begun = sweep.storage or study.get_trials(deepcopy=False) or study.user_attrs.get(SEARCH)
    return "settings" in study.user_attrs and bool(begun)


def _require_ledger_of_trials(sweep: Sweep) -> None:
    """Raise ValueError where the ledger of trials is gone: a new one would take what they left for its own."""
    left = (path for name in ("history.csv", "checkpoint*") for path in sweep.folder.glob(f"trials/*/{name}"))
    if not sweep.storage and not (sweep.folder / "ledger.db").exists() and any(left):
        raise ValueError(f"{sweep.folder} has trials, but their ledger is gone; put it back, or give another --name")


def _with_earlier(settings: Mapping[str, Any], earlier: Earlier | None) -> Mapping[str, Any]:
    return {**settings, WARM_START: earlier.name} if earlier else settings


def require_settings(
    sweep: Sweep, study: optuna.Study, settings: Mapping[str, Any], earlier: Earlier | None = None
) -> None:
    """Raise ValueError, naming them, where the sweep was made with other settings, or from another `earlier` one."""
    known, settings = settings_of(study), _with_earlier(settings, earlier)
    if changed := [key for key in settings if known.get(key) != settings[key]]:
        differences = ", ".join(_difference(key, known.get(key), settings[key]) for key in changed)
        raise ValueError(f"{sweep.folder} holds a sweep with other settings ({differences}); give another --name")


@insisting
def create_confirmation(ledger: Ledger, num_configurations: int, num_repeats: int) -> Runs:
    """Open the confirmation's part of a ledger, making it where there is none.

    It is to have so many runs of each of the best configurations; those that were made before stay.
    """
    sweep = replace(
        ledger.sweep,
        part="confirmation",
        pruner="none",
        search_id="",
        num_trials=sys.maxsize,  # the choice says which count
        num_confirmed=num_configurations,
        num_repeats=num_repeats,
    )
    study = optuna.create_study(
        study_name=sweep.title, storage=ledger.storage, direction=sweep.space.goal.direction, load_if_exists=True
    )
    with ledger.locks.exclusively("claim"):
        if "uid" not in study.user_attrs:
            study.set_user_attr("uid", uuid.uuid4().hex)
        if CHOSEN not in study.user_attrs:  # of runs that are there none was made ahead
            runs = study.get_trials(deepcopy=False)
            study.set_user_attr(CHOSEN, [[run.user_attrs[CONFIRMS], run.user_attrs[REPEAT]] for run in runs])
    return Runs(sweep, ledger.on_wait)


def open_ledger(sweep: Sweep, owner: Owner) -> Ledger:
    """Open the ledger of a sweep that goes on, for `owner`; wait for it, `sweep.patience` seconds, where it is away."""
    deadline = time.monotonic() + sweep.patience
    while True:
        try:
            return (Ledger if sweep.part == "search" else Runs)(sweep, owner=owner)
        except (OSError, LedgerError) as error:
            cause = error.__cause__ if isinstance(error, OSError) else error
            if not isinstance(cause, Exception) or not is_passing(cause) or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def _difference(key: str, was: Any, now: Any) -> str:
    """Say what changed, entry by entry where a setting has entries."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        changed = [entry for entry in {**was, **now} if was.get(entry) != now.get(entry)]
        return ", ".join(_difference(f"{key}.{entry}", was.get(entry), now.get(entry)) for entry in changed)
    if was is None or now is None:
        return f"{key} is {'new' if was is None else 'gone'}"
    return f"{key} was {_short(was)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
