"""A sweep's study, read once -> the cards, sentences and tables of its report."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from search.analysis.confirmation import Candidate, gain_over_baseline, read_outcomes
from search.analysis.ranking import Ranked, parameter_names, rank, winner_of
from search.analysis.statistics import Interval, mean_interval, model_difference
from search.formatting import count, short
from search.space.space import Goal
from search.study.sweep import CANDIDATES, CHOSEN, PROMOTION, load_confirmation, load_study, settings_of
from search.study.trials import counted, state_of

__all__ = [
    "Record",
    "Table",
    "candidates_table",
    "cards",
    "failures_table",
    "ranking_table",
    "read",
    "sentences",
    "status",
]


@dataclass(frozen=True)
class Cell:
    text: str
    value: Any  # what a column is sorted by
    is_text: bool = False


@dataclass(frozen=True)
class TableRow:
    cells: Sequence[Cell]
    wins: bool = False


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[TableRow]


@dataclass(frozen=True)
class Card:
    title: str
    value: str
    text: str = ""
    wins: bool = False


@dataclass(frozen=True)
class Record:
    """A study, read once."""

    folder: Path
    goal: Goal
    baseline: bool  # whether trial 0 is the README configuration
    trials: Sequence[FrozenTrial]
    runs: Sequence[FrozenTrial]  # of the confirmation
    counted: Sequence[FrozenTrial]  # those of them that were chosen
    ranking: Sequence[Ranked]
    candidates: Sequence[Candidate]  # the winner first
    promotions: Mapping[str, Mapping[str, Any]]  # by weights: what came of the last attempt to promote them

    @property
    def leads(self) -> str:
        """Say what the trial in front is."""
        return "winner" if self.candidates else "best so far"

    @property
    def winner(self) -> int | None:
        if self.candidates:
            return self.candidates[0].trial
        best = winner_of(self.ranking)
        return best.trial if best else None

    @property
    def winners_folder(self) -> Path | None:
        if self.candidates:
            return self.candidates[0].folder(self.folder)
        return None if self.winner is None else self.folder / "trials" / f"{self.winner:04}"

    @property
    def promotion(self) -> Mapping[str, Any]:
        """Return what came of the attempt to promote the winner; empty where there was none."""
        folder = self.winners_folder
        return self.promotions.get("/".join(folder.parts[-2:]), {}) if folder else {}

    @property
    def tested(self) -> Mapping[str, Any]:
        """Return what the sealed test showed of the winner; empty where it was not tested."""
        found: Mapping[str, Any] = self.promotion.get("challenger", {})
        return found


def read(folder: Path) -> Record:
    study = load_study(folder)
    confirmation = load_confirmation(folder)
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
        promotions=study.user_attrs.get(PROMOTION, {}),
    )


def status(record: Record) -> str:
    states = Counter(line.state for line in record.ranking)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    ended = sum(run.state.is_finished() for run in record.counted)
    runs = f" and {len(record.counted)} runs to confirm the best, {ended} of them ended" if record.counted else ""
    if ahead := len(record.runs) - len(record.counted):
        early = f"{count(ahead, 'run')} begun while the search went on"
        runs += f"; {early} not counted, as better trials came" if record.counted else f" and {early}, to confirm"
    return f"{len(record.trials)} trials ({counts}){runs}."


def cards(record: Record, champion: Mapping[str, Any] | None) -> Iterator[Card]:
    goal, figures = record.goal, record.tested
    if record.candidates:
        best = record.candidates[0]
        how = f"mean of {len(best.runs)} fresh seeds" if best.runs else "in the search, not confirmed"
        text = f"{goal.metric} {best.mean:.4f}{_spoken(best.interval, '{:.4f}')}, {how}"
        yield Card("winner", f"trial {best.trial}", text, wins=True)
    elif (number := record.winner) is not None:
        yield Card("best so far", f"trial {number}", f"{goal.metric} {record.trials[number].value:.4f}, not confirmed")
    if figures.get("accuracy") is not None:
        low, high = figures["accuracy_interval"]
        text = f"{100 * low:.1f} to {100 * high:.1f} % of {figures['pictures']} sealed pictures"
        yield Card("test accuracy of the winner", f"{figures['accuracy']:.1%}", text, wins=True)
    if record.baseline:
        yield from _baseline(record)
    seconds = sum(trial.user_attrs.get("seconds", 0) for trial in (*record.trials, *record.runs))
    text = f"of training by all workers; {_hours(_span(record))} from first start to last end"
    yield Card("cost", _hours(seconds), text)
    ours, theirs = record.promotion.get("test", {}), (champion or {}).get("metrics", {}).get("test", {})
    same = theirs.get("fingerprint") == ours.get("fingerprint")
    looks = max(ours.get("looks", 0), theirs.get("looks", 0) if same else 0)
    yield Card("looks at the test pictures", str(looks), "each is counted in the champion's header")


def _baseline(record: Record) -> Iterator[Card]:
    """Show trial 0, and what the winner is worth beside it."""
    baseline = next((line for line in record.ranking if line.trial == 0), None)
    if baseline is None:
        return
    value = "no result" if baseline.value is None else f"{baseline.value:.4f}"
    yield Card("README baseline (trial 0)", value, f"{baseline.state} after {baseline.epochs} epochs")
    for column, gain in gain_over_baseline(record.folder, record.candidates, record.goal.column).items():
        low, high = gain.interval
        scale, form, unit = (100, "+.2f", " points") if "accuracy" in column else (1, "+.4f", "")
        text = f"{scale * low:{form}} to {scale * high:{form}}{unit}"
        text += f"; the baseline was {baseline.state}" if baseline.state != "complete" else ""
        yield Card(f"{column}: winner less baseline", f"{scale * gain.mean:{form}}{unit}", text)


def sentences(record: Record, champion: Mapping[str, Any] | None) -> Iterator[str]:
    for weights, attempt in sorted(record.promotions.items(), key=lambda item: item[1]["time"]):
        what = "promoted" if attempt["promoted"] else "kept the champion"
        yield f"{attempt['time']}: {what}; {attempt['reason']} ({weights})."
    if left_out := record.promotion.get("test", {}).get("left_out"):
        yield f"{left_out} test pictures were left out: their content also stands in the training pictures."
    if champion:
        found = champion["provenance"]
        yield f"In service: trial {found.get('trial')} of {found.get('run')}."


def candidates_table(record: Record) -> Table:
    columns = ["trial", record.goal.metric, "95 % from", "to", "runs", "mult-adds", "beside the best mean"]
    rows = []
    for place, candidate in enumerate(record.candidates):
        low, high = candidate.interval or (math.nan, math.nan)
        cells = [_number(candidate.trial, "d"), *(_number(v, ".4f") for v in (candidate.mean, low, high))]
        cells.append(_word(" ".join(f"{value:.4f}" for value in candidate.values)))
        cells += [Cell(short(candidate.cost), candidate.cost), _word(candidate.standing)]
        rows.append(TableRow(cells, wins=place == 0))
    return Table(columns, rows)


def ranking_table(record: Record) -> Table:
    names = parameter_names(record.ranking)
    columns = [
        "rank",
        "trial",
        "tie",
        "state",
        record.goal.metric,
        "95 % from",
        "to",
        "val accuracy",
        "epochs",
        "seconds",
    ]
    rows = []
    for line, interval, tie in zip(record.ranking, *_evidence(record), strict=True):
        low, high = interval or (None, None)
        cells = [_number(line.rank, "d"), _number(line.trial, "d"), _word(tie), _word(line.state)]
        cells += [_number(value, ".4f") for value in (line.value, low, high, line.val_accuracy)]
        cells += [_number(line.epochs, "d"), _number(line.seconds, ".0f")]
        cells += [_any(line.parameters.get(name)) for name in names]
        rows.append(TableRow([*cells, _word(line.reason)], wins=line.trial == record.winner))
    return Table([*columns, *names, "reason"], rows)


def _evidence(record: Record) -> tuple[list[Interval | None], list[str]]:
    """Return each trial's interval, and the letter it shares with those that cannot be told apart from their first."""
    intervals: list[Interval | None] = []
    letters: list[str] = []
    first = None
    num_groups = 0
    for line in record.ranking:
        outcomes = read_outcomes(record.folder / "trials" / f"{line.trial:04}", record.goal.column)
        intervals.append(None if outcomes is None else mean_interval(outcomes))
        if outcomes is None or line.state != "complete":
            letters.append("")
            continue
        if first is None or len(first) != len(outcomes) or not _holds_zero(model_difference(outcomes, first)):
            first, num_groups = outcomes, num_groups + 1
        letters.append(_letters(num_groups))
    return intervals, letters


