"""Every kind of image file is read right: pixels, orientation, depth; or named as unreadable."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from broken_inputs import pictures
from PIL import ExifTags, Image
from tiny_images import picture

from ptq2themoon.data.images import UnreadableImage, check_image, read_image


def as_image_folder(path: Path) -> np.ndarray:
    """What torchvision's and timm's folders hand to a transform."""
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")
        return np.asarray(image.convert("RGB"))


def transparent(mode: str) -> Image.Image:
    image = picture(1).convert(mode.removesuffix("A") if mode != "RGBA" else "RGB").convert(mode)
    image.putalpha(picture(2, mode="L"))
    return image


def palette(transparency: int | bytes | None) -> Image.Image:
    image = picture(3).quantize(32)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


KINDS = {
    "colour.png": lambda: picture(0),
    "grey.png": lambda: picture(0, mode="L"),
    "black and white.png": lambda: picture(0, mode="1"),
    "colour.jpg": lambda: picture(0),
    "grey.jpg": lambda: picture(0, mode="L"),
    "cmyk.jpg": lambda: picture(0, mode="CMYK"),
    "cmyk.tif": lambda: picture(0, mode="CMYK"),
    "alpha.png": lambda: transparent("RGBA"),
    "grey alpha.png": lambda: transparent("LA"),
    "alpha.webp": lambda: transparent("RGBA"),
    "palette.png": lambda: palette(None),
    "palette one transparent.png": lambda: palette(0),
    "palette of alphas.png": lambda: palette(bytes(range(0, 256, 8))),
    "palette.gif": lambda: palette(0),
    "palette.bmp": lambda: palette(None),
    "lab.tif": lambda: picture(0, mode="RGB").convert("LAB"),
    "ycbcr.tif": lambda: picture(0, mode="YCbCr"),
}


@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_those_of_an_image_folder(tmp_path: Path, name: str) -> None:
    image = KINDS[name]()
    kept = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    image.save(tmp_path / name, **kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_image(tmp_path / name, name, 3)
        assert read_image(tmp_path / name, name, 1).mode == "L"
        check_image(tmp_path / name, name)
    assert found.mode == "RGB"
    assert np.array_equal(found, as_image_folder(tmp_path / name))


def test_alpha_is_dropped_not_composited(tmp_path: Path) -> None:
    image = picture(4)
    image.putalpha(0)
    image.save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png", "x", 3), picture(4))


def png(depth: int, colour: int, pixels: np.ndarray) -> bytes:
    """A PNG of big-endian samples [H, W, samples]."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in pixels)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [(struct.pack(">I", len(body)), kind + body) for kind, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(n + c + struct.pack(">I", zlib.crc32(c)) for n, c in chunks)


def deep(samples: int) -> np.ndarray:
    values = np.linspace(0, 65535, 12 * 10 * samples).astype(np.uint16)
    return values.reshape(12, 10, samples)


@pytest.mark.parametrize(("name", "colour", "samples"), [("grey", 0, 1), ("colour", 2, 3), ("alpha", 6, 4)])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, name: str, colour: int, samples: int) -> None:
    pixels = deep(samples)
    (tmp_path / "x.png").write_bytes(png(16, colour, pixels))
    found = np.asarray(read_image(tmp_path / "x.png", name, 3))
    assert np.array_equal(found, np.broadcast_to(pixels[..., : min(samples, 3)] >> 8, found.shape))
    check_image(tmp_path / "x.png", name)


@pytest.mark.parametrize("suffix", [".tif", ".pgm"])
def test_sixteen_bits_of_other_formats(tmp_path: Path, suffix: str) -> None:
    pixels, path = deep(1)[..., 0], tmp_path / f"x{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 10 12 65535\n" + pixels.astype(">u2").tobytes())
    else:
        Image.fromarray(pixels).save(path)
    assert np.array_equal(read_image(path, "x", 1), pixels >> 8)
    check_image(path, "x")


# Orientation 1 to 8 of a picture with a bright upper left corner: how to undo it with numpy.
UPRIGHT = {
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x, 1),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    path, image, exif = tmp_path / f"x{suffix}", picture(5, 16, 24), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif, **{".webp": {"lossless": True}, ".jpg": {"quality": 95}}.get(suffix, {}))
    # Pillow turns a TIFF itself.
    untouched = np.asarray(image) if suffix == ".tif" else as_image_folder(path)
    found = read_image(path, "x", 3)
    assert np.array_equal(found, UPRIGHT[orientation](untouched))


def test_broken_metadata_leave_the_pixels(tmp_path: Path) -> None:
    picture(6).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff broken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read_image(tmp_path / "x.jpg", "x", 3)
    assert np.array_equal(found, as_image_folder(tmp_path / "x.jpg"))


def test_a_jpeg_of_many_scans_is_not_gone_over(tmp_path: Path) -> None:
    """Each scan of some bytes is decoded over all pixels: 60 KB would take minutes."""
    buffer = BytesIO()
    Image.new("L", (64, 64)).save(buffer, "JPEG", progressive=True)
    whole, end = buffer.getvalue()[:-2], buffer.getvalue()[-2:]
    last = whole[whole.rindex(b"\xff\xda") :]
    for scans, refused in ((0, False), (80, False), (100, True), (10_000, True)):
        (tmp_path / "x.jpg").write_bytes(whole + last * scans + end)
        if refused:
            with pytest.raises(UnreadableImage, match=r"^x.jpg: a JPEG of more than 100 scans$"):
                check_image(tmp_path / "x.jpg", "x.jpg")
        else:
            check_image(tmp_path / "x.jpg", "x.jpg")


@pytest.mark.filterwarnings("ignore")
def test_no_byte_of_a_format_ends_in_another_error(tmp_path: Path) -> None:
    ended = {"read": 0, "unreadable": 0}
    for content in pictures():
        for place in range(0, min(len(content), 600), 3):
            (tmp_path / "x").write_bytes(content[:place] + b"\xff" + content[place + 1 :])
            try:
                read_image(tmp_path / "x", "x", 3)
                ended["read"] += 1
            except UnreadableImage:
                ended["unreadable"] += 1
    assert min(ended.values()) > 500


def test_what_has_no_agreed_range_is_unreadable_for_both(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.ones((4, 4), np.int32)).save(tmp_path / "i.tif")
    for name in ("f.tif", "i.tif"):
        for read in (lambda path, name: read_image(path, name, 3), check_image):
            with pytest.raises(UnreadableImage, match=f"^{name}: "):
                read(tmp_path / name, name)
