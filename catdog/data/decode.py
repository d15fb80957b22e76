"""Decode image files: any common format, upright, as RGB.

`read_image` trusts the file, for data folders. `decode_image` and `decode_preview` limit the memory that it may take.
"""

import threading
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from catdog.device import release_freed_memory

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")  # their headers are cheap to read
MAX_BYTES = 32 * 2**20  # of one file
MAX_PIXELS = 50_000_000  # of one image; the largest phone sensors have as many
LARGE = 8_000_000  # pixels; larger images are decoded one at a time, since the largest need a gigabyte

_one_at_a_time = threading.Lock()


def decode_image(content: bytes, size: int) -> np.ndarray:
    """Decode the content of an image file to (size, size, 3) uint8, within the limits on bytes and pixels.

    The number of pixels is read from the file's header first, so that a small file cannot fill the memory. Raises
    ValueError for a file that is too large or cannot be read.
    """
    return np.array(_decode_within_limits(content, size, read_image))


def decode_preview(content: bytes, size: int) -> Image.Image:
    """Decode an image for display, at most `size` pixels wide and high. Raises ValueError like `decode_image`."""
    return _decode_within_limits(content, size, _read_preview)


def read_image(content: bytes, size: int) -> Image.Image:
    """Decode an image of any format and mode to upright RGB, stretched to (size, size) pixels.

    Raises OSError, ValueError or an Image.DecompressionBomb error for content that is not an image.
    """
    return _open_upright(content, size).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)


def _read_preview(content: bytes, size: int) -> Image.Image:
    image = _open_upright(content, size)
    image.thumbnail((size, size))
    return image


def _decode_within_limits(content: bytes, size: int, read: Callable[[bytes, int], Image.Image]) -> Image.Image:
    num_pixels = _count_pixels(content)
    try:
        if num_pixels <= LARGE:
            return read(content, size)
        with _one_at_a_time:
            image = read(content, size)
            release_freed_memory()
            return image
    except Exception as error:
        raise ValueError("the image is truncated or damaged") from error


def _count_pixels(content: bytes) -> int:
    """Read the number of pixels from a file's header. Raises ValueError if the file exceeds a limit."""
    if not content:
        raise ValueError("the file is empty")
    if len(content) > MAX_BYTES:
        raise ValueError(f"the file has {len(content) / 2**20:.0f} MB; the limit is {MAX_BYTES / 2**20:.0f} MB")
    limit = f"the limit is {MAX_PIXELS / 1e6:.0f} million pixels"
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"the image is too large; {limit}") from None
    except Exception:  # noqa: BLE001 - Pillow's readers raise anything on a file that is not an image
        raise ValueError("this file is not an image that can be read") from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"the image has {width:,} x {height:,} pixels; {limit}")
    return width * height


def _open_upright(content: bytes, size: int) -> Image.Image:
    with Image.open(BytesIO(content), formats=FORMATS) as file:
        file.draft("RGB", (size, size))  # JPEG alone: decode at 1/2, 1/4 or 1/8 of the size
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # 16 bits a pixel: convert("RGB") would clip, not scale
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
