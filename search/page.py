"""Ledger -> runs/NAME/report.html: everything a person wants to know of a sweep, in one file that needs no network."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.confirm import Candidate, beside, best_mean, gain_over_baseline, read_outcomes
from search.evidence import Interval, mean_interval, model_gap
from search.ledger import CANDIDATES, PROMOTION, open_confirmation, open_study
from search.report import Ranked, parameter_names, rank, winner_of
from search.space import Goal

__all__ = ["kept_up_to_date", "write_page"]

PAGE = "report.html"
EVERY_SECONDS = 60.0  # while the sweep runs
SHARE = 0.05  # of the time that writing may take


@dataclass(frozen=True)
class _Cell:
    text: str
    value: Any  # what a column is sorted by
    is_text: bool = False


@dataclass(frozen=True)
class _Row:
    cells: Sequence[_Cell]
    wins: bool = False


@dataclass(frozen=True)
class _Table:
    columns: Sequence[str]
    rows: Sequence[_Row]


@dataclass(frozen=True)
class _Card:
    title: str
    value: str
    text: str = ""
    wins: bool = False


@dataclass(frozen=True)
class _Figure:
    title: str
    text: str
    html: str


@dataclass(frozen=True)
class _Sweep:
    """A ledger, read once."""

    folder: Path
    study: optuna.Study
    goal: Goal
    trials: Sequence[FrozenTrial]
    runs: Sequence[FrozenTrial]  # of the confirmation
    ranking: Sequence[Ranked]
    candidates: Sequence[Candidate]  # the winner first
    promotion: Mapping[str, Any]

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


def write_page(folder: Path, champion: Mapping[str, Any] | None = None) -> Path:
    """Write report.html into a sweep's folder, replacing what was there.

    `champion` is the verified header of the model in service.

    Raises ValueError where the folder holds no sweep.
    """
    from jinja2 import Environment, select_autoescape  # noqa: PLC0415 - slow, and most commands write no page
    from plotly.offline import get_plotlyjs  # noqa: PLC0415

    sweep = _read(folder)
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    page = template.render(
        name=folder.name,
        plotly=get_plotlyjs(),
        status=_status(sweep),
        goal=sweep.goal,
        written=datetime.now().astimezone().isoformat(" ", "seconds"),
        cards=_cards(sweep, champion),
        sentences=_sentences(sweep, champion),
        candidates=_candidates(sweep) if any(candidate.runs for candidate in sweep.candidates) else None,
        ranking=_ranking(sweep),
        figures=list(_figures(sweep)),
        failures=_failures(sweep),
        matrices=_matrices(sweep),
        mistakes=_json(sweep, "mistakes.json"),
        command=_text_of(sweep, "command.txt"),
    )
    partial = folder / f".{PAGE}"
    partial.write_text(page)
    partial.replace(folder / PAGE)
    return folder / PAGE


@contextmanager
def kept_up_to_date(folder: Path) -> Iterator[None]:
    """Write the page every minute in the background, for as long as the sweep is driven."""
    done = Event()

    def keep() -> None:
        pause = EVERY_SECONDS
        while not done.wait(pause):
            began = monotonic()
            with suppress(Exception):  # a page that could not be written now is written a minute later
                write_page(folder)
            pause = max(EVERY_SECONDS, (monotonic() - began) / SHARE)

    thread = Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _read(folder: Path) -> _Sweep:
    study = open_study(folder)
    confirmation = open_confirmation(folder)
    goal = Goal(**study.user_attrs["settings"]["goal"])
    trials = study.get_trials(deepcopy=False)
    return _Sweep(
        folder=folder,
        study=study,
        goal=goal,
        trials=trials,
        runs=confirmation.get_trials(deepcopy=False) if confirmation else [],
        ranking=rank(trials, goal),
        candidates=[Candidate(**entry) for entry in study.user_attrs.get(CANDIDATES, [])],
        promotion=study.user_attrs.get(PROMOTION, {}),
    )


def _status(sweep: _Sweep) -> str:
    states = Counter(line.state for line in sweep.ranking)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    runs = f" and {len(sweep.runs)} runs to confirm the best" if sweep.runs else ""
    return f"{len(sweep.trials)} trials ({counts}){runs}."


def _cards(sweep: _Sweep, champion: Mapping[str, Any] | None) -> Iterator[_Card]:
    goal, figures = sweep.goal, sweep.promotion.get("challenger", {})
    if sweep.candidates:
        best = sweep.candidates[0]
        how = f"mean of {len(best.runs)} fresh seeds" if best.runs else "in the search, not confirmed"
        text = f"{goal.metric} {best.mean:.4f}{_spoken(best.interval, '{:.4f}')}, {how}"
        yield _Card("winner", f"trial {best.trial}", text, wins=True)
    elif (number := sweep.winner) is not None:
        yield _Card("best so far", f"trial {number}", f"{goal.metric} {sweep.trials[number].value:.4f}, not confirmed")
    if figures.get("accuracy") is not None:
        low, high = figures["accuracy_interval"]
        text = f"{100 * low:.1f} to {100 * high:.1f} % of {figures['pictures']} sealed pictures"
        yield _Card("test accuracy of the winner", f"{figures['accuracy']:.1%}", text, wins=True)
    if baseline := next((line for line in sweep.ranking if line.trial == 0), None):
        value = "no result" if baseline.value is None else f"{baseline.value:.4f}"
        yield _Card("README baseline (trial 0)", value, f"{baseline.state} after {baseline.epochs} epochs")
    for column, gap in gain_over_baseline(sweep.folder, sweep.candidates, goal.column).items():
        low, high = gap.interval
        scale, unit = (100, " points") if "accuracy" in column else (1, "")
        form = "+.2f" if unit else "+.4f"
        value = f"{scale * gap.mean:{form}}{unit}"
        text = f"{scale * low:{form}} to {scale * high:{form}}{unit}, {column}"
        yield _Card("winner less baseline", value, text)
    seconds = sum(trial.user_attrs.get("seconds", 0) for trial in (*sweep.trials, *sweep.runs))
    text = f"of training by all workers; {_hours(_span(sweep))} from first start to last end"
    yield _Card("cost", _hours(seconds), text)
    tests = ((champion or {}).get("metrics", {}).get("test", {}), sweep.promotion.get("test", {}))
    looks = next((test["looks"] for test in tests if "looks" in test), 0)
    yield _Card("looks at the test pictures", str(looks), "counted in the champion's header")


def _sentences(sweep: _Sweep, champion: Mapping[str, Any] | None) -> Iterator[str]:
    if sweep.promotion:
        what = "Promoted" if sweep.promotion["promoted"] else "Kept the champion"
        yield f"{what} on {sweep.promotion['time']}: {sweep.promotion['reason']}."
        if left_out := sweep.promotion.get("test", {}).get("left_out"):
            yield f"{left_out} test pictures were left out: their content also stands in the training pictures."
    if champion:
        found = champion["provenance"]
        yield f"In service: trial {found.get('trial')} of {found.get('run')}."


def _candidates(sweep: _Sweep) -> _Table:
    columns = ["trial", sweep.goal.metric, "low", "high", "runs", "mult-adds", "beside the best mean"]
    best = best_mean(sweep.candidates, sweep.goal)
    rows = []
    for place, candidate in enumerate(sweep.candidates):
        low, high = candidate.interval or (math.nan, math.nan)
        cells = [_number(candidate.trial, "d"), *(_number(v, ".4f") for v in (candidate.mean, low, high))]
        cells.append(_word(" ".join(f"{value:.4f}" for value in candidate.values)))
        cells += [_number(candidate.cost / 1e9, ".2f", " G"), _word(beside(candidate, best))]
        rows.append(_Row(cells, wins=place == 0))
    return _Table(columns, rows)


def _ranking(sweep: _Sweep) -> _Table:
    names = parameter_names(sweep.ranking)
    columns = ["rank", "trial", "tie", "state", sweep.goal.metric, "low", "high", "val accuracy", "epochs", "seconds"]
    rows = []
    for line, interval, tie in zip(sweep.ranking, *_evidence(sweep), strict=True):
        low, high = interval or (None, None)
        cells = [_number(line.rank, "d"), _number(line.trial, "d"), _word(tie), _word(line.state)]
        cells += [_number(value, ".4f") for value in (line.value, low, high, line.val_accuracy)]
        cells += [_number(line.epochs, "d"), _number(line.seconds, ".0f")]
        cells += [_any(line.parameters.get(name)) for name in names]
        rows.append(_Row([*cells, _word(line.reason)], wins=line.trial == sweep.winner))
    return _Table([*columns, *names, "reason"], rows)


def _evidence(sweep: _Sweep) -> tuple[list[Interval | None], list[str]]:
    """Return each trial's interval, and the letter it shares with those that cannot be told apart from their first."""
    intervals: list[Interval | None] = []
    letters: list[str] = []
    first = None
    num_groups = 0
    for line in sweep.ranking:
        outcomes = read_outcomes(sweep.folder / "trials" / f"{line.trial:04}", sweep.goal.column)
        intervals.append(None if outcomes is None else mean_interval(outcomes))
        if outcomes is None or line.state != "complete":
            letters.append("")
            continue
        if first is None or len(first) != len(outcomes) or not _holds_zero(model_gap(outcomes, first)):
            first, num_groups = outcomes, num_groups + 1
        letters.append(_letters(num_groups))
    return intervals, letters


