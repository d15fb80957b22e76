"""The description of a sweep. Open its two studies for reading."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from search.comet.optimizer import CometSampler
from search.space.schema import comparable
from search.space.space import Space, derive_seed
from search.study.storage import noted_storage, open_storage, studies_in, study_name_of
from search.study.trials import CONFIRMS, REPEAT, parameters_of
from shell.command_line import did_you_mean

RUNS = Path("runs")  # of the current directory
PrunerName = Literal["hyperband", "median", "none"]

# User attributes of the search's study; SHORTFALL: why fewer configurations were confirmed than wanted.
PROMOTION, CANDIDATES, SHORTFALL, TASK = "promotion", "candidates", "shortfall", "task"
CHOSEN = "chosen"  # user attribute of the confirmation's study: trial and repeat of each run that counts


PARTS = ("trials", "confirmation")  # folders of the trials in a sweep's folder


@dataclass(frozen=True)
class Sweep:
    """Everything that the processes of a sweep share; small enough to be sent to each worker.

    A sweep has two parts, each an Optuna study in the same storage: the search, and the confirmation of its best
    configurations with fresh seeds. The trials of the second are called runs.
    """

    folder: Path  # runs/NAME
    space: Space
    epochs: int  # at most, for each trial
    num_trials: int  # the budget
    pruner: PrunerName
    search_id: str = ""  # of Comet's search, where the Comet Optimizer proposes
    patience: float = 600.0  # seconds to wait while Comet or the study is unreachable
    storage: str = ""  # the address of the server that holds the study; empty: a file in the folder
    artifacts: str = ""  # where machines exchange files: s3://... or a folder; empty: all see one folder
    keep: int = 10  # trials whose weights are kept
    part: Literal["search", "confirmation"] = "search"
    num_confirmed: int = 0  # configurations that the confirmation trains again
    num_repeats: int = 0  # runs of each of them
    study_name: str = ""  # of the search in the storage; empty: that of the folder
    task: str = ""  # import path of the module that promotes trials; search.promote has a default

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def title(self) -> str:
        """Name of this part of the sweep for people and Comet."""
        return self.name if self.part == "search" else f"{self.name} {self.part}"

    @property
    def stored_name(self) -> str:
        """Name of this part's study in the storage: that of the sweep's folder when it began."""
        name = self.study_name or self.name
        return name if self.part == "search" else f"{name} {self.part}"

    def sampler(self, number: int) -> BaseSampler:
        """Return the sampler that proposes trial `number`."""
        if self.part == "confirmation":
            return RandomSampler()  # never asked: runs are enqueued with their parameters
        return self.comet_sampler if self.search_id else self.space.sampler(number)

    @property
    def comet_sampler(self) -> CometSampler:
        return CometSampler(self.space.distributions, self.search_id)

    def trial_folder(self, number: int) -> Path:
        return self.folder / ("trials" if self.part == "search" else self.part) / f"{number:04}"

    def label(self, trial: FrozenTrial) -> str:
        """Name a trial as people read it."""
        again = trial.user_attrs.get(CONFIRMS)
        return f"trial {trial.number}" if again is None else f"run {trial.number} (trial {again} again)"

    def seed_of(self, trial: FrozenTrial) -> int:
        """Return the seed of a trial, the same after a resume. A run has a seed that no trial had."""
        if self.part == "confirmation":
            return derive_seed(self.space.seed, trial.user_attrs[CONFIRMS], trial.user_attrs[REPEAT])
        return int(parameters_of(trial).get("seed", derive_seed(self.space.seed, trial.number)))

    def make_pruner(self) -> BasePruner:
        """Return the pruner, which decides after each epoch whether a trial continues."""
        if self.pruner == "hyperband":
            # After more than a third of the epochs, the best third of the trials continue to the end: the first epoch
            # says little, and benchmarks/replay.py compares other settings. `max_resource` leaves out the last epoch,
            # which decides nothing: so there is one bracket alone, and the pruner decides about every trial.
            fewest = max(2, self.epochs // 3 + 1)
            return HyperbandPruner(min_resource=fewest, max_resource=max(fewest, self.epochs - 1), reduction_factor=3)
        return MedianPruner() if self.pruner == "median" else NopPruner()


def find_sweep(name: str) -> Path:
    """Return the folder of the sweep that a user named, by its path or by its name in runs/.

    Raises ValueError, which says where the sweep was looked for and which ones are there.
    """
    if not name.strip():
        raise ValueError(f"no sweep is named; name one of {_sweeps_in(RUNS)}")
    named = Path(os.path.normpath(name))
    folders = [RUNS / named, named] if name == named.name else [named, RUNS / named]
    found = next((folder for folder in folders if _is_sweep(folder)), None)
    if found is None:
        raise ValueError(_no_sweep(*folders))
    return found if found.name not in ("", "..") else found.resolve()


def load_study(folder: Path) -> optuna.Study:
    """Open the study of the search in `folder` for reading. Raises ValueError if there is none."""
    if not _is_sweep(folder):
        raise ValueError(_no_sweep(folder))
    study = _find(folder)
    if study and "settings" in study.user_attrs:
        return study
    if numbers_in(folder / "trials"):
        raise ValueError(f"{folder} has trials, but their study is gone; put it back")
    raise ValueError(f"{folder} holds a sweep that was never begun; start it with run_sweep.py")


def _is_sweep(folder: Path) -> bool:
    return holds_study(folder) or bool(numbers_in(folder / "trials"))


def _no_sweep(*folders: Path) -> str:
    """Say that none of `folders`, which a name may mean, is a sweep's; name the sweep around it, or those near it."""
    folder = next((folder for folder in folders if folder.exists()), folders[0])
    above = (*folder.parents, *folder.absolute().parents) if folder.exists() else ()
    if around := next((path for path in above if path.name not in ("", "..") and _is_sweep(path)), None):
        return f"{folder} is inside the sweep {around}; name that"
    near = (folder.parent, folder) if folder.name else (folder, RUNS)
    place = next((path for path in near if path.name == RUNS.name or _names_in(path)), RUNS)
    return f"{folder} holds no sweep; name one of {_sweeps_in(place, folder.name)}"


