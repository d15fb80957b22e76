"""Save and load networks: the model with its verified header, and the state from which a training resumes."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from catdog.data.files import write_file
from catdog.device import is_process_lost
from catdog.model import CNN, ModelConfig
from shell.environment import module_command

Header = dict[str, Any]

CHAMPION = Path("best_model/model.safetensors")

ENTRIES = {"model", "classes", "preprocessing", "metrics", "provenance"}  # of every header, beside the hash


def save_model(model: CNN, path: Path, header: Mapping[str, Any]) -> None:
    """Write `model` and `header` to one safetensors file, atomically.

    `header` needs the JSON-able entries `classes`, `preprocessing`, `metrics` and `provenance`. Its `model` (the
    configuration) and `sha256` (of the tensors and all other entries) are set here.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    entries = {key: value for key, value in header.items() if key != "sha256"} | {"model": asdict(model.config)}
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in entries.items()}
    metadata["sha256"] = _digest(tensors, metadata)
    write_file(path, serialize(tensors, metadata=metadata))


def load_model(path: Path) -> tuple[CNN, Header]:
    """Load a network, in eval mode, with its header. Raises ValueError for a missing, damaged or inconsistent file."""
    tensors, header = _read(path)
    try:
        with torch.device("meta"):
            model = CNN(ModelConfig(**header["model"]))
        model.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} does not hold the network its header describes; train it again") from error
    return model.to(memory_format=torch.channels_last).eval(), header


def read_header(path: Path) -> Header:
    """Return the verified header of a saved network, JSON decoded. Raises ValueError like `load_model`."""
    return _read(path)[1]


def replaces_model(output: Path) -> bool:
    """Return whether a training that writes to `output` replaces the model of an earlier one.

    Raises ValueError, and changes nothing, where no model can be written, or something else would be lost.
    """
    if CHAMPION.parts in (output.absolute().parts[-2:], output.resolve().parts[-2:]):
        remedy = f"name another file, and serve it with {module_command('catdog.app')} --model FILE"
        raise ValueError(f"--output {output} is the champion's place, where search.promote alone writes; {remedy}")
    if not output.resolve().parent.is_dir():
        raise ValueError(f"the folder of --output {output} does not exist; make it first")
    if is_there := os.path.lexists(output):
        is_other = True
        with suppress(ValueError):
            is_other = "trial" in read_header(output)["provenance"]  # of a sweep
        if is_other:
            raise ValueError(f"--output {output} exists and is no model of catdog.train; name another file")
    partial = output.with_name(f".{output.name}.partial")  # as `write_file` calls it
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise ValueError(f"--output {output} cannot be written ({error.strerror}); name another file") from error
    return is_there


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a training and keep the previous file as a fallback."""
    buffer = io.BytesIO()  # torch.save to a full disk raises RuntimeError; write_file raises OSError
    torch.save(state, buffer)
    if path.exists():
        path.replace(f"{path}.before")
    write_file(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Return the state that `save_state` wrote, the one before it if the file is damaged, or {} if there is none."""
    for file in filter(Path.exists, (path, Path(f"{path}.before"))):
        content = io.BytesIO(file.read_bytes())
        try:
            state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:  # each kind of damage has its own
            if is_process_lost(error):
                raise
            file.unlink(missing_ok=True)  # or `save_state` would replace the good file by the damaged one
        else:
            return state
    return {}


def _read(path: Path) -> tuple[dict[str, Tensor], Header]:
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
        remedy = "name the file of a model, or train one: python run_sweep.py writes best_model/model.safetensors"
        raise ValueError(f"{path.absolute()} {problem}; {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            claimed = metadata.pop("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        unfit = "is not a whole model file of this project; put back a copy of it, name another, or train again"
        raise ValueError(f"{path} {unfit}") from error
    if claimed != _digest(tensors, metadata):
        raise ValueError(f"{path} was altered: its sha256 does not match; put back a copy of it, or train again")
    if missing := ENTRIES - metadata.keys():
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))} in its header; train it again")
    return tensors, {"sha256": claimed, **{key: json.loads(value) for key, value in metadata.items()}}


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
