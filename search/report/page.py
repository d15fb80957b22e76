"""Write runs/NAME/report.html: one file with everything about a sweep, which needs no network."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from time import thread_time
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.analysis.ranking import constants_of
from search.durable import write_text
from search.formatting import count
from search.report.record import Record, read_record
from search.report.summary import cards, sentences, status
from search.report.tables import candidates_table, failures_table, ranking_table

PAGE = "report.html"
EVERY_SECONDS = 120.0  # while the sweep runs
SHARE = 0.01  # of one core, for writing while the sweep runs
LAST_SECONDS = 5.0  # at most, for the page of an interrupted sweep
ENOUGH = 20  # complete trials; of fewer the best tenth is one or two
SHOWN = "Complete trials whose parameters lie in the space."
CONFIG = {"displaylogo": False, "responsive": True}  # of plotly


def write_page(folder: Path, champion: Mapping[str, Any] | None = None) -> Path:
    """Write report.html into a sweep's folder, atomically; return its path. `champion` is the header of that model.

    Raises ValueError if the folder holds no sweep.
    """
    page = _render(read_record(folder), champion)
    write_text(folder / PAGE, page, concurrent=True)  # the sweep and a person may write at once
    return folder / PAGE


@contextmanager
def kept_up_to_date(folder: Path) -> Iterator[None]:
    """Write the page every few minutes in a background thread."""
    done = Event()

    def keep_writing() -> None:
        pause = EVERY_SECONDS
        while not done.wait(pause):
            began = thread_time()
            with suppress(Exception):  # a page that could not be written now is written later
                write_page(folder)
            pause = max(EVERY_SECONDS, (thread_time() - began) / SHARE)

    thread = Thread(target=keep_writing, daemon=True)
    thread.start()
    try:
        yield
        done.set()
        thread.join()
    finally:
        done.set()  # an interrupted sweep does not wait for its page


def write_last_page(folder: Path) -> Path | None:
    """Write the page of an interrupted sweep; return its path, or None if it is not there within LAST_SECONDS.

    Whoever stops a sweep does not wait for a study that does not answer. Ctrl-C ends the wait at once.
    """
    written: list[Path] = []

    def write() -> None:
        with suppress(Exception):
            written.append(write_page(folder))

    thread = Thread(target=write, daemon=True)
    thread.start()
    thread.join(LAST_SECONDS)
    return written[0] if written else None


def _render(record: Record, champion: Mapping[str, Any] | None) -> str:
    from jinja2 import Environment, select_autoescape  # noqa: PLC0415 - slow, and most commands write no page
    from plotly.offline import get_plotlyjs  # noqa: PLC0415

    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(
        name=record.folder.name,
        plotly=get_plotlyjs(),
        status=status(record),
        goal=record.goal,
        written=datetime.now().astimezone().isoformat(" ", "seconds"),
        leader=record.leader,
        cards=cards(record, champion),
        sentences=sentences(record, champion),
        over="seeds and images" if any(len(candidate.runs) > 1 for candidate in record.candidates) else "images",
        candidates=candidates_table(record),
        ranking=ranking_table(record),
        constants=constants_of(record.ranking),
        sections=_sections(record),
        failures=failures_table(record),
        matrices=list(_confusion_matrices(record)),
        mistakes=json.loads(_read_text(record, "mistakes.json") or "null"),
        command=_read_text(record, "command.txt"),
    )


def _sections(record: Record) -> Iterator[tuple[str, str, str]]:
    """Yield the title, the caption and the HTML of each figure of the trials."""
    from search.report import figures  # noqa: PLC0415 - plotly, slow to import

    trials, goal = record.trials, record.goal
    curves = figures.learning_curves(trials, goal, record.winner, record.leader)
    yield _section("Learning curves", "A cross marks the epoch at which a trial was pruned.", curves)
    coordinates = figures.parallel_coordinates(trials, goal)
    yield _section("Parallel coordinates", f"{SHOWN} Drag along an axis to select a range.", coordinates)
    text = f"{SHOWN} How much each parameter decides whether a trial is among the best tenth{_caution(trials)}."
    yield _section("Importances", text, figures.importances(trials, goal))
    yield _section("Slices", f"{SHOWN} Later trials are darker.", figures.slices(trials, goal))
    text = "The trials of each worker over time; a resumed trial is shown from its last start."
    yield _section("Timeline", text, figures.timeline(trials, record.runs))


def _section(title: str, text: str, figure: Any) -> tuple[str, str, str]:
    return (title, "Too few trials so far.", "") if figure is None else (title, text, _html(figure, title))


def _caution(trials: Sequence[FrozenTrial]) -> str:
    num = sum(trial.state == TrialState.COMPLETE and bool(trial.params) for trial in trials)
    return f" ({math.ceil(num / 10)} of {count(num, 'complete trial')}, so only a hint)" if num < ENOUGH else ""


def _confusion_matrices(record: Record) -> Iterator[str]:
    """Yield the winner's confusion matrices: on the validation images, and on the test images if it was tested."""
    from search.report.figures import confusion_matrix  # noqa: PLC0415 - see above

    if text := _read_text(record, "confusion.json"):
        found = json.loads(text)
        yield _html(confusion_matrix(found["labels"], found["matrix"], "validation images"), "validation")
        if matrix := record.promotion.get("challenger", {}).get("confusion"):
            yield _html(confusion_matrix(found["labels"], matrix, "held-out test images"), "test")


def _html(figure: Any, title: str) -> str:
    figure.update_layout(margin={"l": 60, "r": 20, "t": 40, "b": 50})
    name = title.lower().replace(" ", "-")
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=CONFIG))


def _read_text(record: Record, name: str) -> str:
    """Return a text file of the winner's folder; empty if there is none."""
    folder = record.winners_folder
    path = folder / name if folder else None
    return path.read_text(encoding="utf-8", errors="surrogateescape") if path and path.exists() else ""
