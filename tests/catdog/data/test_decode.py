"""Decoding of any file: an image, or one sentence."""

import random
import struct
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from catdog.data.decode import decode_image, decode_preview, read_image
from catdog.data.synthetic import draw

ANIMAL = draw(0, 96, 7)
SRGB = ImageCms.createProfile("sRGB")

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # decode.py does so outside of tests


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
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this file is an SVG drawing; convert it to JPEG"),
        (GOOD["jpeg"][: len(GOOD["jpeg"]) // 2], "the image is truncated or damaged"),
        (GOOD["png"][:-300], "the image is truncated or damaged"),
        (bomb_of(50_000, 50_000), "the image is too large; the limit is 50 million pixels"),
        (bomb_of(8_000, 7_000), "the image has 8,000 x 7,000 pixels; the limit is 50 million pixels"),
        (bomb_of(2_000, 2_000), "the image is truncated or damaged"),
        (bytes(33 * 2**20), "the file has more than 32 MB; send a smaller one"),
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
    with pytest.raises(ValueError, match="this file is an ICO icon; convert it to JPEG"):
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


TURNED = {
    2: (0, 1),
    3: (1, 1),
    4: (1, 0),
    5: (0, 0),
    6: (0, 1),
    7: (1, 1),
    8: (1, 0),
}  # place of the white corner of `corner` when upright


def corner():
    image = Image.new("L", (64, 96), "black")
    image.paste("white", (0, 0, 32, 48))
    return image.convert("RGB")


MINUS_2_OF_0 = struct.pack("<ii", -2, 0)


def exif_of(orientation, tag=0x9204, kind=10, payload=MINUS_2_OF_0, length=1):
    """The EXIF of a phone: an orientation, and a value in the second directory that Pillow cannot write again."""
    first = struct.pack("<HHHII", 2, 0x112, 3, 1, orientation) + struct.pack("<HHII", 0x8769, 4, 1, 38) + bytes(4)
    second = struct.pack("<HHHII", 1, tag, kind, length, 56) + bytes(4)
    return b"Exif\0\0II*\0\x08\0\0\0" + first + second + payload


def white_corner(content):
    grey = np.asarray(read_image(content, 64)).mean(2)
    (place,) = np.argwhere(grey[16::32, 16::32] > 200).tolist()
    return tuple(place)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_read_beside_values_that_cannot_be_written_again(form):
    for orientation, place in TURNED.items():
        for changes in ({}, {"tag": 0x829A, "kind": 5}, {"kind": 12, "length": 2**31}, {"payload": b""}):
            exif = exif_of(orientation, **changes)
            assert white_corner(saved(corner(), form, exif=exif)) == place, (orientation, changes)


def test_orientation_of_tiff_is_read_beside_directories_that_lead_nowhere():
    for orientation, place in TURNED.items():
        for pointer in (3, 8, 99_999):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[0x112], tags[0x8769] = orientation, pointer
            tags.tagtype[0x8769] = 4
            assert white_corner(saved(corner(), "TIFF", tiffinfo=tags)) == place, (orientation, pointer)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0??", exif_of(9), exif_of(0)])
def test_broken_exif_leaves_an_image_as_it_is(exif):
    for form in ("JPEG", "PNG", "WEBP"):
        assert white_corner(saved(corner(), form, exif=exif)) == (0, 0)


def test_orientation_in_xmp_is_applied():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    assert white_corner(saved(corner(), "JPEG", xmp=xmp)) == (1, 1)


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def ramp(high, kind, form="TIFF", low=0.0):
    return saved(Image.fromarray((low + RAMP * (high - low)).astype(kind)), form)


DEEP = {
    "10 bits": ramp(1023, np.uint16, "PNG"),
    "12 bits": ramp(4095, np.uint16, "PNG"),
    "14 bits": ramp(16383, np.uint16),
    "16 bits": ramp(65535, np.uint16),
    "6 of 16 bits": ramp(63, np.uint16),
    "big-endian": ramp(4095, ">u2"),
    "8 of 32 bits": ramp(255, np.int32),
    "16 of 32 bits": ramp(65535, np.int32),
    "31 of 32 bits": ramp(2**31 - 1, np.int32),
    "Hounsfield units": ramp(3071, np.int32, low=-1024),
    "fractions": ramp(1, np.float32),
    "floats of 8 bits": ramp(255, np.float32),
    "small fractions": ramp(0.001, np.float32),
    "floats around zero": ramp(1, np.float32, low=-1),
    "with transparency": saved(Image.fromarray((RAMP * 65535).astype(np.uint16)), "PNG", transparency=65535),
}


@pytest.mark.parametrize("kind", DEEP)
def test_levels_of_any_depth_are_shown_in_full(kind):
    image = decode_image(DEEP[kind], 64)
    assert np.abs(image[..., 0] - 255 * RAMP).max() < 10


def test_level_alone_keeps_its_place_in_the_range():
    for level, kind, grey in ((0, np.uint16, 0), (128, np.int32, 128), (32768, np.uint16, 128), (0.5, np.float32, 128)):
        flat = saved(Image.fromarray(np.full((8, 8), level, dtype=kind)), "TIFF")
        assert abs(int(decode_image(flat, 8).max()) - grey) <= 1


def test_values_that_are_no_numbers_are_black_or_white_and_never_all():
    values = RAMP.astype(np.float32)
    values[:8], values[8:16], values[16:24] = np.nan, -np.inf, np.inf
    grey = decode_image(saved(Image.fromarray(values), "TIFF"), 64)[..., 0]
    assert [grey[2].max(), grey[10].max(), grey[20].min()] == [0, 0, 255]
    assert np.abs(grey[30] - 255 * RAMP[30]).max() < 10
    with pytest.raises(ValueError, match=r"^the image has no finite values$"):
        decode_image(saved(Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)), "TIFF"), 8)


