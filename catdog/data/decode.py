"""Decode image files: any common format, upright, as RGB.

`read_image` trusts the file, for data folders. `decode_image` and `decode_preview` limit the memory that it may take.
"""

import math
import threading
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile

from catdog.data.formats import UnreadableImageError, can_decode_heic, damaged, explain, foreign, is_heic
from catdog.device import release_freed_memory

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")  # their headers are cheap to read
MAX_BYTES = 32 * 2**20  # of one file
MAX_PIXELS = 50_000_000  # of one image; the largest phone sensors have as many
MILLIONS = f"{MAX_PIXELS / 1e6:.0f} million pixels"
TOO_LARGE = f"have more than {MILLIONS}"
LARGE = 8_000_000  # pixels; larger images are decoded one at a time, since the largest need a gigabyte
SAMPLE = 2_000_000  # levels that are enough to tell the range of an image
DNG_VERSION, SAMPLE_FORMAT, BITS, PHOTOMETRIC, KIND = 0xC612, 0x153, 0x102, 0x106, 0xFE  # tags of TIFF
MIN_LEVEL = 16  # of 255: in darker images of 16 bits a channel, Pillow has dropped the bits in use
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_one_at_a_time = threading.Lock()
warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata; an image is judged by its pixels


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

    Raises UnreadableImageError, a ValueError of one sentence, for content that is not an image.
    """
    return _open_upright(content, size).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)


def _read_preview(content: bytes, size: int) -> Image.Image:
    image = _open_upright(content, size)
    image.thumbnail((size, size))
    return image


def _decode_within_limits(content: bytes, size: int, read: Callable[[bytes, int], Image.Image]) -> Image.Image:
    if len(content) > MAX_BYTES:
        raise ValueError(f"the file has more than {MAX_BYTES / 2**20:.0f} MB; send a smaller one")
    with _open(content) as file:
        num_pixels = _count_pixels(file)
    try:
        if num_pixels <= LARGE:
            return read(content, size)
        with _one_at_a_time:
            image = read(content, size)
            release_freed_memory()
            return image
    except MemoryError:
        raise ValueError("there is not enough memory for this image; send a smaller one") from None


def _open(content: bytes) -> ImageFile.ImageFile:
    """Read the header of an image."""
    formats = ("HEIF",) if is_heic(content) and can_decode_heic() else FORMATS
    try:
        return Image.open(BytesIO(content), formats=formats)
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"the image is too large; the limit is {MILLIONS}", TOO_LARGE) from None
    except Exception:  # noqa: BLE001 - Pillow's readers raise anything on a file that is not an image
        raise explain(content) from None


def _count_pixels(image: Image.Image) -> int:
    """Return the number of pixels of an image. Raises UnreadableImageError if it exceeds MAX_PIXELS."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        problem = f"the image has {width:,} x {height:,} pixels; the limit is {MILLIONS}"
        raise UnreadableImageError(problem, TOO_LARGE)
    return width * height


def _open_upright(content: bytes, size: int) -> Image.Image:
    with _open(content) as file:
        file.draft("RGB", (size, size))  # JPEG alone: decode at 1/2, 1/4 or 1/8 of the size
        _count_pixels(file)
        _refuse_camera_raw(file)
        has_16_bits = file.mode[0] != "I" and ";16" in str(file.tile)
        try:
            image = _to_rgb(_turn_upright(file), getattr(file, "tag_v2", {}))
        except (MemoryError, UnreadableImageError):
            raise
        except Exception as error:
            raise damaged() from error
    if has_16_bits and _find_bulk(np.asarray(image).max(axis=2).ravel())[1] < MIN_LEVEL:
        raise UnreadableImageError(
            "the image is all but black, since it uses a few of its 16 bits per channel; convert it to 8 bits",
            "are all but black, since they use a few of their 16 bits per channel; convert them to 8 bits",
        )
    return image


def _refuse_camera_raw(file: ImageFile.ImageFile) -> None:
    """Raise UnreadableImageError for a TIFF whose first image is the thumbnail of another one, as in DNG or NEF."""
    tags = getattr(file, "tag_v2", {})
    if DNG_VERSION in tags or tags.get(KIND) == 1:
        raise foreign("a camera raw image", "convert {it} to JPEG")


