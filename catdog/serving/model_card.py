"""Write the card of a model, best_model/README.md, from its header: architecture, metrics, origin, limits."""

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from catdog.checkpoint import read_header
from catdog.data.files import write_file
from catdog.model import ModelConfig, count_mult_adds, count_parameters
from shell.command_line import printable

TITLE = ": the model in service"
USAGE = """## Usage

```python
from pathlib import Path
from catdog.predict import Classifier

classify = Classifier(Path("best_model/model.safetensors"))
print(classify.classes, classify([Path("image.jpg").read_bytes()]))
```"""


def write_card(path: Path, say: Callable[[str], object] = lambda _: None) -> None:
    """Write the card of a model file beside it. Raises ValueError for a damaged file.

    A README.md that is no such card is kept in history/, and `say` is told.
    """
    readme, card, kept = path.with_name("README.md"), model_card(read_header(path)), None
    if readme.is_file() and TITLE.encode() not in readme.read_bytes().partition(b"\n")[0]:
        kept = next(file for n in count(1) if not os.path.lexists(file := path.parent / f"history/README-{n}.md"))
        kept.parent.mkdir(exist_ok=True)
        readme.rename(kept)
    try:
        write_file(readme, card.encode(errors="backslashreplace"))
    except OSError:
        if kept:
            kept.rename(readme)
        raise
    if kept:
        say(f"{readme} is the model card now; the one before it, which no promotion wrote, is kept as {kept}")


def headline(header: Mapping[str, Any]) -> str:
    """Return the origin and the test accuracy of a model in a few words."""
    provenance, test = header["provenance"], header["metrics"].get("test", {})
    origin = f"trial {provenance['trial']} of {provenance.get('run')}" if "trial" in provenance else "not of a sweep"
    if "confirmation" in provenance:
        origin += f" (confirmation run {provenance['confirmation']})"
    if "accuracy_interval" not in test:
        return f"{origin}, not tested"
    return f"{origin}, accuracy {test['accuracy']:.1%} ({_interval(test)}) on {test['pictures']:,} test images"


def model_card(header: Mapping[str, Any]) -> str:
    """Return the card in Markdown."""
    sections = [
        f"# {' or '.join(header['classes'])}{TITLE}",
        _architecture(ModelConfig(**header["model"])),
        _metrics(header),
        _origin(header["provenance"]),
        USAGE,
        _limits(header),
    ]
    return "\n\n".join(sections) + "\n"


def _architecture(config: ModelConfig) -> str:
    blocks = " -> ".join(map(str, [3, *config.widths]))
    weights = (
        f"body blocks of {config.body_width} channels share their weights" if config.share_body else "each has its own"
    )
    followed = "block" if config.residual_blocks == 1 else f"{config.residual_blocks} blocks"
    residual = f"Residual blocks follow the last {followed}. " if config.residual_blocks else ""
    pool = "the mean of each channel" if config.global_pool else "all values of the last map"
    flip = "The answer is the mean over an image and its mirror image. " if config.flip_average else ""
    return (
        "## Architecture\n\n"
        f"Blocks of Conv3x3, ReLU, BatchNorm and MaxPool2: {blocks} channels, {weights}. {residual}"
        f"One linear layer on {pool}, dropout {config.dropout:.3g}. {flip}"
        f"Input: RGB, resized to {config.image_size} x {config.image_size} pixels without keeping the aspect ratio.\n"
        f"{count_parameters(config):,} parameters, {count_mult_adds(config) / 1e6:,.1f} million mult-adds per image."
    )


def _metrics(header: Mapping[str, Any]) -> str:
    metrics, rows = header["metrics"], []
    for split in ("test", "validation"):
        if found := metrics.get(split):
            accuracy, loss = f"{found.get('accuracy', 0):.1%}", f"{found.get('loss', 0):.4f}"
            rows.append([split, found.get("pictures", ""), accuracy, _interval(found), loss])
    parts = ["## Metrics", _table(["split", "images", "accuracy", "95 % interval", "loss"], rows)]
    if test := metrics.get("test"):
        looks = "once" if test.get("looks", 1) == 1 else f"{test['looks']} times"
        left_out = ""
        if test.get("left_out"):
            left_out = f" {test['left_out']} of them were left out as duplicates of training images."
        parts.append(
            f"The test images decided the promotion only, and were evaluated {looks}.{left_out} The validation images "
            "also selected the epoch and the trial, so their figures are optimistic."
        )
        if "confusion" in test:
            classes = header["classes"]
            rows = [[name, *counts] for name, counts in zip(classes, test["confusion"], strict=True)]
            parts.append(_table(["test images of class", *(f"predicted {name}" for name in classes)], rows))
    return "\n\n".join(parts)


def _interval(found: Mapping[str, Any]) -> str:
    low, high = found.get("accuracy_interval", (0, 1))
    return f"{low:.1%} to {high:.1%}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _origin(provenance: Mapping[str, Any]) -> str:
    source = "A training outside of a sweep"
    if "trial" in provenance:
        source = f"Trial {provenance['trial']} of the sweep `{provenance.get('run')}`"
    if "confirmation" in provenance:
        source += f", trained again with a fresh seed as its confirmation run {provenance['confirmation']}"
    data = provenance.get("data")
    if isinstance(data, Mapping):
        data = f"`{printable(data['source'])}`, fingerprint {data['fingerprint']}"
    when = f"{provenance.get('time', 'at an unknown time')}, commit {provenance.get('commit') or 'unknown'}"
    parts = ["## Origin", f"{source}. Data: {data}. Trained {when}."]
    if url := provenance.get("experiment"):
        parts.append(f"Comet experiment: <{url}>")
    for title, key in (("Searched parameters", "parameters"), ("Training", "training"), ("Versions", "versions")):
        if entries := provenance.get(key):
            shown = (f"{name} {f'{v:.4g}' if isinstance(v, float) else v}" for name, v in entries.items())
            parts.append(f"{title}: {', '.join(shown)}.")
    return "\n\n".join(parts)


def _limits(header: Mapping[str, Any]) -> str:
    data, reference, lines = header["provenance"].get("data"), header.get("reference"), []
    if isinstance(data, Mapping) and data["source"] == "synthetic":
        lines.append("It was trained and tested on drawn images. Its accuracy on photographs is unknown.")
    names = " and ".join(f"{name}s" for name in header["classes"])
    neither = "It assigns any other image to one of them."
    if reference:
        neither = (
            f"It answers `probably neither` for images unlike the training images, {reference['abstained']:.1%} of the "
            "validation images among them. Many other images still pass for one of the classes."
        )
    lines += [
        f"It knows {names} only. {neither}",
        "The intervals hold for images like the test images. Other cameras, ages or crops may give a lower accuracy.",
        "Its probabilities are not calibrated.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
