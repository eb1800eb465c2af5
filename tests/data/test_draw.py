"""Sources, draws, manifests and batches, on real files."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from scripts import script_path
from tiny_images import arguments, picture, preprocessing, run_script, write_info

from ptq2themoon.data import (
    ArraySource,
    FolderSource,
    Preprocessing,
    Row,
    batches,
    calibration_batches,
    check_classes,
    draw_calibration,
    draw_order,
    list_evaluation,
    open_source,
    read_manifest,
    write_images,
    write_manifest,
)
from ptq2themoon.data.image_files import _header
from ptq2themoon.data.images import UnreadableImage, check_image, read_image
from ptq2themoon.progress import progress
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_info import Interpolation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 8 images: JPEG and PNG, grey and RGB, one of them a level deeper."""
    root = tmp_path / "images"
    for label, name in enumerate(["n03", "n01", "n02"]):
        (root / name / "deeper").mkdir(parents=True)
        for i in range(7):
            suffix, mode = (".JPEG", "RGB") if i % 2 else (".png", "L")
            picture(10 * label + i, mode=mode).save(root / name / f"{i}{suffix}")
        picture(10 * label + 7).save(root / name / "deeper" / "7.jpg")
    (root / "n01" / "notes.txt").write_text("not an image")
    (root / "n01" / "._0.png").write_text("what macOS leaves behind")
    return root


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    path = tmp_path / "arrays.safetensors"
    images = torch.randint(
        0, 256, (30, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    save_file({"images": images, "labels": torch.arange(30) % 3}, path, metadata={"classes": "3"})
    return path


# --- preprocessing


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("interpolation", "crop_pct", "size"), [("bicubic", 0.9, 16), ("bilinear", 1.0, 24)])
def test_pixels_equal_timms_evaluation_transform(
    crop_mode: str, channels: int, interpolation: str, crop_pct: float, size: int
) -> None:
    from timm.data import create_transform

    own = preprocessing(channels, size, crop_mode=crop_mode, interpolation=interpolation, crop_pct=crop_pct)
    timm_transform = create_transform(**own.model_dump(), is_training=False)
    for width, height in [(40, 30), (16, 16), (9, 50), (24, 24)]:
        image = picture(width, width, height, "L" if channels == 1 else "RGB")
        pixels = own.crop(image)
        assert pixels.dtype == torch.uint8
        assert list(pixels.shape) == own.input_size
        assert torch.equal(own.normalise(pixels[None])[0], timm_transform(image))


def test_interpolations_are_timms() -> None:
    from timm.data.transforms import _str_to_torch_interpolation

    assert set(get_args(Interpolation)) == set(_str_to_torch_interpolation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"interpolation": "bicubik"},
            "preprocessing: interpolation: unknown value 'bicubik'; did you mean 'bicubic'?",
        ),
        ({"crop_mode": "centre"}, "preprocessing: crop_mode: unknown value 'centre'; did you mean 'center'?"),
        ({"input_size": [4, 8, 8]}, "preprocessing: input_size: 4 channels; 1 (grey) or 3 (RGB) can be read"),
        ({"std": [0.2, 0.2, 0.0]}, "preprocessing: std[2]: "),
        ({"mean": [0.5]}, "preprocessing: mean: [0.5] does not give a number for each of 3 channels"),
        ({"crop_pct": 0}, "preprocessing: crop_pct: "),
        ({"crop": 1}, "preprocessing: crop: unknown key; did you mean 'crop_pct'?"),
    ],
)
def test_bad_preprocessing_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        preprocessing(**changes)
    assert str(error.value).startswith(f"model.json: {message}")


# --- one image file


