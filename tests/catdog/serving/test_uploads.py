"""What strangers send: a picture, or one sentence."""

import random
import struct
import zipfile
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catdog.data.decode import decode_image, decode_preview
from catdog.data.synthetic import draw
from catdog.serving import uploads as intake
from catdog.serving.uploads import MAX_IMAGES, unpack

ANIMAL = draw(0, 96, 7)


def saved(picture, kind, **options):
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def bomb_of(width, height):
    """A small PNG that claims to be large."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown turned clockwise
    return saved(ANIMAL.rotate(90), "JPEG", exif=exif, quality=95)


GOOD = {
    "jpeg": saved(ANIMAL, "JPEG", quality=95),
    "png": saved(ANIMAL, "PNG"),
    "webp": saved(ANIMAL, "WEBP", quality=95),
    "cmyk": saved(ANIMAL.convert("CMYK"), "JPEG", quality=95),
    "palette": saved(ANIMAL.quantize(255), "PNG"),
    "gif of three": saved(ANIMAL, "GIF", save_all=True, append_images=[ANIMAL.rotate(90), ANIMAL.rotate(180)]),
    "exif-rotated": rotated(),
    "transparent": saved(ANIMAL.convert("RGBA"), "PNG"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_every_format_shows_the_same_animal(kind):
    difference = np.abs(decode_image(GOOD[kind], 48).astype(int) - decode_image(GOOD["png"], 48).astype(int))
    assert difference.mean() < 12
    assert decode_preview(GOOD[kind], 40).size == (40, 40)


def test_sixteen_bits_are_scaled_and_not_clipped():
    grey = np.linspace(0, 65535, 96 * 96).reshape(96, 96).astype(np.uint16)
    assert 100 < decode_image(saved(Image.fromarray(grey), "PNG"), 48).mean() < 155


def test_one_pixel_is_a_picture():
    assert decode_image(saved(Image.new("RGB", (1, 1), "red"), "PNG"), 32).shape == (32, 32, 3)
    assert decode_preview(saved(Image.new("RGB", (1, 4000), "red"), "PNG"), 100).size == (1, 100)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"These are words.", "this file is not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this file is not an image that can be read"),
        (GOOD["jpeg"][: len(GOOD["jpeg"]) // 2], "the image is truncated or damaged"),
        (GOOD["png"][:-300], "the image is truncated or damaged"),
        (bomb_of(50_000, 50_000), "the image is too large; the limit is 50 million pixels"),
        (bomb_of(8_000, 7_000), "the image has 8,000 x 7,000 pixels; the limit is 50 million pixels"),
        (bomb_of(2_000, 2_000), "the image is truncated or damaged"),
        (bytes(33 * 2**20), "the file has 33 MB; the limit is 32 MB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_picture_is_one_sentence(content, sentence):
    for read in (decode_image, decode_preview):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            read(content, 64)


def test_any_damage_is_a_picture_or_one_sentence():
    rng = random.Random(0)
    for content in GOOD.values():
        for _ in range(40):
            broken = bytearray(content)
            for _ in range(rng.randint(1, 20)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            with suppress(ValueError):  # any other error fails the test
                assert decode_image(bytes(broken), 32).shape == (32, 32, 3)


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


def test_picture_whose_head_would_have_to_be_decoded_is_refused():
    with pytest.raises(ValueError, match="not an image that can be read"):
        decode_image(saved(ANIMAL, "ICO"), 32)


def test_encrypted_archive_is_named(archive):
    path = archive({"one.jpg": GOOD["jpeg"]}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    (item,) = unpack([("locked.zip", path)])
    assert item.problem == "is encrypted; send it without a password"


def test_empty_archive_is_named_and_one_in_another_is_no_picture(archive, tmp_path):
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
    monkeypatch.setattr(intake, "MAX_TOTAL", 2 * len(GOOD["png"]))
    with pytest.raises(ValueError, match="send them in several requests"):
        unpack([("one.png", path)] * 3)