def failures_table(record: Record) -> Table | None:
    reasons = Counter(line.reason for line in record.ranking if line.state == "failed")
    reasons.update(f"to confirm: {run.user_attrs.get('reason')}" for run in record.runs if state_of(run) == "failed")
    rows = [TableRow([_number(count, "d"), _word(reason)]) for reason, count in reasons.most_common()]
    return Table(["trials", "reason"], rows) if rows else None


def _holds_zero(interval: Interval) -> bool:
    return interval[0] <= 0 <= interval[1]


def _letters(number: int) -> str:
    """Return a, b, ..., z, aa, ab, ... for 1, 2, ..."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def _number(value: float | None, form: str, unit: str = "") -> Cell:
    if value is None or not math.isfinite(value):
        return Cell("", "")
    return Cell(f"{value:{form}}{unit}", value)


def _word(text: str) -> Cell:
    return Cell(text, text, is_text=True)


def _any(value: Any) -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, ".4g")
    return _word("" if value is None else str(value))


def _spoken(interval: Interval | None, form: str) -> str:
    return f" ({form.format(interval[0])} to {form.format(interval[1])})" if interval else ""


def _span(record: Record) -> float:
    starts = [trial.datetime_start for trial in (*record.trials, *record.runs) if trial.datetime_start]
    ends = [trial.datetime_complete for trial in (*record.trials, *record.runs) if trial.datetime_complete]
    return (max(ends) - min(starts)).total_seconds() if ends else 0.0


def _hours(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