def test_grey_colour_and_16_bit_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    picture(0, mode="L").save(path)
    rgb = np.asarray(read_image(path, "x", 3))
    assert rgb.shape == (30, 40, 3)
    assert (rgb == np.asarray(picture(0, mode="L"))[..., None]).all()
    picture(0).save(path)
    assert np.array_equal(read_image(path, "x", 1), picture(0, mode="L"))
    deep = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    Image.fromarray(deep).save(path)
    assert np.array_equal(np.asarray(read_image(path, "x", 1)), deep >> 8)
    picture(0).convert("CMYK").save(tmp_path / "x.jpg")
    assert read_image(tmp_path / "x.jpg", "x", 3).mode == "RGB"


def png_header(width: int, height: int) -> bytes:
    """A grey PNG of that size, without its pixels."""
    file = b"\x89PNG\r\n\x1a\n"
    for kind, body in [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b"")]:
        file += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return file


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 9_000), (20_000, 20_000), (30_000, 20), (1, 5000)])
def test_an_image_of_too_many_pixels_is_named_and_not_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    for read in (lambda path: read_image(path, "bomb.png", 3), lambda path: check_image(path, "bomb.png")):
        with pytest.raises(UnreadableImage, match=r"bomb\.png: .*pixels"):
            read(tmp_path / "bomb.png")


@pytest.mark.parametrize("size", [(1, 900), (900, 1), (3, 2000)])
def test_an_image_that_resizing_would_blow_up_is_left_out(tmp_path: Path, size: tuple[int, int]) -> None:
    """Its shorter side would get the model's size, and the longer one grow as much."""
    for number in range(120):
        picture(number, 8, 8).save(tmp_path / f"{number}.png")
    Image.new("RGB", size).save(tmp_path / "thin.png")
    large = preprocessing(size=384)
    rows, report = list_evaluation(FolderSource(tmp_path), None, None, preprocessing=large)
    assert len(rows) == 120
    (line,) = report.unreadable
    assert line.startswith(f"thin.png: {size[0]}x{size[1]} pixels become 1")
    with pytest.raises(UnreadableImage, match=r"thin\.png: .* pixels become "):
        FolderSource(tmp_path).pixels("thin.png", large)
    assert FolderSource(tmp_path).pixels("thin.png", preprocessing(size=16)).shape == (3, 16, 16)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_one_huge_image_of_many_is_left_out(tmp_path: Path) -> None:
    for number in range(120):
        picture(number, 8, 8).save(tmp_path / f"{number}.png")
    (tmp_path / "huge.png").write_bytes(png_header(10_000, 9_500))
    rows, report = list_evaluation(FolderSource(tmp_path), None, None)
    assert len(rows) == 120
    assert report.unreadable == ["huge.png: 10000x9500 pixels, more than 89478485"]


