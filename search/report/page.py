"""Write runs/NAME/report.html: everything a person wants to know of a sweep, in one file that needs no network."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from time import thread_time
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.files import write_text
from search.formatting import count
from search.report.sections import (
    Record,
    candidates_table,
    cards,
    failures_table,
    ranking_table,
    read,
    sentences,
    status,
)

__all__ = ["kept_up_to_date", "write_page"]

PAGE = "report.html"
EVERY_SECONDS = 120.0  # while the sweep runs
ENOUGH = 20  # complete trials, of which the best tenth is more than one or two
SHOWN = "Complete trials whose parameters lie in the space."
CONFIG = {"displaylogo": False, "responsive": True}  # of plotly
SHARE = 0.01  # of one core, for writing while the sweep runs


@dataclass(frozen=True)
class _Figure:
    title: str
    text: str
    html: str


def write_page(folder: Path, champion: Mapping[str, Any] | None = None) -> Path:
    """Write report.html into a sweep's folder, replacing what was there.

    `champion` is the verified header of the model in service. Raises ValueError where the folder holds no sweep.
    """
    from jinja2 import Environment, select_autoescape  # noqa: PLC0415 - slow, and most commands write no page
    from plotly.offline import get_plotlyjs  # noqa: PLC0415

    record = read(folder)
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text())
    page = template.render(
        name=folder.name,
        plotly=get_plotlyjs(),
        status=status(record),
        goal=record.goal,
        written=datetime.now().astimezone().isoformat(" ", "seconds"),
        leads=record.leads,
        cards=cards(record, champion),
        sentences=sentences(record, champion),
        over="seeds and pictures" if any(len(candidate.runs) > 1 for candidate in record.candidates) else "pictures",
        candidates=candidates_table(record) if any(candidate.runs for candidate in record.candidates) else None,
        ranking=ranking_table(record),
        figures=list(_figures(record)),
        failures=failures_table(record),
        matrices=_matrices(record),
        mistakes=_json(record, "mistakes.json"),
        command=_text_of(record, "command.txt"),
    )
    write_text(folder / PAGE, page, concurrent=True)  # the sweep and a person may write at once
    return folder / PAGE


@contextmanager
def kept_up_to_date(folder: Path) -> Iterator[None]:
    """Write the page every few minutes in the background, for as long as the sweep is driven."""
    done = Event()

    def keep() -> None:
        pause = EVERY_SECONDS
        while not done.wait(pause):
            began = thread_time()
            with suppress(Exception):  # a page that could not be written now is written later
                write_page(folder)
            pause = max(EVERY_SECONDS, (thread_time() - began) / SHARE)

    thread = Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
        done.set()
        thread.join()
    finally:
        done.set()  # an interrupted sweep does not wait for its page


def _figures(record: Record) -> Iterator[_Figure]:
    from search.report import figures  # noqa: PLC0415 - plotly, slow to import

    trials, goal = record.trials, record.goal
    curves = figures.learning_curves(trials, goal, record.winner, record.leads)
    drawn = [
        ("Learning curves", "A cross is where the pruner stopped a trial.", curves),
        (
            "Parallel coordinates",
            f"{SHOWN} Drag along an axis to choose some.",
            figures.parallel_coordinates(trials, goal),
        ),
        (
            "Importances",
            f"{SHOWN} How much a parameter decides over being among the best tenth{_caution(trials)}.",
            figures.importances(trials, goal),
        ),
        ("Slices", f"{SHOWN} The darker, the later.", figures.slices(trials, goal)),
        (
            "Timeline",
            "Which worker had which trial when; of one that was gone on with, the last worker's part.",
            figures.timeline(trials, record.runs),
        ),
    ]
    for title, text, figure in drawn:
        if figure is None:
            yield _Figure(title, "Too few trials for this picture.", "")
        else:
            yield _Figure(title, text, _html(figure, title))


def _caution(trials: Sequence[FrozenTrial]) -> str:
    num = sum(trial.state == TrialState.COMPLETE and bool(trial.params) for trial in trials)
    return f", {math.ceil(num / 10)} of {count(num, 'complete trial')}: no more than a hint" if num < ENOUGH else ""


def _matrices(record: Record) -> list[str]:
    from search.report.figures import confusion_matrix  # noqa: PLC0415 - see above

    drawn = []
    if found := _json(record, "confusion.json"):
        drawn.append(_html(confusion_matrix(found["labels"], found["matrix"], "validation pictures"), "validation"))
        if matrix := record.tested.get("confusion"):
            drawn.append(_html(confusion_matrix(found["labels"], matrix, "sealed test pictures"), "test"))
    return drawn


def _html(figure: Any, title: str) -> str:
    figure.update_layout(margin={"l": 60, "r": 20, "t": 40, "b": 50})
    name = title.lower().replace(" ", "-")
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=CONFIG)
    return html


def _json(record: Record, name: str) -> Any:
    text = _text_of(record, name)
    return json.loads(text) if text else None


def _text_of(record: Record, name: str) -> str:
    folder = record.winners_folder
    return (folder / name).read_text() if folder and (folder / name).exists() else ""
