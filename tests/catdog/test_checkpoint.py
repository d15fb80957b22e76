import json
import os
import random
import struct
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from catdog.checkpoint import load_model, read_header, save_model
from catdog.model import ModelConfig, build_model

SMALL = ModelConfig(stem_width=2, body_width=4, body_repeats=2, image_size=32)
HEADER = {"classes": ["cat", "dog"], "preprocessing": {"image_size": 32}, "metrics": {}, "provenance": {"trial": 3}}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(build_model(SMALL, seed=5), path, HEADER)
    return path


def test_saved_network_comes_back_with_its_header(saved):
    model, header = load_model(saved)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), build_model(SMALL, seed=5).eval()(x))
    assert model.config == SMALL
    assert header == {**HEADER, "model": asdict(SMALL), "sha256": header["sha256"]} == read_header(saved)


def test_header_that_was_read_can_be_saved_again(saved, tmp_path):
    model, header = load_model(saved)
    save_model(model, tmp_path / "again.safetensors", header)
    assert read_header(tmp_path / "again.safetensors") == header
    save_model(model, tmp_path / "again.safetensors", {**header, "metrics": {"epoch": 2}})
    assert read_header(tmp_path / "again.safetensors")["sha256"] != header["sha256"]


def test_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="does not exist; name the file of a model, or train one"):
        load_model(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe")
    for name, problem in {"pipe": "is not a file", ".": "is a folder"}.items():
        with pytest.raises(ValueError, match=f"{problem}; name the file of a model"):
            load_model(tmp_path / name)


def test_every_flipped_bit_is_refused(saved):
    content, rng = bytearray(saved.read_bytes()), random.Random(0)
    for _ in range(200):
        byte, bit = rng.randrange(len(content)), rng.randrange(8)
        content[byte] ^= 1 << bit
        saved.write_bytes(content)
        with pytest.raises(ValueError, match=r"was altered|not a whole model file|does not hold"):
            load_model(saved)
        content[byte] ^= 1 << bit


def test_header_that_describes_another_network_is_refused(tmp_path):
    model = build_model(SMALL)
    model.config = ModelConfig(stem_width=3, body_width=4, body_repeats=2, image_size=32)
    save_model(model, tmp_path / "lie.safetensors", HEADER)
    with pytest.raises(ValueError, match="does not hold the network its header describes"):
        load_model(tmp_path / "lie.safetensors")


def test_header_without_an_entry_is_refused(tmp_path):
    save_model(build_model(SMALL), tmp_path / "bare.safetensors", {"classes": ["cat", "dog"], "metrics": {}})
    with pytest.raises(ValueError, match="lacks preprocessing, provenance in its header"):
        load_model(tmp_path / "bare.safetensors")


def test_truncated_file_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-7])
    with pytest.raises(ValueError, match="not a whole model file of this project"):
        load_model(saved)


def test_safetensors_file_of_another_program_is_no_altered_model(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="not a whole model file of this project"):
        load_model(tmp_path / "other.safetensors")


def test_header_can_be_read_without_our_code(saved):
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    assert set(metadata) == {"model", "classes", "preprocessing", "metrics", "provenance", "sha256"}
