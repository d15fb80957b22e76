import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catdog.checkpoint import save_model
from catdog.data.preprocess import preprocessing
from catdog.model import ModelConfig, build_model
from catdog.predict import Classifier, main

HEADER = {"classes": ["cat", "dog"], "preprocessing": preprocessing(32), "metrics": {}, "provenance": {}}


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(build_model(ModelConfig(2, 4, 2, image_size=32)), path, HEADER)
    return path


@pytest.fixture
def ask(model_file, monkeypatch):
    def run(*images, model=model_file):
        monkeypatch.setattr("sys.argv", ["predict", *map(str, images), "--model", str(model)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code

    return run


def test_probabilities_sum_to_one(model_file, drawn_files):
    probabilities = Classifier(model_file)(drawn_files[0][:3])
    assert probabilities.shape == (3, 2)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)


def test_command_says_cat_or_dog_for_each_image(ask, photographs, capsys):
    images = sorted((photographs / "test_set/test_set/cats").iterdir())
    assert ask(*images) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(str(path)) and "cat " in line for line, path in zip(lines, images, strict=True))


def test_broken_image_among_others_is_named_and_the_rest_go_on(ask, photographs, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no image")
    good = next((photographs / "test_set/test_set/dogs").iterdir())
    assert ask(tmp_path / "text.jpg", tmp_path / "none.jpg", "https://example.com/cat.jpg", good) == 2
    said = capsys.readouterr()
    assert said.out.startswith(str(good))
    assert "text.jpg: this file is not an image that can be read" in said.err
    assert "none.jpg: there is no such file" in said.err
    assert "cat.jpg: this is an address; download the image, and give its file" in said.err


def test_name_of_a_file_is_no_command_to_the_terminal(ask, photographs, tmp_path, capsys):
    names = [tmp_path / f"\x1b[31m{name}.jpg" for name in ("good", "none")]
    names[0].write_bytes(next(photographs.rglob("*.jpg")).read_bytes())
    assert ask(*names) == 2
    said = capsys.readouterr()
    assert "\\x1b[31mgood.jpg: " in said.out
    assert "\\x1b[31mnone.jpg: there is no such file" in said.err
    assert "\x1b" not in said.out + said.err


def test_model_of_other_preprocessing_is_refused(tmp_path):
    header = {**HEADER, "preprocessing": {**preprocessing(32), "resize": "crop"}}
    save_model(build_model(ModelConfig(2, 4, 2, image_size=32)), tmp_path / "other.safetensors", header)
    with pytest.raises(ValueError, match="needs a preprocessing that this version does not have"):
        Classifier(tmp_path / "other.safetensors")


def test_tampered_model_is_refused(ask, model_file, photographs, capsys):
    content = bytearray(model_file.read_bytes())
    content[-5] ^= 1
    model_file.write_bytes(content)
    assert ask(next(photographs.rglob("*.jpg"))) == 2
    assert "was altered: its sha256 does not match" in capsys.readouterr().err


def test_strange_image_is_probably_neither(champion, tmp_path, monkeypatch, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    monkeypatch.setattr("sys.argv", ["predict", str(tmp_path / "noise.png"), "--model", str(champion())])
    with pytest.raises(SystemExit):
        main()
    assert "noise.png: probably neither  (cat " in capsys.readouterr().out


def test_names_of_any_bytes_are_printed_as_escapes(ask, photographs, tmp_path, capsys):
    good = next((photographs / "test_set/test_set/dogs").iterdir()).read_bytes()
    for name, content in {b"\xff\x1b[2J.jpg": good, b"new\nline.jpg": good, b"\xe9.html": b"<html>"}.items():
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.write_bytes(content)
        ask(path)
    said = capsys.readouterr()
    assert r"\udcff\x1b[2J.jpg: " in said.out
    assert r"new\nline.jpg: " in said.out
    assert said.err.endswith(r"\udce9.html: this file is a web page, not an image; download the image again" + "\n")
    assert said.out.count("\n") == 2
