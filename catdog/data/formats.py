"""Name the format of a file that cannot be decoded, from its first bytes, with a remedy."""

import re
from functools import cache

AVIF = re.compile(rb".{4}ftyp.{0,40}avi[fs]", re.DOTALL)
HEIC = re.compile(rb".{4}ftyp(?:hei[cfmsx]|hev[cmsx]|mif[12]|msf1)", re.DOTALL)
HEAD = 1024  # bytes that are enough to tell any format
NO_IMAGE = ", not an image"
TO_JPEG, FRAMES, AGAIN = "convert {it} to JPEG", "save single frames", "download the image again"
FOREIGN = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), name, remedy)
    for pattern, name, remedy in (
        (AVIF.pattern, "an AVIF image", TO_JPEG),  # if Pillow was built without it
        (rb".{4}ftypcrx |II[*].{5}CR|IIR[OS]|IIU\x00|FUJIFILMCCD-RAW|FOVb|\x00MRM", "a camera raw image", TO_JPEG),
        (rb".{4}(?:ftyp|moov|mdat)|RIFF.{4}AVI |\x1aE\xdf\xa3|\x00\x00\x01[\xb3\xba]", "a video" + NO_IMAGE, FRAMES),
        (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL image", TO_JPEG),
        (rb"8BPS", "a Photoshop document", TO_JPEG),
        (rb"gimp xcf", "a GIMP document", TO_JPEG),
        (rb"\x76\x2f\x31\x01", "an OpenEXR image", TO_JPEG),
        (rb".{128}DICM", "a DICOM image", TO_JPEG),
        (rb"\x00\x00\x01\x00[^\x00]\x00", "an ICO icon", TO_JPEG),
        (rb"icns\x00", "an ICNS icon", TO_JPEG),
        (rb"\x0a[\x00-\x05]\x01[\x01\x02\x04\x08]", "a PCX image", TO_JPEG),
        (rb"DDS \x7c", "a DDS texture", TO_JPEG),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript drawing", TO_JPEG),
        (rb"%PDF", "a PDF document" + NO_IMAGE, "save the images in {it} as JPEG"),
        (rb"PK\x03\x04|Rar!|7z\xbc\xaf|\x1f\x8b", "an archive" + NO_IMAGE, "unpack {it}"),
        (rb"version https://git-lfs", "a Git LFS pointer" + NO_IMAGE, "fetch the image with git lfs pull"),
        (rb"\s*(?:<\?xml.*?|<!--.*?|<!DOCTYPE svg.*?)?<svg", "an SVG drawing", TO_JPEG),
        (rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html|head|body|script)", "a web page" + NO_IMAGE, AGAIN),
        (rb"\s*(?:<\?xml|<Error>|\{\s*\")", "a JSON or XML text" + NO_IMAGE, "download or give the image itself"),
        (rb"II[*+]\x00|MM\x00[*+]", "a damaged or rare kind of TIFF image", TO_JPEG),
    )
)
DECODABLE = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|RIFF.{4}WEBP|\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", re.DOTALL)


class UnreadableImageError(ValueError):
    """An image that cannot be read. The message is a sentence about the file."""

    def __init__(self, sentence: str, plural: str) -> None:
        super().__init__(sentence)
        self.plural = plural  # for several such files: "left out 3 files that " and this


def damaged() -> UnreadableImageError:
    return UnreadableImageError("the image is truncated or damaged", "are truncated or damaged")


def foreign(name: str, remedy: str) -> UnreadableImageError:
    """Return the error for a format that is not decoded: `name` with its article, `remedy` with {it} for the file."""
    noun = name.partition(" ")[2]
    several = noun.replace(NO_IMAGE, "s, not images") if noun.endswith(NO_IMAGE) else f"{noun}s"
    sentence = f"this file is {name}; {remedy.format(it='it')}"
    return UnreadableImageError(sentence, f"are {several} ({remedy.format(it='them')})")


def needs_pi_heif() -> UnreadableImageError:
    return foreign("a HEIC image", f"install pi-heif (pip install pi-heif, extra heic), or {TO_JPEG}")


def explain(content: bytes) -> UnreadableImageError:
    """Return the error for content that Pillow cannot open."""
    head = content[:HEAD].removeprefix(b"\xef\xbb\xbf")
    if not content:
        return UnreadableImageError("the file is empty", "are empty")
    if is_heic(content) and not can_decode_heic():
        return needs_pi_heif()
    if is_heic(content):
        return foreign("a damaged HEIC image", "convert the original to JPEG")
    for pattern, name, remedy in FOREIGN:
        if pattern.match(head):
            return foreign(name, remedy)
    if not any(content):
        return UnreadableImageError("the file holds nothing but zero bytes; copy it again", "hold only zero bytes")
    if DECODABLE.match(head):
        return damaged()
    return UnreadableImageError("this file is not an image that can be read", "are not images")


def is_heic(content: bytes) -> bool:
    """Return whether content is a HEIC image, which only pi-heif decodes."""
    return bool(HEIC.match(content)) and not AVIF.match(content)


@cache
def can_decode_heic() -> bool:
    """Register the decoder of HEIC images, if it is installed."""
    try:
        import pi_heif  # noqa: PLC0415 - an extra, and only these images need it
    except ImportError:
        return False
    pi_heif.register_heif_opener()
    return True