def spoilt(kind, levels, *values, form="TIFF"):
    """A ramp of `levels` in which the first pixels have other values."""
    image = (levels[0] + RAMP * (levels[1] - levels[0])).astype(kind)
    image.flat[: len(values)] = values
    return saved(Image.fromarray(image), form)


SPOILT = {
    "largest float": spoilt(np.float32, (0, 1), 3.4e38),
    "1e30": spoilt(np.float32, (0, 1), 1e30),
    "smallest float": spoilt(np.float32, (0, 1), -3.4e38),
    "both": spoilt(np.float32, (0, 255), -3.4e38, 3.4e38),
    "-9999": spoilt(np.float32, (0, 255), -9999),
    "a tenth without data": spoilt(np.float32, (100, 900), *[-32768] * 400),
    "12 bits and a hot pixel": spoilt(np.uint16, (0, 4095), 65535, form="PNG"),
    "10 bits and some hot pixels": spoilt(np.uint16, (0, 1023), 65535, 65000, 64000, 63000),
    "narrow": spoilt(np.uint16, (30000, 34095), form="PNG"),
    "unsigned and narrow": spoilt(np.int32, (0, 3000), 2**31 - 1),
    "lowest integer": spoilt(np.int32, (0, 3000), -(2**31)),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_few_extreme_levels_make_no_image_black_or_white(kind):
    grey = decode_image(SPOILT[kind], 64)[8:, :, 0]
    assert np.abs(grey - 255 * RAMP[8:]).max() < 32  # the stretch starts where the marked tenth ends


def test_levels_that_use_their_range_are_not_stretched():
    for low, high in ((0, 65535), (5000, 60000), (20000, 40000)):
        grey = decode_image(spoilt(np.uint16, (low, high), form="PNG"), 64)[..., 0]
        assert np.abs(grey - (low + RAMP * (high - low)) / 257).max() < 3


def test_flat_image_with_a_mark_keeps_its_grey():
    for kind, level, mark in ((np.float32, 0.5, 3.4e38), (np.float32, 0.5, -9999), (np.uint16, 128, 65535)):
        assert abs(int(np.median(decode_image(spoilt(kind, (level, level), mark), 64))) - 128) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_image_that_is_transparent_altogether_is_named(mode):
    image = ANIMAL.convert(mode)
    image.putalpha(0)
    with pytest.raises(ValueError, match="shows nothing, since what is in it is transparent; save it without"):
        decode_image(saved(image, "PNG"), 32)


def test_drawing_in_white_on_transparent_is_named():
    drawing = Image.fromarray(RAMP > 0.5)
    with pytest.raises(ValueError, match="shows nothing"):
        decode_image(saved(drawing, "PNG", transparency=0), 32)
    assert decode_image(saved(drawing.convert("L"), "PNG", transparency=255), 32).min() == 0


def png_of_16_bits(levels):
    """A PNG of 16 bits a channel, which Pillow cannot write. `levels`: (H, W, 3 or 4), 0 to 65535."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    head = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, {3: 2, 4: 6}[levels.shape[2]], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_colours_of_16_bits_are_shown_or_named_and_never_black():
    colours = np.dstack([RAMP * 65535] * 3)
    assert np.abs(decode_image(png_of_16_bits(colours), 64)[..., 0] - 255 * RAMP).max() < 10
    opaque = np.full((64, 64, 1), 65535)
    hot = colours / 20
    hot[5, 5] = 65535
    for dark in (colours / 16, colours / 200, hot, np.concatenate((colours / 16, opaque), axis=2)):
        with pytest.raises(ValueError, match="all but black, since it uses a few of its 16 bits per channel; convert"):
            decode_image(png_of_16_bits(dark), 64)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "LAB"])
def test_mode_of_tiff_shows_the_same_animal(mode):
    if mode == "LAB":
        image = ImageCms.profileToProfile(ANIMAL, SRGB, ImageCms.createProfile("LAB"), outputMode="LAB")
    else:
        image = ANIMAL.convert("LA").convert("PA") if mode == "PA" else ANIMAL.convert(mode)
    grey = read_image(saved(image, "TIFF"), 48).convert("L")
    assert np.abs(np.asarray(grey).astype(int) - np.asarray(read_image(GOOD["png"], 48).convert("L"))).mean() < 12


def test_first_of_several_images_counts():
    black, others = Image.new("RGB", (32, 32)), [Image.new("RGB", (32, 32), "white")] * 2
    for form in ("GIF", "TIFF", "WEBP", "PNG", "MPO", "AVIF"):
        assert decode_image(saved(black, form, save_all=True, append_images=others), 32).max() < 9, form


def test_bytes_after_an_image_do_not_matter():
    for kind in ("jpeg", "png", "webp"):
        assert np.array_equal(decode_image(GOOD[kind] + b"PK\3\4 and more", 32), decode_image(GOOD[kind], 32))


def test_photograph_of_100_million_pixels_trains_as_jpeg_alone():
    jpeg, png = (saved(Image.new("L", (10_400, 10_000), 99), form) for form in ("JPEG", "PNG"))
    assert np.asarray(read_image(jpeg, 32)).max() == 99
    for content, read in ((png, read_image), (png, decode_image), (jpeg, decode_image)):
        with pytest.raises(ValueError, match=r"too large|10,400 x 10,000 pixels; the limit is 50 million pixels"):
            read(content, 32)