def test_broken_files_are_unreadable_not_fatal(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "whole.jpg", quality=95)
    whole = (tmp_path / "whole.jpg").read_bytes()
    picture(0).save(tmp_path / "program.jpg", format="EPS")  # would be run by Ghostscript
    for name, content in {
        "cut.jpg": whole[: len(whole) // 2],
        "text.png": b"hello",
        "empty.jpg": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    for name in ["cut.jpg", "text.png", "empty.jpg", "program.jpg", "absent.png"]:
        with pytest.raises(UnreadableImage, match=f"^{name}: "):
            read_image(tmp_path / name, name, 3)
        with pytest.raises(UnreadableImage, match=f"^{name}: "):
            check_image(tmp_path / name, name)
    check_image(tmp_path / "whole.jpg", "whole")


# --- sources


def test_folder_labels_are_places_of_sorted_class_folders(folder: Path) -> None:
    source = FolderSource(folder)
    assert source.classes == 3
    assert len(source.keys) == 24
    assert source.keys == sorted(source.keys)
    names = ["n01", "n02", "n03"]
    assert [names[label] for label in source.labels] == [key.split("/")[0] for key in source.keys]
    assert "n01/deeper/7.jpg" in source.keys


def test_a_flat_folder_has_no_labels(folder: Path, tmp_path: Path) -> None:
    source = FolderSource(folder / "n01" / "deeper")
    assert source.labels.tolist() == [-1]
    draw_calibration(source, preprocessing(), 1, 0, tmp_path / "c.safetensors")
    assert list_evaluation(source, 3, None)[0] == [Row("7.jpg", -1)]
    assert source.class_name("7.jpg") == ""
    with pytest.raises(UserError, match="images beside the class folders"):
        _ = FolderSource(folder / "n01").keys


def test_class_count_must_be_the_models(folder: Path, arrays: Path, tmp_path: Path) -> None:
    for source in (FolderSource(folder), ArraySource(arrays)):
        check_classes(source, 3)
        with pytest.raises(UserError, match="3 classes, but the model tells 1000 apart"):
            check_classes(source, 1000)
    save_file(
        {"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "labels": torch.tensor([0, 11])},
        tmp_path / "a.safetensors",
    )
    check_classes(ArraySource(tmp_path / "a.safetensors"), 20)  # the file does not say how many there are
    with pytest.raises(UserError, match="12 classes, but the model tells 10 apart"):
        check_classes(ArraySource(tmp_path / "a.safetensors"), 10)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"image": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}, "no tensor 'images'; did you mean 'image'?"),
        (
            {"images": torch.zeros(1, 1, 4, 4)},
            "images: F32 [1, 1, 4, 4]; U8 [N, 1 or 3, height, width] expected",
        ),
        ({"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8)}, "holds no images"),
        (
            {"images": torch.zeros(12, 3, 0, 0, dtype=torch.uint8)},
            "images: [12, 3, 0, 0]; heights and widths",
        ),
        ({"images": torch.zeros(2, 1, 4, 0, dtype=torch.uint8)}, "images: [2, 1, 4, 0]; heights and widths"),
        ({"images": torch.zeros(1, 1, 1, 5000, dtype=torch.uint8)}, "images: [1, 1, 1, 5000]; heights and"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError) as error:
        ArraySource(tmp_path / "a.safetensors")
    assert message in str(error.value)


@pytest.mark.parametrize("kind", [torch.uint64, torch.float32, torch.bool, torch.complex64])
def test_labels_that_are_no_whole_numbers(tmp_path: Path, kind: torch.dtype) -> None:
    tensors = {"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "labels": torch.ones(2).to(kind)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="labels: 2 whole numbers expected, -1 where unknown"):
        _ = ArraySource(tmp_path / "a.safetensors").labels


def test_missing_and_misnamed_sources(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "empty").mkdir()
    for kind, name, message in [
        ("arrays", "a.pt", "arrays are read from .safetensors files only"),
        ("arrays", "none.safetensors", "not found"),
        ("arrays", "cut.safetensors", "no whole safetensors file"),
        ("folder", "none", "not found"),
        ("folder", "a.pt", "is not a folder"),
        ("folder", "empty", "no images"),
        ("folders", "empty", "did you mean 'folder'?"),
    ]:
        with pytest.raises(UserError) as error:
            _ = open_source(kind, tmp_path / name).keys
        assert message in str(error.value)
        assert str(tmp_path / name) in str(error.value)


def test_manifest_reads_nothing_outside_its_folder(folder: Path) -> None:
    for key in ["../secret.png", "/etc/secret.png"]:
        with pytest.raises(UserError, match="outside of"):
            FolderSource(folder).pixels(key, preprocessing())


def test_arrays_of_the_models_size_are_kept_others_resized(arrays: Path) -> None:
    source, stored = ArraySource(arrays), load_file(arrays)["images"]
    assert torch.equal(source.pixels("4", preprocessing(1)), stored[4])
    assert torch.equal(source.pixels("4", preprocessing(3)), stored[4].expand(3, -1, -1))
    other = preprocessing(1, 8)
    assert torch.equal(source.pixels("4", other), other.crop(Image.fromarray(stored[4, 0].numpy())))
    with pytest.raises(UserError, match="no image '30'; it holds 30"):
        source.pixels("30", other)


# --- draws


@given(
    sizes=st.lists(st.sampled_from([3, 5, 5, 40]), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_draw_is_stratified_nested_and_without_replacement(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = draw_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    assert np.array_equal(order, draw_order(labels, seed))
    count = data.draw(st.integers(1, len(labels)))
    drawn = Counter(labels[order[:count]].tolist())
    for size in set(sizes):
        counts = [drawn[label] for label, n in enumerate(sizes) if n == size]
        assert max(counts) - min(counts) <= 1


def test_draw_is_proportional_and_its_remainder_is_random() -> None:
    labels = np.repeat([0, 1, 2], [100, 200, 700])
    assert Counter(labels[draw_order(labels, 0)[:100]].tolist()) == {0: 10, 1: 20, 2: 70}
    equal = np.repeat(np.arange(10), 50)
    extra = {tuple(np.bincount(equal[draw_order(equal, seed)[:13]], minlength=10)) for seed in range(5)}
    assert len(extra) > 1
    unlabelled = draw_order(np.full(500, -1), 3)
    assert not np.array_equal(unlabelled, draw_order(np.full(500, -1), 4))
    with pytest.raises(UserError, match="seed -1"):
        draw_order(labels, -1)


def test_calibration_file_depends_on_seed_and_content_only(folder: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for out, seed, threads in zip(outs, [0, 0, 1], [1, 4, 2], strict=True):
        report = draw_calibration(FolderSource(folder), preprocessing(), 9, seed, out, threads)
        assert (report.taken, report.available, report.unreadable) == (9, 24, [])
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert outs[0].read_bytes() != outs[2].read_bytes()
    source, drawn = FolderSource(folder), load_file(outs[0])
    assert drawn["images"].shape == (9, 3, 16, 16)
    assert torch.bincount(drawn["labels"]).tolist() == [3, 3, 3]
    for image, label, index in zip(drawn["images"], drawn["labels"], drawn["index"], strict=True):
        assert torch.equal(image, source.pixels(source.keys[index], preprocessing()))
        assert label == source.labels[index]


def broken_folder(root: Path, good: int, bad: int) -> FolderSource:
    root.mkdir()
    image = picture(0, 8, 8)
    for i in range(good):
        image.save(root / f"good{i:03}.png")
    for i in range(bad):
        (root / f"bad{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return FolderSource(root)


def test_broken_images_are_named_counted_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = broken_folder(tmp_path / "a", 200, 2)
    report = draw_calibration(source, preprocessing(1, 8), 200, 0, tmp_path / "c.safetensors")
    assert report.taken == 200
    named = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(named) == len(report.unreadable) > 0
    assert all(f"{source.path}: bad" in line for line in named)
    with pytest.raises(UserError, match=r"200 readable images, but 201 are asked for"):
        draw_calibration(source, preprocessing(1, 8), 201, 0, tmp_path / "c.safetensors")


def test_more_than_one_percent_broken_stops(tmp_path: Path) -> None:
    source = broken_folder(tmp_path / "a", 100, 3)
    with pytest.raises(UserError, match=r"2 images can't be read \(more than 1% of 103\); first bad"):
        draw_calibration(source, preprocessing(1, 8), 103, 0, tmp_path / "c.safetensors")


def test_evaluation_lists_readable_images_in_order(folder: Path, arrays: Path, tmp_path: Path) -> None:
    rows, report = list_evaluation(FolderSource(folder), 3, None)
    assert [row.source for row in rows] == FolderSource(folder).keys
    assert report.taken == 24
    some, _ = list_evaluation(FolderSource(folder), 3, 7)
    assert some == sorted(some)
    assert sorted(Counter(row.label for row in some).values()) == [2, 2, 3]
    rows, _ = list_evaluation(ArraySource(arrays), 3, 30)
    assert rows == [Row(str(i), i % 3) for i in range(30)]
    write_manifest(tmp_path / "m.csv", rows)
    assert read_manifest(tmp_path / "m.csv") == rows
    with pytest.raises(UserError, match="30 images, but 31 are asked for"):
        list_evaluation(ArraySource(arrays), 3, 31)


def test_one_broken_image_of_many_is_left_out_of_all(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    broken_folder(root / "a", 120, 1)
    rows, report = list_evaluation(FolderSource(root), 1, None)
    assert len(rows) == report.taken == 120
    assert report.unreadable[0].startswith("a/bad0.png: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source,label\n", "lists no images"),
        ("a,b\n", "columns a,b"),
        ("", "no manifest"),
        ("source,label\nx,y\n", ":2: "),
    ],
)
def test_bad_manifest_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path / "m.csv")
    assert message in str(error.value)


# --- batches


def test_batches_hold_every_image_once_the_last_one_partial(folder: Path) -> None:
    source, own = FolderSource(folder), preprocessing()
    rows, _ = list_evaluation(source, 3, None)
    loader = batches(rows, source, own, batch_size=10, threads=3)
    assert len(loader) == 3
    for _ in range(2):  # a second pass starts over
        found = list(loader)
        assert [len(labels) for _, labels in found] == [10, 10, 4]
        images, labels = torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])
        assert images.dtype == torch.float32
        assert labels.tolist() == [row.label for row in rows]
        alone = torch.stack([source.pixels(row.source, own) for row in rows])
        assert torch.equal(images, own.normalise(alone))


def test_batches_name_an_image_that_broke_since(folder: Path) -> None:
    source = FolderSource(folder)
    rows, _ = list_evaluation(source, 3, None)
    (folder / rows[5].source).write_bytes(b"gone")
    with pytest.raises(UserError, match=f"{rows[5].source}: not an image"):
        list(batches(rows, source, preprocessing(), 4))


class CountingSource(FolderSource):
    """Makes images up and counts them."""

    decoded = 0

    def pixels(self, key: str, preprocessing: Preprocessing) -> torch.Tensor:
        self.decoded += 1
        return torch.zeros(preprocessing.input_size, dtype=torch.uint8)


def test_batches_decode_no_more_than_two_batches_ahead(tmp_path: Path) -> None:
    source = CountingSource(tmp_path)
    rows = [Row(str(i), 0) for i in range(100)]
    for number, _ in enumerate(batches(rows, source, preprocessing(), 5, threads=1), start=1):
        assert source.decoded <= 5 * (number + 2)
    assert source.decoded == 100


def anonymous_memory() -> int:
    """Memory of this process in bytes, without the pages of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_calibration_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    path, shape = tmp_path / "c.safetensors", [20_000, 3, 64, 64]
    header = _header(shape, {})
    with open(path, "wb") as file:  # sparse: 246 MB that take no space
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 16 * shape[0] + int(np.prod(shape)))
    loader = calibration_batches(path, preprocessing(3, 64), 32)
    before, peak, seen = anonymous_memory(), 0, 0
    for batch in loader:
        seen += len(batch)
        peak = max(peak, anonymous_memory() - before)
    assert seen == loader.images == 20_000
    assert len(loader) == 625
    assert peak < 50e6


def test_calibration_batches_are_the_drawn_images(arrays: Path, tmp_path: Path) -> None:
    own, out = preprocessing(1), tmp_path / "c.safetensors"
    draw_calibration(ArraySource(arrays), own, 11, 0, out)
    found = list(calibration_batches(out, own, 4))
    assert [len(batch) for batch in found] == [4, 4, 3]
    assert torch.equal(torch.cat(found), own.normalise(load_file(out)["images"]))
    with pytest.raises(UserError, match=r"images of \[1, 16, 16\], but the model takes \[3, 16, 16\]"):
        calibration_batches(out, preprocessing(3), 4)


def test_writer_refuses_another_count_or_size(tmp_path: Path) -> None:
    row = (torch.zeros(1, 2, 2, dtype=torch.uint8), 0, 0)
    for rows, shape in [([row], [2, 1, 2, 2]), ([row, row], [1, 1, 2, 2]), ([row], [1, 1, 3, 2])]:
        with pytest.raises(ValueError, match="image"):
            write_images(tmp_path / "x.safetensors", rows, shape, {})


# --- scripts


@pytest.fixture
def asked(folder: Path, tmp_path: Path) -> dict[str, object]:
    """Arguments that both scripts take."""
    return {
        "kind": "folder",
        "source": folder,
        "info": write_info(tmp_path / "model.json"),
        "images": 6,
        "out": tmp_path / "out" / "x.safetensors",
    }


def test_scripts_write_whole_outputs_and_sidecars(
    asked: dict[str, object], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, listed = tmp_path / "out" / "c.safetensors", tmp_path / "out" / "evaluation.csv"
    assert not run_script("draw_calibration.py", arguments(**asked | {"out": drawn, "seed": 5}), monkeypatch)
    listing = arguments(**asked | {"out": listed, "images": "all"})
    assert not run_script("list_evaluation.py", listing, monkeypatch)
    assert load_file(drawn)["images"].shape == (6, 3, 16, 16)
    assert len(read_manifest(listed)) == 24
    sidecar = json.loads(drawn.with_name("c.sidecar.json").read_text())
    assert sidecar["seed"] == sidecar["parameters"]["seed"] == 5
    assert sidecar["parameters"]["listing_sha256"] == FolderSource(folder).listing_sha256()
    assert not list(drawn.parent.glob(".*"))


@pytest.mark.parametrize(
    ("script", "changes", "message"),
    [
        ("draw_calibration.py", {"images": 25}, "images: 24 images, but 25 are asked for"),
        ("draw_calibration.py", {"images": 0}, "at least 1 expected"),
        ("draw_calibration.py", {"source": "nowhere"}, "nowhere: not found"),
        ("draw_calibration.py", {"info": "no.json"}, "no.json: not found; run the export stage"),
        ("draw_calibration.py", {"threads": 0}, "0 threads asked for"),
        ("list_evaluation.py", {"kind": "arays"}, "did you mean 'arrays'?"),
    ],
)
def test_scripts_refuse_in_one_line_and_write_nothing(
    asked: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    changes: dict[str, object],
    message: str,
) -> None:
    seed = {"seed": 0} if script == "draw_calibration.py" else {}
    assert run_script(script, arguments(**asked | seed | changes), monkeypatch) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("script", "changes", "message"),
    [
        ("draw_calibration.py", {"images": 31, "seed": 0}, "30 images, but 31 are asked for"),
        ("list_evaluation.py", {}, "3 classes, but the model tells 10 apart"),
    ],
)
def test_refusal_in_a_process_of_its_own(
    asked: dict[str, object],
    arrays: Path,
    tmp_path: Path,
    script: str,
    changes: dict[str, object],
    message: str,
) -> None:
    info = write_info(tmp_path / "model.json", num_classes=10, channels=1)
    values = asked | {"kind": "arrays", "source": arrays, "info": info} | changes
    command = [sys.executable, str(script_path(script)), *arguments(**values)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- progress


def test_progress_in_a_log_is_a_few_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ptq2themoon.progress.MIN_SECONDS", 0)
    assert list(progress(range(95), desc="images")) == list(range(95))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert re.fullmatch(r"images: 10 of 95 \(10 %\), \d+ s left", lines[0])
    assert lines[-1].startswith("images: 95 in ")


def test_progress_on_a_terminal_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress(iter("abc"), 3, "letters")) == list("abc")
    assert "letters: 100%" in capsys.readouterr().err
