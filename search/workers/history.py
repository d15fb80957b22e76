"""A trial's history.csv: one row of metrics per epoch."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from search.durable import write_text
from search.task import EpochMetrics

HISTORY = "history.csv"


def write_history(folder: Path, rows: Sequence[EpochMetrics]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / HISTORY, text.getvalue())


def read_history(folder: Path) -> Iterator[EpochMetrics]:
    """Yield the epochs of a trial; none if it has not ended its first."""
    path = folder / HISTORY
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield {name: float(value) for name, value in row.items()}
