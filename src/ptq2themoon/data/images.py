"""Reading one image file: known formats only, and nothing silently wrong."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ptq2themoon.errors import UserError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"},
)
# Pillow goes by content, not suffix, and would hand an EPS file to Ghostscript, which runs programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
MODES = {1: "L", 3: "RGB"}
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb
# What Pillow's decoders raise on broken data; anything else is a fault of ours and must not pass as one.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)


class UnreadableImage(Exception):
    """One image can't be decoded; `str()` names it and says why."""


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {image.width}x{image.height} pixels, more than {MAX_PIXELS}: refused"
                )
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path}: more than {MAX_PIXELS} pixels: refused") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: not an image of a known format") from error
    except BROKEN as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{name}: {reason}") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8; Pillow's own conversion clips it to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits have no agreed range")
    return image


def read_image(path: Path, name: str, channels: int) -> Image.Image:
    """Decode a file as grey (1 channel) or RGB (3); `UnreadableImage` names it as `name`."""
    with _opened(path, name) as image:
        image.load()
        return _eight_bit(image).convert(MODES[channels])


def check_image(path: Path, name: str) -> None:
    """Decode a file only to see whether it can be read: a JPEG at an eighth of its size."""
    with _opened(path, name) as image:
        image.draft("L", (1, 1))
        image.load()
        _eight_bit(image)
