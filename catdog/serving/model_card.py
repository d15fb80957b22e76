"""A model's header -> its card, best_model/README.md: what it is, how good, how it was found, what it cannot do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catdog.checkpoint import read_header
from catdog.files import write_file
from catdog.model import ModelConfig, count_mult_adds, count_parameters

__all__ = ["headline", "model_card", "write_card"]


def write_card(path: Path) -> None:
    """Write the card of a model file beside it. Raises ValueError for a file that is not whole and true."""
    write_file(path.with_name("README.md"), model_card(read_header(path)).encode())


def headline(header: Mapping[str, Any]) -> str:
    """Say in a few words which model it is and how good."""
    provenance, test = header["provenance"], header["metrics"].get("test", {})
    again = f" (run {provenance['confirmation']} of its confirmation)" if "confirmation" in provenance else ""
    which = (
        f"trial {provenance['trial']} of {provenance.get('run')}{again}" if "trial" in provenance else "not of a sweep"
    )
    if "accuracy_interval" not in test:
        return f"{which}, not tested"
    low, high = test["accuracy_interval"]
    return f"{which}, {test['accuracy']:.1%} ({low:.1%} to {high:.1%}) of {test['pictures']:,} test pictures right"


def model_card(header: Mapping[str, Any]) -> str:
    """Return the card in Markdown."""
    shape, provenance = ModelConfig(**header["model"]), header["provenance"]
    sections = [
        f"# {' or '.join(header['classes'])}: the model in service",
        _architecture(shape),
        _metrics(header),
        _origin(provenance),
        USE,
        _limits(header),
    ]
    return "\n\n".join(sections) + "\n"


def _architecture(shape: ModelConfig) -> str:
    shared = "one block's weights shared by all" if shape.share_body else "each with its own weights"
    return (
        "## Architecture\n\n"
        f"Blocks of Conv3x3, ReLU, BatchNorm and MaxPool2: 3 -> {shape.stem_width} -> {shape.body_width}, then "
        f"{shape.body_repeats} times {shape.body_width} -> {shape.body_width} ({shared}), dropout {shape.dropout:.3g}, "
        f"one linear layer. Input {shape.image_size} x {shape.image_size} pixels, RGB, stretched to a square.\n"
        f"{count_parameters(shape):,} parameters, {count_mult_adds(shape) / 1e6:,.1f} million mult-adds a picture."
    )


def _metrics(header: Mapping[str, Any]) -> str:
    rows = ["| pictures | number | accuracy | 95 % interval | loss |", "|---|---|---|---|---|"]
    metrics, lines = header["metrics"], []
    for part in ("test", "validation"):
        if figures := metrics.get(part):
            low, high = figures.get("accuracy_interval", (0, 1))
            shown = f"{figures.get('accuracy', 0):.1%} | {low:.1%} to {high:.1%} | {figures.get('loss', 0):.4f}"
            rows.append(f"| {part} | {figures.get('pictures', '')} | {shown} |")
    if test := metrics.get("test"):
        looks = "once" if test.get("looks", 1) == 1 else f"{test['looks']} times"
        left_out = test.get("left_out", 0)
        lines.append(
            f"The test pictures took part in no choice but the promotion, and were looked at {looks}"
            + (f"; {left_out} that stand in the training pictures too were left out" if left_out else "")
            + ". The validation pictures chose the epoch and the trial, so their figures flatter."
        )
        if "confusion" in test:
            lines.append(_confusion(header["classes"], test["confusion"]))
    return "\n\n".join(["## How good it is", "\n".join(rows), *lines])


def _confusion(classes: list[str], matrix: list[list[int]]) -> str:
    lines = [
        f"| test pictures of a | {' | '.join(f'called {name}' for name in classes)} |",
        "|---" * (len(classes) + 1) + "|",
    ]
    lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(classes, matrix, strict=True)]
    return "\n".join(lines)


def _origin(provenance: Mapping[str, Any]) -> str:
    again = provenance.get("confirmation")
    run = "" if again is None else f", trained again with a fresh seed as run {again} of its confirmation"
    found = f"Trial {provenance.get('trial')} of the sweep `{provenance.get('run')}`{run}"
    when = f"trained {provenance.get('time', 'at an unknown time')}, commit {provenance.get('commit') or 'unknown'}"
    lines = [f"{found}; data: {_data(provenance.get('data'))}; {when}."]
    if url := provenance.get("experiment"):
        lines.append(f"Its experiment in Comet: <{url}>")
    for title, entries in (
        ("parameters searched", provenance.get("parameters")),
        ("recipe", provenance.get("training")),
        ("versions", provenance.get("versions")),
    ):
        if entries:
            lines.append(f"{title.capitalize()}: " + ", ".join(f"{k} {_short(v)}" for k, v in entries.items()) + ".")
    return "\n\n".join(["## How it was found", *lines])


def _data(data: Any) -> str:
    if isinstance(data, Mapping):
        return f"`{data['source']}` (fingerprint {data['fingerprint']})"
    return f"fingerprint {data}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


USE = """## How to use it

```python
from pathlib import Path
from catdog.predict import Classifier

classify = Classifier(Path("best_model/model.safetensors"))
print(classify.classes, classify([Path("picture.jpg").read_bytes()]))
```"""


def _abstention(header: Mapping[str, Any]) -> str:
    reference = header.get("reference")
    if not reference:
        return "It calls everything else one of them."
    share = f"{reference['abstained']:.1%} of the validation pictures"
    return f"A picture unlike those it was trained on it calls probably neither, {share} too; many things pass for one."


def _limits(header: Mapping[str, Any]) -> str:
    names = " and ".join(f"{name}s" for name in header["classes"])
    drawn = (
        isinstance(header["provenance"].get("data"), Mapping) and header["provenance"]["data"]["source"] == "synthetic"
    )
    lines = [
        f"- It knows {names} alone. {_abstention(header)}",
        "- The intervals hold for pictures like those it was tested on; other cameras, ages or crops may do worse.",
        "- Its probabilities were not calibrated.",
    ]
    if drawn:
        lines.insert(0, "- It was trained and tested on drawn pictures: it says nothing about photographs.")
    return "## Limits\n\n" + "\n".join(lines)
