"""Reading one image file: known formats only, and nothing silently wrong.

Pixels are those of torchvision's and timm's folders, `Image.convert("RGB")`: an alpha channel and a
palette's transparency are dropped, not composited. Two things differ, where those would be wrong: an
image is turned as its EXIF orientation says, and grey of 16 bits is scaled to 8, not clipped.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# Pillow goes by content, not suffix, and would hand an EPS file to Ghostscript, which runs programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "PPM", "GIF", "AVIF", "JPEG2000")
MODES = {1: "L", 3: "RGB"}
VIA = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}  # modes that Pillow does not turn into all others
ORIENTATION = ExifTags.Base.Orientation
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb
MAX_RATIO = 1000  # of the longer side to the shorter, which is resized to the model's
MAX_SCANS = 100  # of a progressive JPEG; programs write some ten
MARK, SCAN, END = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]"), b"\xff\xda", b"\xff\xd9"
# What Pillow's decoders raise on broken data; anything else is a fault of ours and must not pass as one.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    RuntimeError,  # AVIF's
    ArithmeticError,
    struct.error,
    zlib.error,
)


class UnreadableImage(Exception):
    """One image can't be decoded; `str()` names it and says why."""


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image, name)
            _check_scans(image, path, name)
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{name}: more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: not an image of a known format") from error
    except BROKEN as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{name}: {reason}") from error


def _check_size(image: Image.Image, name: str) -> None:
    size = f"{name}: {image.width}x{image.height} pixels"
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f"{size}, more than {MAX_PIXELS}")
    if max(image.size) > MAX_RATIO * min(image.size):
        raise UnreadableImage(f"{size}, one side more than {MAX_RATIO} times the other")


def _check_scans(image: Image.Image, path: Path, name: str) -> None:
    """Refuse a progressive JPEG that goes over all its pixels more often than any camera or program does."""
    if not image.info.get("progressive"):
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place, scans = 2, 0
        while (mark := MARK.search(data, place)) and mark[0] != END:
            scans += mark[0] == SCAN
            place = mark.end() + int.from_bytes(data[mark.end() : mark.end() + 2], "big")
            if scans > MAX_SCANS:
                raise UnreadableImage(f"{name}: a JPEG of more than {MAX_SCANS} scans")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8; Pillow's own conversion clips it to white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits have no agreed range")
    return image


def _converted(image: Image.Image, channels: int) -> Image.Image:
    image = _eight_bit(image)
    if image.mode in VIA:
        image = image.convert(VIA[image.mode])
    if image.mode == MODES[channels]:
        return image
    image.info.pop("transparency", None)  # dropped anyway, but Pillow would warn of it
    return image.convert(MODES[channels])


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn a loaded image upright; Pillow has already turned a TIFF, which then has no orientation."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except BROKEN:  # broken metadata leave the pixels whole
        return None


def read_image(path: Path, name: str, channels: int) -> Image.Image:
    """Decode a file as grey (1 channel) or RGB (3), upright; `UnreadableImage` names it as `name`."""
    with _opened(path, name) as image:
        image.load()
        turn = _turn(image)
        found = _converted(image, channels)
        return found if turn is None else found.transpose(turn)


def check_image(path: Path, name: str) -> tuple[int, int]:
    """Decode a file only to see whether `read_image` could: a JPEG at an eighth of its size.

    Returns:
        Its width and height.
    """
    with _opened(path, name) as image:
        size: tuple[int, int] = image.size
        image.draft("L", (1, 1))
        image.load()
        for channels in MODES:
            _converted(image, channels)
        return size