def _figures(sweep: _Sweep) -> Iterator[_Figure]:
    from search import figures  # noqa: PLC0415 - plotly, slow to import

    trials, goal = sweep.trials, sweep.goal
    curves = figures.learning_curves(trials, goal, sweep.winner)
    drawn = [
        ("Learning curves", "A cross is where the pruner stopped a trial.", curves),
        ("Parallel coordinates", "Drag along an axis to choose trials.", figures.parallel_coordinates(trials, goal)),
        ("Importances", "How much each decides over being among the best tenth.", figures.importances(trials, goal)),
        ("Slices", "Complete trials; the darker, the later.", figures.slices(trials, goal)),
        ("Timeline", "Which worker had which trial when.", figures.timeline(trials, sweep.runs)),
    ]
    for title, text, figure in drawn:
        if figure is None:
            yield _Figure(title, "Too few trials for this picture.", "")
        else:
            yield _Figure(title, text, _html(figure, title))


def _matrices(sweep: _Sweep) -> list[str]:
    from search.figures import confusion_matrix  # noqa: PLC0415 - see above

    drawn = []
    if found := _json(sweep, "confusion.json"):
        drawn.append(_html(confusion_matrix(found["labels"], found["matrix"], "validation pictures"), "validation"))
        if matrix := sweep.promotion.get("challenger", {}).get("confusion"):
            drawn.append(_html(confusion_matrix(found["labels"], matrix, "sealed test pictures"), "test"))
    return drawn


