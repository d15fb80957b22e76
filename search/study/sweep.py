"""The description of a sweep. Open its two studies for reading."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from search.comet.optimizer import CometSampler
from search.space.space import Space, derive_seed
from search.study.storage import noted_storage, open_storage
from search.study.trials import CONFIRMS, REPEAT, parameters_of

PrunerName = Literal["hyperband", "median", "none"]

PROMOTION, CANDIDATES, TASK = "promotion", "candidates", "task"  # user attributes of the search's study
CHOSEN = "chosen"  # user attribute of the confirmation's study: trial and repeat of each run that counts


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
    task: str = ""  # import path of the module that promotes trials; search.promote has a default

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def title(self) -> str:
        """Name of this part of the sweep for people, Comet and the storage."""
        return self.name if self.part == "search" else f"{self.name} {self.part}"

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


def load_study(folder: Path) -> optuna.Study:
    """Open the study of the search in `folder` for reading. Raises ValueError if there is none."""
    if not (folder / "study.db").is_file() and not noted_storage(folder):
        raise ValueError(f"{folder} holds no sweep; name one of runs/")
    study = _find(folder.name, folder)
    if study is None or "settings" not in study.user_attrs:
        raise ValueError(f"{folder} holds a sweep that was never begun; start it with run_sweep.py")
    return study


def find_study(sweep: Sweep) -> optuna.Study | None:
    """Open the study of the search for reading; return None if it was not created."""
    is_there = sweep.storage or (sweep.folder / "study.db").is_file()
    return _find(sweep.name, sweep.folder, sweep.storage) if is_there else None


def load_confirmation(folder: Path) -> optuna.Study | None:
    """Open the study of the confirmation in `folder` for reading; return None if it was not created."""
    return _find(f"{folder.name} confirmation", folder)


def _find(title: str, folder: Path, storage: str = "") -> optuna.Study | None:
    try:
        return optuna.load_study(study_name=title, storage=open_storage(folder, storage))
    except KeyError:  # not created: an earlier command may have been killed before that
        return None


def settings_of(study: optuna.Study) -> dict[str, Any]:
    """Return the settings of a sweep. Sweeps without an entry for the baseline began with the baseline."""
    return {"baseline": True, **study.user_attrs.get("settings", {})}