def _sweeps_in(place: Path, word: str = "") -> str:
    """Name a folder of sweeps, and those in it, or the one whose name is most like `word`."""
    there = _names_in(place)
    those = ", ".join(there[:10]) or "none: runs/ belongs to the folder in which run_sweep.py was started"
    where = f"{place}/" if place.is_absolute() else f"{place}/ in {Path.cwd()}"
    return where + (did_you_mean(word, there) or f" ({those})")


def _names_in(place: Path) -> list[str]:
    return sorted(path.name for path in place.glob("*") if _is_sweep(path))


def find_study(sweep: Sweep) -> optuna.Study | None:
    """Open the study of the search for reading; return None if it was not created."""
    return _find(sweep.folder, sweep.storage)


def load_confirmation(folder: Path, storage: str = "") -> optuna.Study | None:
    """Open the study of the confirmation in `folder` for reading; return None if it was not created."""
    return _find(folder, storage, " confirmation")


def holds_study(folder: Path) -> bool:
    return (folder / "study.db").is_file() or bool(noted_storage(folder))


def numbers_in(trials: Path) -> list[int]:
    """Return the numbers of the trials that have files, in the folder of one part of a sweep."""
    files = (path for path in trials.glob("[0-9][0-9][0-9][0-9]*/*") if not path.name.endswith("lock"))
    return sorted({int(path.parent.name) for path in files if path.parent.name.isdecimal()})


def _find(folder: Path, storage: str = "", part: str = "") -> optuna.Study | None:
    title = study_name_of(folder, storage) + part
    if not (storage or noted_storage(folder) or title in studies_in(folder / "study.db")):
        return None  # to open the storage would create it
    try:
        return optuna.load_study(study_name=title, storage=open_storage(folder, storage))
    except KeyError:  # not created: an earlier command may have been killed before that
        return None


def settings_of(study: optuna.Study) -> dict[str, Any]:
    """Return the settings of a sweep. Sweeps without an entry for the baseline began with the baseline."""
    return {"baseline": True, **comparable_settings(study.user_attrs.get("settings", {}))}


def comparable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which equal parameters are equal, however their file wrote them."""
    same = {"parameters": comparable(settings["parameters"])} if "parameters" in settings else {}
    return {**settings, **same}
