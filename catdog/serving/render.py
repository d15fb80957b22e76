"""Answers -> what people see: heat over a picture, thumbnails, a table, lines of text."""

import csv
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from catdog.model import read_header
from catdog.serving.model_card import headline
from catdog.serving.monitor import FIGURES
from catdog.serving.service import Reply
from catdog.serving.uploads import Item

__all__ = [
    "Row",
    "as_csv",
    "as_dict",
    "as_table",
    "cards",
    "data_address",
    "download_link",
    "facts",
    "heat_over",
    "history",
    "problem",
    "state_line",
    "summary",
    "verdict",
]

WARM = (255, 60, 0)  # colour of the heat, RGB
TILES = {"abstained": "called neither", "refused": "unreadable", "failed": "failed"}
STRENGTH = 0.65  # how much of it covers the hottest place


@dataclass(frozen=True)
class Row:
    """One of many pictures, and what came of it."""

    item: Item
    reply: Reply | None
    problem: str = ""
    thumbnail: str = ""  # data address

    @property
    def caption(self) -> str:
        if self.reply is None:
            return self.problem
        answer = self.reply.answer
        said = f"{answer.label} {answer.probabilities[answer.label]:.1%}" if answer.familiar else "probably neither"
        return f"{self.item.name}: {said}"


def verdict(reply: Reply) -> str:
    """Return the label, or that it is probably none."""
    answer = reply.answer
    return (
        answer.label
        if answer.familiar
        else "probably neither " + " nor ".join(f"a {name}" for name in answer.probabilities)
    )


def as_dict(reply: Reply) -> dict[str, Any]:
    """Return what a program is told."""
    answer = reply.answer
    return {
        "label": answer.label if answer.familiar else None,
        "probabilities": {name: round(p, 6) for name, p in answer.probabilities.items()},
        "familiar": answer.familiar,
        "model": reply.version,
        "seconds": round(reply.seconds, 4),
        **({"heat": np.round(answer.heat, 4).tolist()} if answer.heat.size else {}),
    }


def facts(reply: Reply) -> str:
    """Return what else there is to say of an answer, in HTML."""
    shown = ", ".join(f"{escape(name)} {p:.1%}" for name, p in reply.answer.probabilities.items())
    if not reply.answer.familiar:
        shown = f"It looks unlike the pictures that the network was trained on. If it had to choose: {shown}"
    milliseconds = f"{1000 * reply.seconds:.0f} ms"
    return f'<p role="status">{shown}. Answered in {milliseconds} by model <code>{reply.version}</code>.</p>'


def problem(sentence: str) -> str:
    """Return a sentence about what went wrong, in HTML."""
    return f'<p class="problem" role="status">{_with_code(sentence)}</p>'


def state_line(version: str, which: str, wrong: str) -> str:
    """Return the line above the tabs: which model is in service, or why there is none."""
    return f'<p role="status">Model <code>{version}</code>: {escape(which)}</p>' if version else problem(wrong)


def _with_code(sentence: str) -> str:
    """Escape a sentence, and set the commands in it in a fixed font."""
    return re.sub(r"(python (?:-m )?[\w./]+(?: NAME)?)", r"<code>\1</code>", escape(sentence))


def summary(rows: Sequence[Row]) -> str:
    """Say in a line what came of many pictures."""
    good = [row for row in rows if row.reply]
    counts = Counter(verdict(row.reply) for row in good if row.reply)
    shown = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    broken = f"; {len(rows) - len(good)} could not be read, see the table" if len(good) < len(rows) else ""
    return f"{len(good)} answered: {shown or 'none'}{broken}."


def download_link(text: str) -> str:
    """Return a link that holds a CSV file."""
    address = f"data:text/csv;charset=utf-8;base64,{b64encode(text.encode()).decode()}"
    return f'<a class="download" download="answers.csv" href="{address}">Download as CSV</a>'


def cards(summary: Mapping[str, Any]) -> str:
    """Return the Monitor tab's figures: counts since the start, drift beside its thresholds, alerts."""
    counts = summary["counts"]
    shown = [(TILES.get(name, f"called {name}"), f"{count:,}", "tile") for name, count in counts.items()]
    text = "<p>Since the start:</p>" + _tiles(shown)
    if summary["figures"]:
        drift = []
        for name, value in summary["figures"].items():
            threshold = summary["thresholds"].get(name, float("inf"))
            kind = "tile alert" if value > threshold else "tile"
            drift.append((FIGURES[name], f"{value:.2g} <small>alert above {threshold:.2g}</small>", kind))
        text += f"<p>Of the last {summary.get('window', '')} that this model saw:</p>{_tiles(drift)}"
    alerts = "".join(f'<p class="alert" role="alert">{escape(text)}</p>' for text in summary["alerts"].values())
    waits = "" if summary["figures"].get("class_psi") is not None else f"<p>{escape(summary['waits_for'])}</p>"
    return f"{text}{waits}{alerts or '<p>No alert.</p>'}"


def _tiles(shown: Sequence[tuple[str, str, str]]) -> str:
    tiles = "".join(f'<div class="{kind}"><span>{escape(name)}</span><b>{text}</b></div>' for name, text, kind in shown)
    return f'<div class="tiles">{tiles}</div>'


def heat_over(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Lay (h, w) heat, 0 to 1, over an RGB picture of any size."""
    spread = Image.fromarray(heat.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    share = np.asarray(spread).clip(0, 1)[..., None] * STRENGTH
    mixed = np.asarray(picture) * (1 - share) + np.array(WARM) * share
    return Image.fromarray(mixed.astype(np.uint8))


def data_address(picture: Image.Image) -> str:
    """Return a picture as an address that holds it, so that no file has to."""
    file = BytesIO()
    picture.save(file, "WEBP", quality=82, method=0)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"


def as_table(rows: Sequence[Row], classes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of many answers."""
    cells = []
    for row in rows:
        if row.reply is None:
            cells.append([row.item.name, "", *[""] * len(classes), row.problem])
            continue
        probabilities = [f"{row.reply.answer.probabilities.get(name, 0):.4f}" for name in classes]
        cells.append([row.item.name, verdict(row.reply), *probabilities, ""])
    return ["file", "label", *classes, "problem"], cells


def as_csv(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table as CSV. What a spreadsheet would take for a formula is marked as text."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(headings)
    for row in cells:
        writer.writerow([f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) else cell for cell in row])
    return file.getvalue()


def history(best_model: Path) -> list[list[str]]:
    """Return the champions before, the last one first: number, which it is, and until when it served."""
    rows = []
    for path in sorted((best_model / "history").glob("[0-9]*.safetensors"), reverse=True):
        with suppress(OSError):  # a promotion has just removed the oldest
            changed = path.stat().st_ctime
            until = datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%d %H:%M UTC")
            rows.append([path.stem, _headline_of(path, changed), until])
    return rows


@lru_cache(maxsize=100)
def _headline_of(path: Path, _changed: float) -> str:
    """Read a champion's header once for each of its versions: that takes the whole file."""
    try:
        return headline(read_header(path))
    except ValueError:
        return "damaged"
