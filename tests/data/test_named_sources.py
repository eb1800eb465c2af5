"""CSV lists, ImageNet's class folders, models without classes: what is read, and each slip in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_images import arguments, picture, preprocessing, run_script, write_info
from tiny_info import model_info

from ptq2themoon.data import (
    CsvSource,
    FolderSource,
    batches,
    check_classes,
    draw_calibration,
    list_evaluation,
    open_source,
    read_manifest,
)
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.records import read


def tried(kind: str, path: Path, classes: str | None, head: int | None) -> None:
    source = open_source(kind, path, classes)
    if source.labels.size and head is not None:
        check_classes(source, head)


def refusal(kind: str, path: Path, classes: str | None = None, head: int | None = None) -> str:
    """The one line with which a source is refused, when opened or as a test of a model of `head` classes."""
    with pytest.raises(UserError) as error:
        tried(kind, path, classes, head)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Six images in one folder, one of them a level deeper."""
    root = tmp_path / "flat"
    (root / "deeper").mkdir(parents=True)
    for i in range(5):
        picture(i).save(root / f"{i}.png")
    picture(5).save(root / "deeper" / "5, last.png")
    return root


LISTED = ["4.png,2", "0.png,0", "./1.png,1", "2.png,0", '"deeper/5, last.png",1', "3.png,2"]


def write_list(folder: Path, lines: list[str], header: str = "path,label", name: str = "list.csv") -> Path:
    (folder / name).write_text("\n".join([header, *lines]) + "\n")
    return folder / name


# --- CSV


def test_a_csv_gives_paths_and_labels_in_its_order(flat: Path, tmp_path: Path) -> None:
    path = write_list(flat, ["", *LISTED])
    source = open_source("csv", path)
    assert source.keys == ["4.png", "0.png", "1.png", "2.png", "deeper/5, last.png", "3.png"]
    assert source.labels.tolist() == [2, 0, 1, 0, 1, 2]
    assert (source.files, source.identity()) == ([path], {})
    rows, _ = list_evaluation(source, 3, None)
    assert [row.label for row in rows] == source.labels.tolist()
    (found,) = [images for images, _ in batches(rows, source, preprocessing(), 6)]
    alone = FolderSource(flat / "deeper").pixels("5, last.png", preprocessing())
    assert found[4].equal(preprocessing().normalise(alone[None])[0])
    report = draw_calibration(source, preprocessing(), 3, 0, tmp_path / "c.safetensors")
    assert report.taken == 3
    assert load_file(tmp_path / "c.safetensors")["labels"].sort().values.tolist() == [0, 1, 2]


def test_columns_in_any_order_and_a_byte_order_mark(flat: Path) -> None:
    (flat / "list.csv").write_text("\ufefflabel, path\r\n1,0.png\r\n0,1.png\r\n", encoding="utf-8")
    source = CsvSource(flat / "list.csv")
    assert (source.keys, source.labels.tolist()) == (["0.png", "1.png"], [1, 0])


def test_a_csv_needs_no_labels(flat: Path, tmp_path: Path) -> None:
    source = CsvSource(write_list(flat, ["1.png", "0.png"], "path"))
    assert source.labels.tolist() == [-1, -1]
    draw_calibration(source, preprocessing(), 2, 0, tmp_path / "c.safetensors")
    assert [row.label for row in list_evaluation(source, 3, None)[0]] == [-1, -1]


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("path,lable", ["0.png,1"], ":1: unknown column 'lable'; did you mean 'label'?"),
        ("label", ["1"], ":1: no column 'path'; columns path,label expected"),
        ("path,path", ["0.png,0.png"], ":1: column 'path' is there twice"),
        ("path,label", ["0.png,1", "9.png,1"], ":3: '9.png': no such file in "),
        ("path,label", ["0.png,1", "", "./0.png,2"], ":4: './0.png' is listed twice, first in line 2"),
        ("path,label", ["0.png,1", "1.png"], ":3: 1 fields, but 2 columns"),
        ("path,label", ["0.png,cat"], ":2: label 'cat' is no whole number from 0 on"),
        ("path,label", ["0.png,-1"], ":2: label '-1' is no whole number from 0 on"),
        ("path,label", ["0.png,"], ":2: label '' is no whole number from 0 on"),
        ("path,label", [",1"], ":2: no path"),
        ("path,label", ["../secret.png,1"], ":2: '../secret.png' lies outside of "),
        ("path,label", ["/etc/secret.png,1"], ":2: '/etc/secret.png' lies outside of "),
        ("path,label", [], ": lists no images; give a line of path,label for each"),
    ],
)
def test_a_slip_in_a_csv_is_named_with_its_line(
    flat: Path, header: str, lines: list[str], message: str
) -> None:
    path = write_list(flat, lines, header)
    assert refusal("csv", path).startswith(f"{path}{message}")


def test_no_csv(flat: Path) -> None:
    assert refusal("csv", flat / "no.csv") == f"{flat / 'no.csv'}: not found; give a CSV file of path,label"
    (flat / "list.csv").write_text("")
    assert "is empty; a first line path,label expected" in refusal("csv", flat / "list.csv")
    assert "can't be read as CSV" in refusal("csv", flat)


def test_a_label_of_a_csv_beyond_the_head(flat: Path) -> None:
    message = refusal("csv", write_list(flat, ["0.png,12"]), head=10)
    assert "13 classes, but the model tells 10 apart (num_classes); give images of the classes" in message


