"""torchvision's data sets by name: read from local files, checked, never fetched."""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_images import picture, preprocessing
from torchvision import datasets

from ptq2themoon.data import TorchvisionSource, batches, draw_calibration, list_evaluation, open_source
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.parameters import Dataset
from ptq2themoon.vocabulary.torchvision_names import SPLITS, TRAIN_FLAG, parse_torchvision


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torchvision tried to download")

    for name in ("download_url", "download_and_extract_archive"):
        monkeypatch.setattr(f"torchvision.datasets.utils.{name}", refuse)


def write_mnist(root: Path, name: str = "FashionMNIST", count: int = 12) -> np.ndarray:
    """IDX files of both parts; returns the images of each."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 3).astype(np.uint8)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return images


def refusal(text: str) -> str:
    with pytest.raises(UserError) as error:
        open_source("torchvision", Path(text))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    images = write_mnist(tmp_path)
    source = open_source("torchvision", Path(f"FashionMNIST:train:{tmp_path}"))
    assert (source.classes, len(source.keys), source.files) == (10, 12, [])
    own = preprocessing(1, 28)
    assert torch.equal(source.pixels("7", own), torch.from_numpy(images[7])[None])
    assert source.pixels("7", preprocessing(3, 16)).shape == (3, 16, 16)
    rows, _ = list_evaluation(source, 10, 6)
    assert [row.label for row in rows] == [int(row.source) % 3 for row in rows]
    (found,) = [x for x, _ in batches(rows, source, own, 6)]
    assert found.shape == (6, 1, 28, 28)
    report = draw_calibration(source, own, 12, 0, tmp_path / "c.safetensors")
    assert report.taken == 12
    with pytest.raises(UserError, match="no image '12'; it holds 12"):
        source.pixels("12", own)
    with pytest.raises(UserError, match="10 classes, but the model tells 1000 apart"):
        list_evaluation(source, 1000, None)


def test_identity_follows_the_content(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a")
    write_mnist(tmp_path / "b", count=13)
    one, two, other = (
        TorchvisionSource(Path(f"FashionMNIST:{part}:{tmp_path / root}")).identity()["content_sha256"]
        for part, root in (("train", "a"), ("test", "a"), ("train", "b"))
    )
    assert one == two != other


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A CIFAR10 of 8 images whose checksums torchvision is made to know."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3072), dtype=np.uint8)
    contents: dict[str, Any] = {
        "data_batch_1": {"data": pixels, "labels": [0, 1, 2, 3, 4, 5, 6, 9]},
        "batches.meta": {"label_names": list("abcdefghij")},
    }
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
    listed = [["data_batch_1", sums["data_batch_1"]]]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", listed)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", listed)
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return pixels.reshape(8, 3, 32, 32)


def test_colours_are_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = cifar(tmp_path, monkeypatch)
    source = TorchvisionSource(Path(f"CIFAR10:train:{tmp_path}"))
    assert torch.equal(source.pixels("3", preprocessing(3, 32)), torch.from_numpy(pixels[3]))
    assert source.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 9]


class Trap:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_changed_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path, monkeypatch)
    sprung = tmp_path / "sprung"
    for name in ("data_batch_1", "batches.meta"):
        path = tmp_path / "cifar-10-batches-py" / name
        whole = path.read_bytes()
        path.write_bytes(pickle.dumps(Trap(sprung)))
        assert "the files of CIFAR10 are not in" in refusal(f"CIFAR10:train:{tmp_path}")
        path.write_bytes(whole)
    assert not sprung.exists()


def test_files_are_read_by_the_same_rules_as_a_folder(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb" / "GTSRB" / "Training"
    for label in range(2):
        (base / f"{label:05}").mkdir(parents=True)
        for number in range(3):
            picture(3 * label + number).save(base / f"{label:05}" / f"{number}.ppm")
    source = TorchvisionSource(Path(f"GTSRB:train:{tmp_path}"))
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(source.pixels("4", preprocessing()), preprocessing().crop(picture(4)))
    (base / "00001" / "1.ppm").write_bytes(b"P6 gone")
    with pytest.raises(UserError, match=r"1 images can't be read .*; first gtsrb/.*/00001/1\.ppm: "):
        list_evaluation(source, None, None)


def test_absent_or_cut_files_say_how_to_place_them(tmp_path: Path) -> None:
    for name, splits in SPLITS.items():
        message = refusal(f"{name}:{splits[0]}:{tmp_path}")
        assert message.startswith(f"{name}:{splits[0]}:{tmp_path}: the files of {name} are not in {tmp_path}")
        part = "train=True" if name in TRAIN_FLAG else f"split='{splits[0]}'"
        assert f"torchvision.datasets.{name}('{tmp_path}', {part}, download=True)" in message
    write_mnist(tmp_path)
    cut = tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert "or not whole" in refusal(f"FashionMNIST:train:{tmp_path}")


def test_splits_are_torchvisions() -> None:
    import inspect

    for name in SPLITS:
        wanted = "train" if name in TRAIN_FLAG else "split"
        assert wanted in inspect.signature(getattr(datasets, name)).parameters


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CIFR10:train:data", "unknown torchvision data set 'CIFR10'; did you mean 'CIFAR10'?"),
        ("CIFAR10:tran:data", "CIFAR10 has no split 'tran'; did you mean 'train'?"),
        ("CIFAR10", "CIFAR10 has no split ''; valid: train, test"),
        ("CIFAR10:test", "NAME:SPLIT:ROOT expected, such as 'CIFAR10:test:data'"),
        ("ImageFolder:train:data", "ImageFolder is read with `kind: folder`"),
    ],
)
def test_names_are_checked_with_the_parameters(text: str, message: str) -> None:
    assert refusal(text) == f"{text!r}: {message}"
    with pytest.raises(ValueError, match=re.escape(message)):
        Dataset(kind="torchvision", calibration=text, evaluation="CIFAR10:test:data")
    with pytest.raises(ValueError, match="kind folder, not torchvision"):
        Dataset(
            kind="torchvision",
            calibration="MNIST:train:d",
            evaluation="MNIST:test:d",
            classes="imagenet",
        )


def test_a_root_may_hold_colons_and_spaces() -> None:
    assert parse_torchvision("MNIST:train:/my data/a:b") == ("MNIST", "train", "/my data/a:b")
