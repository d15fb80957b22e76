"""Read a sweep's study once, for all parts of its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from search.analysis.confirmation import Candidate
from search.analysis.ranking import Ranked, rank, winner_of
from search.space.space import Goal
from search.study.sweep import CANDIDATES, CHOSEN, PROMOTION, SHORTFALL, load_confirmation, load_study, settings_of
from search.study.trials import counted


@dataclass(frozen=True)
class Record:
    """The state of a sweep at one moment."""

    folder: Path
    goal: Goal
    baseline: bool  # whether trial 0 is the baseline
    trials: Sequence[FrozenTrial]
    runs: Sequence[FrozenTrial]  # of the confirmation
    counted: Sequence[FrozenTrial]  # the chosen ones among the runs
    ranking: Sequence[Ranked]
    candidates: Sequence[Candidate]  # the winner first
    shortfall: str  # why fewer configurations were confirmed than wanted
    promotions: Mapping[str, Mapping[str, Any]]  # by weights: the outcome of the last attempt to promote them

    @property
    def leader(self) -> str:
        """Return the title of the best trial."""
        return "winner" if self.candidates else "best so far"

    @property
    def winner(self) -> int | None:
        """Return the number of the best trial."""
        best: Candidate | Ranked | None = self.candidates[0] if self.candidates else winner_of(self.ranking)
        return best.trial if best else None

    @property
    def winners_folder(self) -> Path | None:
        if self.candidates:
            return self.candidates[0].folder(self.folder)
        return None if self.winner is None else self.folder / "trials" / f"{self.winner:04}"

    @property
    def promotion(self) -> Mapping[str, Any]:
        """Return the outcome of the attempt to promote the winner; empty without an attempt."""
        folder = self.winners_folder
        return self.promotions.get("/".join(folder.parts[-2:]), {}) if folder else {}


def read_record(folder: Path) -> Record:
    """Read the study of the sweep in `folder`. Raises ValueError if there is none."""
    study, confirmation = load_study(folder), load_confirmation(folder)
    settings = settings_of(study)
    goal = Goal(**settings["goal"])
    trials = study.get_trials(deepcopy=False)
    runs = confirmation.get_trials(deepcopy=False) if confirmation else []
    return Record(
        folder=folder,
        goal=goal,
        baseline=settings["baseline"],
        trials=trials,
        runs=runs,
        counted=counted(runs, confirmation.user_attrs.get(CHOSEN)) if confirmation else [],
        ranking=rank(trials, goal),
        candidates=[Candidate(**entry) for entry in study.user_attrs.get(CANDIDATES, [])],
        shortfall=study.user_attrs.get(SHORTFALL, ""),
        promotions=study.user_attrs.get(PROMOTION, {}),
    )