# --- ImageNet


def class_folders(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        picture(number).save(root / name / "x.png")
    return root


def test_labels_of_imagenet_folders_are_the_models_indices(tmp_path: Path) -> None:
    from timm.data import ImageNetInfo

    ids = ImageNetInfo().label_names()
    root = class_folders(tmp_path / "val", [ids[999], ids[3], ids[207], "10", "008"])
    source = open_source("folder", root, "imagenet")
    assert source.classes == 1000
    labels = dict(zip([key.split("/")[0] for key in source.keys], source.labels.tolist(), strict=True))
    assert labels == {ids[999]: 999, ids[3]: 3, ids[207]: 207, "10": 10, "008": 8}
    rows, _ = list_evaluation(source, 1000, None)
    assert sorted(row.label for row in rows) == [3, 8, 10, 207, 999]
    assert "1000 classes, but the model tells 10 apart" in refusal("folder", root, "imagenet", head=10)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["n01440764", "n01440765"], "/n01440765: no class of ImageNet-1k; did you mean 'n01440764'?"),
        (["tench"], "/tench: no class of ImageNet-1k; a WordNet id such as 'n01440764' or an index expected"),
        (["1000"], "/1000: no class of ImageNet-1k; valid indices: 0 to 999"),
        (["n01440764", "0"], ": 0 and n01440764 are both class 0; keep one"),
    ],
)
def test_a_folder_that_is_no_class_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    root = class_folders(tmp_path / "val", names)
    assert refusal("folder", root, "imagenet") == f"{root}{message}"


def test_some_of_imagenets_folders_without_saying_so(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "val", ["n01440764", "n01443537"])
    message = refusal("folder", root, head=1000)
    assert message.endswith("for class folders named as in ImageNet say `classes: imagenet`")


def test_numbers_as_folders_must_sort_as_numbers(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "val", [str(i) for i in range(11)])
    message = refusal("folder", root, head=11)
    assert "class folder 10 sorts before 2" in message
    assert "pad the names with zeros" in message
    draw_calibration(FolderSource(root), preprocessing(), 4, 0, tmp_path / "c.safetensors")
    check_classes(FolderSource(class_folders(tmp_path / "padded", [f"{i:02}" for i in range(11)])), 11)


def test_classes_are_for_folders(flat: Path, tmp_path: Path) -> None:
    assert "is for kind folder, not csv; leave it out" in refusal("csv", flat / "list.csv", "imagenet")
    assert "did you mean 'imagenet'?" in refusal("folder", flat, "imagnet")
    (tmp_path / "empty").mkdir()
    message = refusal("folder", tmp_path / "empty", "imagenet")
    assert message.startswith(f"{tmp_path / 'empty'}: no images (")
    assert message.endswith("put there one folder of them per class")


# --- models without classes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output": "features"}, "num_classes is 5, but the output is features"),
        ({"num_classes": None}, "num_classes is None, but the output is logits"),
        ({"num_classes": True}, "num_classes: must be an integer, not true"),
        ({"version": 2}, "version: 2; this ptq2themoon reads version 1"),
        ({"number": 1}, "number: unknown key; "),
    ],
)
def test_a_description_of_another_form_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / "model.json").write_text(json.dumps(model_info() | changes))
    with pytest.raises(UserError) as error:
        read(tmp_path / "model.json", ModelInfo)
    assert str(error.value).startswith(f"{tmp_path / 'model.json'}: {said}")
    assert str(error.value).endswith("; run the export stage again")
    assert "\n" not in str(error.value)


def test_features_are_evaluated_on_images_without_labels(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_list(flat, ["1.png", "0.png"], "path"), tmp_path / "out" / "evaluation.csv"
    info = write_info(tmp_path / "model.json", num_classes=None)
    options = arguments(kind="csv", source=path, info=info, images="all", out=out)
    assert not run_script("list_evaluation.py", options, monkeypatch)
    assert [row.label for row in read_manifest(out)] == [-1, -1]
    with pytest.raises(UserError, match=r"evaluation\.csv:2: no label, but the model tells 10 classes apart"):
        read_manifest(out, 10)
    write_info(info, num_classes=10)
    assert not run_script("list_evaluation.py", options, monkeypatch)
    assert f"warning: {path}: no labels, so no accuracy" in capsys.readouterr().err


def test_scripts_record_where_labels_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = class_folders(tmp_path / "val", ["n01443537", "0"])
    info = write_info(tmp_path / "model.json", num_classes=1000)
    options = {"kind": "folder", "source": root, "classes": "imagenet", "info": info, "images": 2}
    out = tmp_path / "out" / "c.safetensors"
    assert not run_script("draw_calibration.py", arguments(**options, seed=0, out=out), monkeypatch)
    assert sorted(load_file(out)["labels"].tolist()) == [0, 1]
    parameters = json.loads((out.parent / "c.sidecar.json").read_text())["parameters"]
    assert parameters["classes"] == "imagenet"
    assert parameters["listing_sha256"] == FolderSource(root).listing_sha256()
    options["images"] = 3
    assert run_script("draw_calibration.py", arguments(**options, seed=0, out=out), monkeypatch) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(
        "val: 2 images, but 3 are asked for; ask for fewer (`images` in the parameters) or add images"
    )
