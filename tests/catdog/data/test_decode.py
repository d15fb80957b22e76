"""Decoding of any file: an image, or one sentence."""

import random
import struct
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from catdog.data.decode import decode_image, decode_preview, read_image
from catdog.data.synthetic import draw

ANIMAL = draw(0, 96, 7)


def saved(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, **options)
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


def test_one_pixel_is_an_image():
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
def test_file_that_is_no_image_is_one_sentence(content, sentence):
    for read in (decode_image, decode_preview):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            read(content, 64)


def test_any_damage_is_an_image_or_one_sentence():
    rng = random.Random(0)
    for content in GOOD.values():
        for _ in range(40):
            broken = bytearray(content)
            for _ in range(rng.randint(1, 20)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            with suppress(ValueError):  # any other error fails the test
                assert decode_image(bytes(broken), 32).shape == (32, 32, 3)


def test_image_whose_head_would_have_to_be_decoded_is_refused():
    with pytest.raises(ValueError, match="not an image that can be read"):
        decode_image(saved(ANIMAL, "ICO"), 32)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_format_is_told_by_content(form):
    image = read_image(saved(Image.new("RGB", (90, 40), (200, 30, 30)), form), 32)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert np.abs(np.asarray(image).mean((0, 1)) - (200, 30, 30)).max() < 6


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert read_image(saved(Image.new("RGB", (40, 40), "white").convert(mode), form), 32).mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped():
    grey = Image.fromarray(np.full((40, 40), 128 * 256, dtype=np.uint16))
    assert np.asarray(read_image(saved(grey, "PNG"), 32)).mean() == pytest.approx(128, abs=1)


def test_transparent_pixels_are_white():
    assert np.asarray(read_image(saved(Image.new("RGBA", (40, 40), (0, 0, 0, 0)), "PNG"), 32)).min() == 255


def test_palette_with_transparency_is_read_without_a_warning():
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0)).convert("P")
    assert read_image(saved(image, "PNG", transparency=b"\x00\x10"), 32).mode == "RGB"


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 64, 32))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright = np.asarray(read_image(saved(image, "JPEG", exif=exif), 64))
    assert upright[:20].mean() < 10
    assert upright[-20:].mean() > 240
