"""Render answers and figures as HTML, tables, CSV, JSON and data URLs."""

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

from catdog.checkpoint import read_header
from catdog.serving.model_card import headline
from catdog.serving.monitor import FIGURES
from catdog.serving.service import Reply, Service
from catdog.serving.uploads import ImageFile

HEAT_COLOUR = (255, 60, 0)  # RGB
HEAT_OPACITY = 0.65  # at the maximum
TILES = {"abstained": "called neither", "refused": "unreadable", "failed": "failed"}


@dataclass(frozen=True)
class ImageReply:
    """One of many image files, with its answer or the reason why there is none."""

    file: ImageFile
    reply: Reply | None
    problem: str = ""
    thumbnail: str = ""  # data URL

    @property
    def caption(self) -> str:
        if self.reply is None:
            return self.problem
        answer = self.reply.answer
        shown = f"{answer.label} {answer.probabilities[answer.label]:.1%}" if answer.familiar else "probably neither"
        return f"{shown}: {self.file.name}"  # the answer first: Gradio truncates long captions


def verdict(reply: Reply) -> str:
    """Return the label, or that the image is probably none of the classes."""
    answer = reply.answer
    neither = " nor ".join(f"a {name}" for name in answer.probabilities)
    return answer.label if answer.familiar else f"probably neither {neither}"


def to_json(reply: Reply) -> dict[str, Any]:
    """Return an answer in the API's form."""
    answer = reply.answer
    return {
        "label": answer.label if answer.familiar else None,
        "probabilities": {name: round(p, 6) for name, p in answer.probabilities.items()},
        "familiar": answer.familiar,
        "model": reply.version,
        "seconds": round(reply.seconds, 4),
        **({"heat": np.round(answer.saliency, 4).tolist()} if answer.saliency.size else {}),
    }


def facts(reply: Reply) -> str:
    """Return the line below an answer, in HTML: probabilities, latency, model."""
    text = ", ".join(f"{escape(name)} {p:.1%}" for name, p in reply.answer.probabilities.items())
    if not reply.answer.familiar:
        text = f"The image is unlike the training images. Between the classes alone: {text}"
    latency = f"{1000 * reply.seconds:.0f} ms"
    return f'<p role="status">{text}. Answered in {latency} by model <code>{reply.version}</code>.</p>'


def problem(sentence: str) -> str:
    """Return an error in HTML, with its commands in a fixed font."""
    text = re.sub(r"(python (?:-m )?[\w./]+(?: NAME)?)", r"<code>\1</code>", escape(sentence))
    return f'<p class="problem" role="status">{text}</p>'


def state_line(service: Service) -> str:
    """Return the line above the tabs: the model in service, or the reason why there is none."""
    if not (model := service.classifier):
        return problem(service.problem)
    return f'<p role="status">Model <code>{model.version}</code>: {escape(headline(model.header))}</p>'


def summary(replies: Sequence[ImageReply]) -> str:
    """Return the line above many answers: how many of each."""
    counts = Counter(verdict(one.reply) for one in replies if one.reply)
    num_broken = len(replies) - counts.total()
    shown = ", ".join(f"{count} {label}" for label, count in counts.most_common()) or "none"
    rest = f"; {num_broken} without an answer, see the table" if num_broken else ""
    return f"{counts.total()} answered: {shown}{rest}."


def to_table(replies: Sequence[ImageReply], classes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of many answers."""
    cells = []
    for one in replies:
        found = one.reply.answer.probabilities if one.reply else {}
        probabilities = [f"{found.get(name, 0):.4f}" if found else "" for name in classes]
        cells.append([one.file.name, verdict(one.reply) if one.reply else "", *probabilities, one.problem])
    return ["file", "label", *classes, "problem"], cells


def to_csv(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table as CSV. Cells that a spreadsheet would take for formulas are marked as text."""
    file = StringIO()
    marked = [[f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) else cell for cell in row] for row in cells]
    csv.writer(file, lineterminator="\n").writerows([headings, *marked])
    return file.getvalue()


def download_link(text: str) -> str:
    """Return a link that contains a CSV file."""
    url = f"data:text/csv;charset=utf-8;base64,{b64encode(text.encode()).decode()}"
    return f'<a class="download" download="answers.csv" href="{url}">Download as CSV</a>'


def image_url(image: Image.Image) -> str:
    """Return an image as a data URL, so that no file is needed."""
    file = BytesIO()
    image.save(file, "WEBP", quality=82, method=0)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Lay a heat map, (h, w) from 0 to 1, over an RGB image of any size."""
    heat_map = Image.fromarray((255 * heat).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    colour = Image.new("RGB", image.size, HEAT_COLOUR)
    return Image.composite(colour, image, heat_map.point(lambda value: value * HEAT_OPACITY))


def monitor(summary: Mapping[str, Any]) -> str:
    """Return the Monitor tab's figures in HTML: counts since the start, drift beside its thresholds, alerts."""
    counts = [(TILES.get(name, f"called {name}"), f"{count:,}", "tile") for name, count in summary["counts"].items()]
    parts = ["<p>Since the start:</p>", _tiles(counts)]
    if summary["figures"]:
        figures = [_figure_tile(name, value, summary["thresholds"]) for name, value in summary["figures"].items()]
        parts += [f"<p>Last {summary.get('window', '')} images of this model:</p>", _tiles(figures)]
    if "class_psi" not in summary["figures"]:
        parts.append(f"<p>{escape(summary['waits_for'])}</p>")
    alerts = [f'<p class="alert" role="alert">{escape(text)}</p>' for text in summary["alerts"].values()]
    return "".join(parts + (alerts or ["<p>No alert.</p>"]))


def _figure_tile(name: str, value: float, thresholds: Mapping[str, float]) -> tuple[str, str, str]:
    threshold = thresholds.get(name, float("inf"))
    text = f"{value:.2g} <small>alert above {threshold:.2g}</small>"
    return FIGURES[name], text, "tile alert" if value > threshold else "tile"


def _tiles(tiles: Sequence[tuple[str, str, str]]) -> str:
    shown = "".join(f'<div class="{kind}"><span>{escape(name)}</span><b>{text}</b></div>' for name, text, kind in tiles)
    return f'<div class="tiles">{shown}</div>'


def history(best_model: Path) -> list[list[str]]:
    """Return a row for each former champion, the latest first: number, headline, end of its service."""
    rows = []
    for path in sorted((best_model / "history").glob("[0-9]*.safetensors"), reverse=True):
        with suppress(OSError):  # a promotion has just removed the oldest
            changed = path.stat().st_ctime
            until = f"{datetime.fromtimestamp(changed, UTC):%Y-%m-%d %H:%M} UTC"
            rows.append([path.stem, _headline(path, changed), until])
    return rows


@lru_cache(maxsize=100)
def _headline(path: Path, _changed: float) -> str:
    """Read a champion's header once for each of its versions: reading checks the hash of the whole file."""
    try:
        return headline(read_header(path))
    except ValueError:
        return "damaged"
