"""Create the study of a sweep, check its settings, open it again."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna

from search.durable import retry_while_unreachable, write_text
from search.study.shared_study import COMET_SEARCH, Owner, SharedStudy, locks_of
from search.study.storage import (
    StorageError,
    is_passing,
    note_storage,
    note_study,
    noted_study,
    open_storage,
    study_name_of,
    twin_of,
)
from search.study.sweep import (
    PARTS,
    TASK,
    Sweep,
    comparable_settings,
    find_study,
    load_confirmation,
    numbers_in,
    settings_of,
)
from search.study.warm_start import WARM_START, PriorSweep


def create_study(
    sweep: Sweep,
    settings: Mapping[str, Any],
    on_wait: Callable[[str], None] = lambda _: None,
    prior: PriorSweep | None = None,
) -> SharedStudy:
    """Open the study of a sweep. Create folder and study if there are none, with the results of a `prior` sweep.

    Raises ValueError that names the settings if the study has other `settings` (JSON-able), ValueError if the folder
    holds something else, and OSError if it cannot be written.
    """
    settings = _with_prior(settings, prior)
    _require_own_files(sweep)
    sweep = replace(sweep, study_name=study_name_of(sweep.folder, sweep.storage))
    sweep.folder.mkdir(parents=True, exist_ok=True)
    if sweep.storage:
        open_storage(sweep.folder, sweep.storage)  # raises if another version of Optuna made the tables
    storage = open_storage(sweep.folder, sweep.storage, locking=True)
    direction = sweep.space.goal.direction
    try:
        study = optuna.create_study(
            study_name=sweep.stored_name, storage=storage, direction=direction, load_if_exists=True
        )
        if sweep.storage:
            note_storage(sweep.folder, sweep.storage)
        with locks_of(sweep, storage, study).exclusively("claim"):
            if _is_begun(sweep, study):
                require_settings(sweep, study, settings)
            else:
                _begin(sweep, study, settings, prior)
        if sweep.storage:
            note_study(sweep.folder, sweep.study_name, study.user_attrs["uid"])
    finally:
        storage.engine.dispose()
    return SharedStudy(sweep, on_wait)


def _begin(sweep: Sweep, study: optuna.Study, settings: Mapping[str, Any], prior: PriorSweep | None) -> None:
    """Store what is known of a sweep before its first trial, the settings last."""
    study.set_user_attr("uid", study.user_attrs.get("uid", uuid.uuid4().hex))
    if prior:
        study.set_user_attr(WARM_START, asdict(prior))  # its folder may change while this sweep runs
    if sweep.task:
        study.set_user_attr(TASK, sweep.task)
    study.set_user_attr("settings", dict(settings))
    write_text(sweep.folder / "sweep.json", json.dumps(settings, indent=2))  # for users; no code reads it


def load_begun_study(sweep: Sweep) -> optuna.Study | None:
    """Open the study of a sweep for reading; return None if it was not begun.

    Raises ValueError, and writes nothing, if the folder holds something else than the study and its files.
    """
    _require_own_files(sweep)
    study = find_study(sweep)
    return study if study and _is_begun(sweep, study) else None


def _is_begun(sweep: Sweep, study: optuna.Study) -> bool:
    """Return whether the settings of a study are final."""
    begun = sweep.storage or study.get_trials(deepcopy=False) or study.user_attrs.get(COMET_SEARCH)
    return "settings" in study.user_attrs and bool(begun)


def _require_own_files(sweep: Sweep) -> None:
    """Raise ValueError, which names the way out, if the folder holds files that a sweep would adopt or overwrite."""
    folder, other = sweep.folder, "or give another --name"
    if folder.exists() and (twin := twin_of(folder)):
        raise ValueError(f"{folder} and {twin} have the same study on the server; resume {twin}, {other}")
    numbers = {part: numbers_in(folder / part) for part in PARTS}  # before the study is read: it may grow meanwhile
    studies = {"trials": find_study(sweep), "confirmation": load_confirmation(folder, sweep.storage)}
    search = studies["trials"]
    if not search or "settings" not in search.user_attrs:
        if any(numbers.values()):
            raise ValueError(f"{folder} has trials, but their study is gone; put it back, {other}")
        if strangers := _strangers(folder):
            raise ValueError(f"{folder} is no sweep's folder: it holds {', '.join(strangers)}; move it away, {other}")
    elif (uid := noted_study(folder)[1]) and uid != search.user_attrs.get("uid"):
        what = f"the study {search.study_name} on the server was made anew"
        raise ValueError(f"{what}, and is not that of {folder}; put the former one back, {other}")
    for part, study in studies.items():
        known = len(study.get_trials(deepcopy=False)) if study else 0
        if extra := [number for number in numbers[part] if number >= known]:
            what = f"{folder / part}/{extra[0]:04} is none of the {known} trials in its study"
            raise ValueError(f"{what}; put back the study that has it, move that folder away, {other}")


def _strangers(folder: Path) -> list[str]:
    """Return up to three names of files that no sweep leaves behind before its study exists."""
    ours = ("study.", "storage.txt")
    names = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []
    return [name for name in names if not name.startswith((".", *ours)) and not name.endswith(".lock")][:3]


def _with_prior(settings: Mapping[str, Any], prior: PriorSweep | None) -> Mapping[str, Any]:
    return {**settings, WARM_START: prior.name} if prior else settings


def require_settings(
    sweep: Sweep, study: optuna.Study, settings: Mapping[str, Any], prior: PriorSweep | None = None
) -> None:
    """Raise ValueError that names the differences if the sweep has other settings or another `prior` sweep."""
    known, settings = settings_of(study), comparable_settings(_with_prior(settings, prior))
    changed = [_difference(key, known.get(key), now) for key, now in settings.items() if known.get(key) != now]
    if changed:
        remedy = "give the former settings, or another --name"
        raise ValueError(f"{sweep.folder} holds a sweep with other settings ({', '.join(changed)}); {remedy}")


def open_shared_study(sweep: Sweep, owner: Owner) -> SharedStudy:
    """Open the study of a running sweep for `owner`. Wait up to `sweep.patience` seconds while it is unreachable."""
    return retry_while_unreachable(lambda: SharedStudy(sweep, owner=owner), sweep.patience, _is_away)


def _is_away(error: Exception) -> bool:
    cause = error.__cause__ if isinstance(error, OSError) else error
    return isinstance(error, OSError | StorageError) and isinstance(cause, Exception) and is_passing(cause)


def _difference(key: str, was: Any, now: Any) -> str:
    """Describe a changed setting, entry by entry if it has entries."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        changed = [entry for entry in {**was, **now} if was.get(entry) != now.get(entry)]
        return ", ".join(_difference(f"{key}.{entry}", was.get(entry), now.get(entry)) for entry in changed)
    if was is None or now is None:
        return f"{key} is {'new' if was is None else 'gone'}"
    return f"{key} was {_short(was)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
