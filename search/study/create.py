"""A sweep's study is made, checked against what it was made with, and opened again."""

import json
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import optuna

from search.files import write_text
from search.study.confirmation_study import ConfirmationStudy
from search.study.shared_study import RETRY_SECONDS, SEARCH, Owner, SharedStudy, insisting, locks_of
from search.study.storage import StorageError, is_passing, note_storage, open_storage
from search.study.sweep import CHOSEN, TASK, Sweep, settings_of
from search.study.trials import CONFIRMS, REPEAT
from search.study.warm_start import WARM_START, PriorSweep

__all__ = ["create_confirmation", "create_study", "load_begun_study", "open_shared_study", "require_settings"]


def create_study(
    sweep: Sweep,
    settings: Mapping[str, Any],
    on_wait: Callable[[str], None] = lambda _: None,
    earlier: PriorSweep | None = None,
) -> SharedStudy:
    """Open the sweep's study, making folder and study where there are none, with what an `earlier` sweep found.

    Raises ValueError, naming them, where the study was made with other `settings` (JSON-able), and OSError where
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
                if sweep.task:
                    study.set_user_attr(TASK, sweep.task)
                study.set_user_attr("settings", dict(settings))
                write_text(sweep.folder / "sweep.json", json.dumps(settings, indent=2))  # for people; nothing reads it
            else:
                require_settings(sweep, study, settings)
    finally:
        storage.engine.dispose()
    return SharedStudy(sweep, on_wait)


def load_begun_study(sweep: Sweep) -> optuna.Study | None:
    """Open the study of a sweep for reading, where one of that name was begun; make nothing. Raises ValueError."""
    _require_ledger_of_trials(sweep)
    if not (sweep.storage or (sweep.folder / "study.db").is_file()):
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
    """Raise ValueError where the study of trials is gone: a new one would take what they left for its own."""
    left = (path for name in ("history.csv", "checkpoint*") for path in sweep.folder.glob(f"trials/*/{name}"))
    if not sweep.storage and not (sweep.folder / "study.db").exists() and any(left):
        raise ValueError(f"{sweep.folder} has trials, but their study is gone; put it back, or give another --name")


def _with_earlier(settings: Mapping[str, Any], earlier: PriorSweep | None) -> Mapping[str, Any]:
    return {**settings, WARM_START: earlier.name} if earlier else settings


def require_settings(
    sweep: Sweep, study: optuna.Study, settings: Mapping[str, Any], earlier: PriorSweep | None = None
) -> None:
    """Raise ValueError, naming them, where the sweep was made with other settings, or from another `earlier` one."""
    known, settings = settings_of(study), _with_earlier(settings, earlier)
    if changed := [key for key in settings if known.get(key) != settings[key]]:
        differences = ", ".join(_difference(key, known.get(key), settings[key]) for key in changed)
        raise ValueError(f"{sweep.folder} holds a sweep with other settings ({differences}); give another --name")


@insisting
def create_confirmation(study: SharedStudy, num_configurations: int, num_repeats: int) -> ConfirmationStudy:
    """Open the confirmation's part of a study, making it where there is none.

    It is to have so many runs of each of the best configurations; those that were made before stay.
    """
    sweep = replace(
        study.sweep,
        part="confirmation",
        pruner="none",
        search_id="",
        num_trials=sys.maxsize,  # the choice says which count
        num_confirmed=num_configurations,
        num_repeats=num_repeats,
    )
    runs = optuna.create_study(
        study_name=sweep.title, storage=study.storage, direction=sweep.space.goal.direction, load_if_exists=True
    )
    with study.locks.exclusively("claim"):
        if "uid" not in runs.user_attrs:
            runs.set_user_attr("uid", uuid.uuid4().hex)
        if CHOSEN not in runs.user_attrs:  # of runs that are there none was made ahead
            pairs = [[run.user_attrs[CONFIRMS], run.user_attrs[REPEAT]] for run in runs.get_trials(deepcopy=False)]
            runs.set_user_attr(CHOSEN, pairs)
    return ConfirmationStudy(sweep, study.on_wait)


def open_shared_study(sweep: Sweep, owner: Owner) -> SharedStudy:
    """Open the study of a sweep that goes on, for `owner`; wait for it, `sweep.patience` seconds, where it is away."""
    deadline = time.monotonic() + sweep.patience
    while True:
        try:
            return (SharedStudy if sweep.part == "search" else ConfirmationStudy)(sweep, owner=owner)
        except (OSError, StorageError) as error:
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