def _turn_upright(file: ImageFile.ImageFile) -> Image.Image:
    """Apply the orientation tag. A photograph whose other EXIF data are damaged is still a photograph."""
    file.load()
    try:
        transposition = TRANSPOSITIONS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - Pillow's EXIF reader raises anything
        return file
    return file if transposition is None else file.transpose(transposition)


def _to_rgb(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Convert an image of any mode. `tags` are those of a TIFF file."""
    if image.mode[0] in "IF":  # convert("RGB") would clip, not scale
        return Image.fromarray(_to_eight_bits(np.asarray(image), tags)).convert("RGB")
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = cast("Image.Image", ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB"))
    if "A" in (band.upper() for band in image.getbands()[1:]) or "transparency" in image.info:
        image = image.convert("RGBA")
        shown = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if _is_plain(shown) and not _is_plain(image):
            raise UnreadableImageError(
                "the image shows nothing, since what is in it is transparent; save it without transparency",
                "show nothing, since what is in them is transparent; save them without transparency",
            )
        image = shown
    return image.convert("RGB")


def _is_plain(image: Image.Image) -> bool:
    """Return whether an image has one colour, whatever its transparency."""
    bands = cast("tuple[tuple[int, int], ...]", image.convert("RGB").getextrema())
    return all(low == high for low, high in bands)


def _to_eight_bits(levels: np.ndarray, tags: Mapping[int, Any]) -> np.ndarray:
    """Scale the grey levels of an image, integers of more than 8 bits or fractions, to uint8. See `_find_range`."""
    if tags.get(BITS) == (32,) and tags.get(SAMPLE_FORMAT, (1,)) == (1,):
        levels = levels.view(np.uint32)  # which Pillow takes for signed numbers
    finite = levels[np.isfinite(levels)]
    if not finite.size:
        raise UnreadableImageError("the image has no finite values", "have no finite values")
    black, span = _find_range(finite)
    with np.errstate(all="ignore"):
        scaled = (levels.astype(np.float32) - black) * (255 / span) + 0.5
    grey = np.nan_to_num(scaled, nan=0.0).clip(0, 255).astype(np.uint8)
    return np.asarray(255 - grey) if tags.get(PHOTOMETRIC) == 0 else grey  # 0: white is zero


def _find_range(levels: np.ndarray) -> tuple[float, float]:
    """Return the level that is shown as black, and how far above it white is.

    The whole range decides, unless it leaves the bulk of the levels less than a quarter of the greys, as one pixel of
    3.4e38 does. Then the bulk is stretched.
    """
    black, (low, high) = min(0.0, float(levels.min())), _find_bulk(levels)
    span = _find_white(black, float(levels.max()))
    if high - low >= span / 4:
        return black, span
    if low < high:
        return low, high - low
    return min(0.0, low), _find_white(min(0.0, low), high)


def _find_bulk(levels: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest of the levels without marks for missing pixels and defective pixels.

    Without the lowest and the highest level, that is, and then 0.1 % of the others, of both ends.
    """
    levels = levels[:: 1 + levels.size // SAMPLE]
    inner = levels[(levels > levels.min()) & (levels < levels.max())]
    if not inner.size or inner.min() == inner.max():
        inner = levels
    first = min(max(1, inner.size // 1000), (inner.size - 1) // 2)
    ends = first, inner.size - 1 - first
    low, high = np.partition(inner, ends)[list(ends)].tolist()
    return float(low), float(high)


def _find_white(low: float, high: float) -> float:
    """Return the level above `low` that is shown as white.

    It is 2**b - 1 for the fewest bits b that hold the highest level: 1 for fractions, 4095 for 12 bits. Images with
    levels below 0, or with small fractions alone, are stretched from the lowest level to the highest.
    """
    if low < 0 or 0 < high < 1 / 16:
        return high - low
    return float(2 ** max(1, math.ceil(math.log2(high + 1))) - 1)
