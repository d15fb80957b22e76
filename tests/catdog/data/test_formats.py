"""Formats that Pillow alone does not decode: HEIC with pi-heif, and others by name with a remedy."""

import sys
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from catdog.data import formats
from catdog.data.dataset import load_data
from catdog.data.decode import decode_image, decode_preview
from catdog.data.formats import can_decode_heic
from tests.catdog.data.test_decode import ANIMAL, saved

# 64 x 96 pixels, yellow above, blue, red below; stored turned by 90 degrees, with a box `irot` that turns it back.
HEIC = b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAWBtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABhAABAAAAAAAAADMAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA4GlwcnAAAADAaXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoDCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xy"
    "bmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABgAAAAQAAAABBwaXhpAAAAAAMICAgAAAAJaXJvdAMAAAAYaXBtYQAAAAAAAAABAAEF"
    "gQIDBIUAAAA7bWRhdAAAAC8oAa9Y9a3jsO1xr/jgU/PYHff88Xi6kudf0LTx2o2/o4kfHFKk9NiOpdXN4prrQA=="
)
BANDS = [(240, 230, 40), (20, 30, 160), (200, 20, 20)]


@pytest.fixture
def no_pi_heif(monkeypatch):
    """An environment without the extra."""
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    can_decode_heic.cache_clear()
    yield
    can_decode_heic.cache_clear()


def test_heic_is_decoded_upright():
    pytest.importorskip("pi_heif")
    assert np.abs(decode_image(HEIC, 96)[[8, 48, 88], 48].astype(int) - BANDS).max() < 12
    assert decode_preview(HEIC, 48).size == (32, 48)


def test_heic_is_decoded_by_many_threads_at_once():
    pytest.importorskip("pi_heif")
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda _: decode_image(HEIC, 32), range(64)))
    assert all(np.array_equal(image, images[0]) for image in images)


def test_damaged_heic_is_one_sentence():
    pytest.importorskip("pi_heif")
    for content in (HEIC[:60], HEIC[:-30], HEIC[:24] + bytes(400)):
        with pytest.raises(ValueError, match=r"damaged") as error:
            decode_image(content, 32)
        assert "\n" not in str(error.value)


def test_heic_without_pi_heif_is_named_with_the_remedy(no_pi_heif):
    for read in (decode_image, decode_preview):
        with pytest.raises(ValueError, match=r"^this file is a HEIC image; install pi-heif .* or convert it to JPEG$"):
            read(HEIC, 32)


def test_heic_among_training_images_is_noted_until_pi_heif_is_installed(photographs, monkeypatch):
    pytest.importorskip("pi_heif")
    for number in range(12):
        (photographs / f"training_set/training_set/cats/IMG_{number}.HEIC").write_bytes(HEIC + bytes([number]))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pi_heif", None)
        can_decode_heic.cache_clear()
        before = load_data(str(photographs), 32)
    (note,) = before.notes
    assert note.startswith("left out 12 of 52 files that are HEIC images (install pi-heif (pip install pi-heif, extra ")
    assert note.endswith("IMG_7.HEIC and 2 more")
    can_decode_heic.cache_clear()
    after = load_data(str(photographs), 32)
    assert not after.notes
    assert len(after.training) + len(after.validation) == 52


def box(brand, rest=b"", size=32):
    return (size).to_bytes(4, "big") + b"ftyp" + brand + bytes(4) + rest.ljust(400)


FOREIGN = {
    "AVIF": (box(b"avif", b"mif1"), "AVIF image; convert it"),
    "camera raw CR3": (box(b"crx "), "camera raw image; convert it"),
    "camera raw CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(300), "camera raw image; convert it"),
    "camera raw RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(300), "camera raw image"),
    "mp4": (box(b"isom", b"iso2avc1mp41"), "video, not an image; save single frames"),
    "mov": (box(b"qt  "), "video, not an image"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(300), "video, not an image"),
    "avi": (b"RIFF\0\0\0\0AVI LIST" + bytes(300), "video, not an image"),
    "JPEG XL": (b"\xff\x0a" + bytes(300), "JPEG XL image; convert it"),
    "JPEG XL in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(300), "JPEG XL image"),
    "PSD": (b"8BPS\0\1" + bytes(300), "Photoshop document; convert it"),
    "DICOM": (bytes(128) + b"DICM" + bytes(300), "DICOM image"),
    "ICO": (b"\0\0\1\0\1\0" + bytes(300), "an ICO icon; convert it to JPEG"),
    "ICNS": (b"icns\0\0\1\0ic07" + bytes(300), "an ICNS icon; convert it"),
    "PCX": (saved(ANIMAL, "PCX"), "a PCX image; convert it"),
    "DDS": (saved(ANIMAL, "DDS"), "a DDS texture; convert it"),
    "EPS": (saved(ANIMAL, "EPS"), "a PostScript drawing; convert it"),
    "EPS with a preview": (b"\xc5\xd0\xd3\xc6" + bytes(300), "a PostScript drawing"),
    "PDF": (b"%PDF-1.7\n" + bytes(300), "PDF document, not an image; save the images in it"),
    "zip": (b"PK\3\4" + bytes(300), "archive, not an image; unpack it"),
    "gzip": (b"\x1f\x8b\x08" + bytes(300), "archive, not an image"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "fetch the image with git lfs pull"),
    "SVG": (b"<?xml version='1.0'?>\n<!-- by hand -->\n<svg/>", "an SVG drawing; convert it"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><title>403</title>", "web page, not an image; download the image again"),
    "html after a mark": (b"\xef\xbb\xbf<html><body>gone", "web page, not an image"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML text, not an image"),
    "JSON": (b'{"error": "not found"}', "a JSON or XML text, not an image; download or give the image itself"),
    "zeros": (bytes(5000), "the file holds nothing but zero bytes; copy it again"),
    "TIFF": (b"II*\0\x08\0\0\0\0\0" + bytes(300), "a damaged or rare kind of TIFF image; convert it"),
}


def test_foreign_format_is_named_with_the_remedy():
    for content, sentence in FOREIGN.values():
        with pytest.raises(ValueError, match=sentence) as error:
            decode_image(content, 32)
        assert "\n" not in str(error.value)


def test_thumbnail_in_a_camera_raw_is_not_taken_for_the_image():
    dng = saved(ANIMAL, "TIFF", tiffinfo={0xC612: (1, 4, 0, 0)})
    nef = saved(ANIMAL, "TIFF", tiffinfo={0xFE: 1})
    for content in (dng, nef):
        with pytest.raises(ValueError, match="a camera raw image; convert it to JPEG"):
            decode_image(content, 32)


def test_several_files_of_a_format_are_one_note(photographs):
    cats = photographs / "training_set/training_set/cats"
    for number in range(3):
        (cats / f"page{number}.jpg").write_bytes(b"<html>" + bytes([number]))
    (cats / "cut.jpg").write_bytes(saved(ANIMAL, "JPEG")[:900])
    cut, pages = load_data(str(photographs), 32).notes
    assert "left out 3 of 44 files that are web pages, not images (download the image again): " in pages
    assert "left out 1 of 44 files that are truncated or damaged: " in cut


def test_pillow_without_a_format_still_names_it(monkeypatch):
    image = Image.new("RGB", (8, 8))
    monkeypatch.setattr("catdog.data.decode.FORMATS", ("JPEG",))
    with pytest.raises(ValueError, match="AVIF image"):
        decode_image(saved(image, "AVIF"), 8)
    assert formats.is_heic(HEIC)
