"""What a sweep is, the storage of its two studies, and what anybody may read from them."""

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

__all__ = [
    "CANDIDATES",
    "CHOSEN",
    "PROMOTION",
    "TASK",
    "Sweep",
    "load_confirmation",
    "load_study",
    "settings_of",
]

PrunerName = Literal["hyperband", "median", "none"]

PROMOTION, CANDIDATES, TASK = "promotion", "candidates", "task"  # user attributes of the search's study
CHOSEN = "chosen"  # user attribute of the confirmation's study: trial and repeat of each run that counts


@dataclass(frozen=True)
class Sweep:
    """What every process of a sweep must know; small enough to be sent to each worker.

    A sweep has two parts, each a study of its own in one study: the search, and the confirmation of its best
    configurations with fresh seeds. The trials of the second are called runs.
    """

    folder: Path  # runs/NAME
    space: Space
    epochs: int  # at most, for each trial
    num_trials: int  # the budget
    pruner: PrunerName
    search_id: str = ""  # of Comet's search, where the Comet Optimizer proposes
    patience: float = 600.0  # seconds to wait while Comet's proposals or the study are out of reach
    storage: str = ""  # the address of the server that holds the study; empty: a file in the folder
    artifacts: str = ""  # where the machines of a sweep exchange files: s3://..., a folder; empty: all see one folder
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
        """What people, Comet and the storage call this part of the sweep."""
        return self.name if self.part == "search" else f"{self.name} {self.part}"

    def sampler(self, number: int) -> BaseSampler:
        """Make the engine that proposes trial `number`."""
        if self.part == "confirmation":
            return RandomSampler()  # never asked: its parameters stand
        if self.search_id:
            return CometSampler(self.space.distributions, self.search_id)
        return self.space.sampler(number)

    def trial_folder(self, number: int) -> Path:
        return self.folder / ("trials" if self.part == "search" else self.part) / f"{number:04}"

    def label(self, trial: FrozenTrial) -> str:
        """Name a trial as people read it."""
        again = trial.user_attrs.get(CONFIRMS)
        return f"trial {trial.number}" if again is None else f"run {trial.number} (trial {again} again)"

    def seed_of(self, trial: FrozenTrial) -> int:
        """Return the seed of a trial, the same each time it is taken up; a run's is one that no trial had."""
        if self.part == "confirmation":
            return derive_seed(self.space.seed, trial.user_attrs[CONFIRMS], trial.user_attrs[REPEAT])
        return int(parameters_of(trial).get("seed", derive_seed(self.space.seed, trial.number)))

    def make_pruner(self) -> BasePruner:
        """Make what decides after each epoch whether a trial goes on."""
        if self.pruner == "hyperband":
            # Once more than a third of the epochs are over, the best third of the trials go on, to their end: the first
            # epoch tells little, and benchmarks/replay.py shows what other settings cost. The last epoch decides
            # nothing, so it makes no bracket: there is one alone, and every trial is decided on.
            fewest = max(2, self.epochs // 3 + 1)
            return HyperbandPruner(min_resource=fewest, max_resource=max(fewest, self.epochs - 1), reduction_factor=3)
        return MedianPruner() if self.pruner == "median" else NopPruner()


def load_study(folder: Path) -> optuna.Study:
    """Open the search's part of the study in `folder` for reading. Raises ValueError where there is none."""
    if not (folder / "study.db").is_file() and not noted_storage(folder):
        raise ValueError(f"{folder} holds no sweep; name one of runs/")
    try:
        study = optuna.load_study(study_name=folder.name, storage=open_storage(folder))
    except KeyError:  # killed before its study was made
        study = None
    if study is None or "settings" not in study.user_attrs:
        raise ValueError(f"{folder} holds a sweep that was never begun; start it with run_sweep.py")
    return study


def load_confirmation(folder: Path) -> optuna.Study | None:
    """Open the confirmation's part of the study in `folder` for reading; None where it was not begun."""
    try:
        return optuna.load_study(study_name=f"{folder.name} confirmation", storage=open_storage(folder))
    except KeyError:
        return None


def settings_of(study: optuna.Study) -> dict[str, Any]:
    """Return what a sweep was made with. Those that do not say whether they began with the baseline did."""
    return {"baseline": True, **study.user_attrs.get("settings", {})}
