"""Uploaded files and archives: image files, or one sentence."""

import random
import struct
import zipfile
from pathlib import Path

import pytest

from catdog.data.decode import decode_image
from catdog.serving import uploads
from catdog.serving.uploads import MAX_IMAGES, unpack
from tests.catdog.data.test_decode import GOOD


@pytest.fixture
def archive(tmp_path):
    """Write a zip: `archive({name: content})`."""

    def write(members, compression=zipfile.ZIP_DEFLATED):
        path = tmp_path / "several.zip"
        with zipfile.ZipFile(path, "w", compression) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return path

    return write


def test_files_and_archives_are_unpacked_in_order(archive, tmp_path):
    (tmp_path / "one.png").write_bytes(GOOD["png"])
    clutter = {"folder/": b"", "__MACOSX/._two.jpg": b"x", "folder/.DS_Store": b"x", "Thumbs.db": b"x"}
    path = archive({**clutter, "folder/two.jpg": GOOD["jpeg"], "broken.jpg": b"words"})
    items = unpack([("one.png", tmp_path / "one.png"), ("several.zip", path)])
    assert [(item.name, item.problem) for item in items] == [
        ("one.png", ""),
        ("folder/two.jpg", ""),
        ("broken.jpg", ""),
    ]
    assert items[1].content == GOOD["jpeg"]


def test_names_that_climb_out_of_an_archive_write_nothing(archive, tmp_path, monkeypatch):
    names = ("../../climbed.jpg", "/etc/climbed.jpg", "up\\..\\climbed.jpg")
    path = archive(dict.fromkeys(names, GOOD["jpeg"]))
    (tmp_path / "down/here").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path / "down/here")
    assert [item.name for item in unpack([("several.zip", path)])] == list(names)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/etc/climbed.jpg").exists()


def test_bomb_is_refused_by_what_it_claims(archive):
    path = archive({f"{index}.jpg": bytes(30 * 2**20) for index in range(20)})
    assert path.stat().st_size < 2**20
    (item,) = unpack([("bomb.zip", path)])
    assert item.problem == "holds more than 500 files or 512 MB"
    path = archive({f"{index}.jpg": b"" for index in range(MAX_IMAGES + 1)})
    (item,) = unpack([("bomb.zip", path)])
    assert item.problem == "holds more than 500 files or 512 MB"


def test_member_that_lies_about_its_size_is_named(archive):
    path = archive({"lies.jpg": bytes(10 * 2**20), "true.jpg": GOOD["jpeg"]})
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 10 * 2**20), struct.pack("<I", 1000)))
    first, second = unpack([("lies.zip", path)])
    assert (first.name, first.problem) == ("lies.jpg", "is damaged in the archive")
    assert second.content == GOOD["jpeg"]


@pytest.mark.parametrize("damage", [slice(0, 60), slice(-40, None), slice(200, 400)])
def test_damaged_archive_is_named(archive, damage, tmp_path):
    (tmp_path / "good.png").write_bytes(GOOD["png"])
    path = archive({"one.jpg": GOOD["jpeg"], "two.jpg": GOOD["png"]})
    content = bytearray(path.read_bytes())
    content[damage] = bytes(len(content[damage]))
    path.write_bytes(content)
    items = unpack([("several.zip", path), ("good.png", tmp_path / "good.png")])
    assert items[-1].content == GOOD["png"]
    assert all(item.problem or item.content for item in items)


def test_any_damage_to_an_archive_leaves_the_others(archive, tmp_path):
    (tmp_path / "good.png").write_bytes(GOOD["png"])
    path = archive({"one.jpg": GOOD["jpeg"], "two.jpg": b"words", "folder/": b""})
    content, rng = path.read_bytes(), random.Random(0)
    for _ in range(600):
        broken = bytearray(content)
        for _ in range(rng.randint(1, 12)):
            broken[rng.randrange(len(content) - 250, len(content))] = rng.randrange(256)
        path.write_bytes(broken)
        assert unpack([("several.zip", path), ("good.png", tmp_path / "good.png")])[-1].content == GOOD["png"]


def test_encrypted_archive_is_named(archive):
    path = archive({"one.jpg": GOOD["jpeg"]}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    (item,) = unpack([("locked.zip", path)])
    assert item.problem == "is encrypted; send it without a password"


def test_empty_archive_is_named_and_one_in_another_is_no_image(archive, tmp_path):
    (item,) = unpack([("empty.zip", archive({}))])
    assert item.problem == "the archive is empty"
    inner = archive({"one.jpg": GOOD["jpeg"]}).read_bytes()
    (item,) = unpack([("outer.zip", archive({"inner.zip": inner}))])
    with pytest.raises(ValueError, match="not an image"):
        decode_image(item.content, 32)


def test_too_many_or_too_large_in_all_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "one.png"
    path.write_bytes(GOOD["png"])
    with pytest.raises(ValueError, match="there are more than 500 images; send them in several requests"):
        unpack([("one.png", path)] * (MAX_IMAGES + 1))
    monkeypatch.setattr(uploads, "MAX_TOTAL", 2 * len(GOOD["png"]))
    with pytest.raises(ValueError, match="send them in several requests"):
        unpack([("one.png", path)] * 3)


def test_names_are_shown_without_control_characters(archive, tmp_path):
    (tmp_path / "one").write_bytes(GOOD["jpeg"])
    files = unpack([("a\x1b[31m\n.jpg", tmp_path / "one"), ("b\x07.zip", archive({"in\x1b\u202egpj.\n": b"x"}))])
    assert [file.name for file in files] == [r"a\x1b[31m\n.jpg", r"in\x1b\u202egpj.\n"]


def test_image_with_an_archive_at_its_end_is_an_image(archive, tmp_path):
    for kind in ("jpeg", "png", "webp"):
        (tmp_path / kind).write_bytes(GOOD[kind] + archive({"secret.txt": b"x"}).read_bytes())
        (file,) = unpack([(kind, tmp_path / kind)])
        assert decode_image(file.content, 32).shape == (32, 32, 3)