def _html(figure: Any, title: str) -> str:
    figure.update_layout(template="plotly_white", margin={"l": 60, "r": 20, "t": 30, "b": 50})
    name = title.lower().replace(" ", "-")
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config={"displaylogo": False})
    return html


def _failures(sweep: _Sweep) -> _Table | None:
    reasons = Counter(line.reason for line in sweep.ranking if line.state == "failed")
    rows = [_Row([_number(count, "d"), _word(reason)]) for reason, count in reasons.most_common()]
    return _Table(["trials", "reason"], rows) if rows else None


def _json(sweep: _Sweep, name: str) -> Any:
    text = _text_of(sweep, name)
    return json.loads(text) if text else None


def _text_of(sweep: _Sweep, name: str) -> str:
    folder = sweep.winners_folder
    return (folder / name).read_text() if folder and (folder / name).exists() else ""


def _holds_zero(interval: Interval) -> bool:
    return interval[0] <= 0 <= interval[1]


def _letters(number: int) -> str:
    """Return a, b, ..., z, aa, ab, ... for 1, 2, ..."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def _number(value: float | None, form: str, unit: str = "") -> _Cell:
    if value is None or not math.isfinite(value):
        return _Cell("", "")
    return _Cell(f"{value:{form}}{unit}", value)


def _word(text: str) -> _Cell:
    return _Cell(text, text, is_text=True)


def _any(value: Any) -> _Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, ".4g")
    return _word("" if value is None else str(value))


def _spoken(interval: Interval | None, form: str) -> str:
    return f" ({form.format(interval[0])} to {form.format(interval[1])})" if interval else ""


def _span(sweep: _Sweep) -> float:
    starts = [trial.datetime_start for trial in (*sweep.trials, *sweep.runs) if trial.datetime_start]
    ends = [trial.datetime_complete for trial in (*sweep.trials, *sweep.runs) if trial.datetime_complete]
    return (max(ends) - min(starts)).total_seconds() if ends else 0.0


def _hours(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
