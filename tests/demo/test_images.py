"""The embedded images are what the README says, and their maker reads the IDX files right."""

from __future__ import annotations

import gzip
import runpy
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ptq2themoon.data import ArraySource, check_classes
from ptq2themoon.data.idx import read_idx
from ptq2themoon.vocabulary.errors import UserError

DEMO = Path(__file__).parents[2] / "resources" / "demo"


@pytest.mark.parametrize(
    ("name", "count", "available"), [("calibration", 1_024, 60_000), ("evaluation", 2_000, 10_000)]
)
def test_embedded_images(name: str, count: int, available: int) -> None:
    tensors = load_file(DEMO / f"{name}.safetensors")
    assert (tensors["images"].shape, tensors["images"].dtype) == ((count, 1, 28, 28), torch.uint8)
    per_class = torch.bincount(tensors["labels"])
    assert len(per_class) == 10
    assert per_class.max() - per_class.min() <= (0 if count % 10 == 0 else 1)
    index = tensors["index"]
    assert (index[1:] > index[:-1]).all()
    assert index[0] >= 0
    assert index[-1] < available
    # Mean grey of the whole training set: 0.2860.
    assert tensors["images"].double().mean() / 255 == pytest.approx(0.286, abs=0.01)
    check_classes(ArraySource(DEMO / f"{name}.safetensors"), 10)


@pytest.mark.parametrize("name", ["calibration", "evaluation"])
def test_embedded_images_say_where_they_are_from(name: str) -> None:
    with safe_open(DEMO / f"{name}.safetensors", framework="np") as file:
        said = file.metadata()
    assert "Fashion-MNIST" in said["source"]
    assert said["license"].startswith("MIT, Copyright 2017 Zalando SE")
    assert said["seed"] == "0"
    licence = (DEMO / "LICENSE-fashion-mnist.txt").read_text()
    assert "Zalando SE" in licence
    assert "Permission is hereby granted, free of charge" in licence


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = header + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def test_idx_plain_and_packed(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name in ("plain", "packed.gz"):
        write_idx(tmp_path / name, array)
        assert np.array_equal(read_idx(tmp_path, name.removesuffix(".gz")), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "no IDX file of unsigned bytes"),
        (b"\0\0\x08\1\0\0\0\2a", "do not hold"),
    ],
)
def test_bad_idx_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(tmp_path, "x")
    with pytest.raises(UserError, match=r"absent: not found, nor its \.gz"):
        read_idx(tmp_path, "absent")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"0" * 100)[:20])
    with pytest.raises(UserError, match=r"cut\.gz: can't be read"):
        read_idx(tmp_path, "cut")


def test_maker_draws_from_the_right_files_and_repeats_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    script = runpy.run_path(str(DEMO / "make_images.py"))
    images = rng.integers(0, 256, (10_000, 28, 28), dtype=np.uint8)
    labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), 1_000))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels)
    first = script["write_set"]("evaluation", tmp_path, tmp_path, 0).read_bytes()
    tensors = load_file(tmp_path / "evaluation.safetensors")
    index = tensors["index"].numpy()
    assert np.array_equal(tensors["images"][:, 0].numpy(), images[index])
    assert np.array_equal(tensors["labels"].numpy(), labels[index])
    assert torch.bincount(tensors["labels"]).tolist() == [200] * 10
    assert script["write_set"]("evaluation", tmp_path, tmp_path, 0).read_bytes() == first
    with pytest.raises(UserError, match="not found"):
        script["write_set"]("calibration", tmp_path, tmp_path, 0)
