"""CSV lists, ImageNet's class folders, models without classes: what is read, and each slip in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_images import arguments, picture, preprocessing, run_script, write_info
from tiny_info import model_info

from ptq2themoon.data import (
    CsvSource,
    FolderSource,
    Row,
    batches,
    check_classes,
    csv_source,
    draw_calibration,
    list_evaluation,
    open_source,
    read_manifest,
    write_manifest,
)
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.csv_lines import short_lines
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.image_folders import ordered
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
        ("path;label", ["0.png;1"], ":1: 'path;label': commas expected between fields"),
        ("path\tlabel", ["0.png\t1"], ":1: 'path\\tlabel': commas expected between fields"),
        ("p\0a\0t\0h\0", ["0.png"], ":1: text in UTF-16; save the file as UTF-8"),
        ("PK\x03\x04\0", ["0.png"], ":1: an archive, as Excel writes; save the table as CSV"),
        ("path,label", ["0.png,cat"], ":2: label 'cat' is no whole number from 0 on"),
        ("path,label", ["0.png,-1"], ":2: label '-1' is no whole number from 0 on"),
        ("path,label", ["0.png,"], ":2: label '' is no whole number from 0 on"),
        ("path,label", [",1"], ":2: no path"),
        ("path,label", ["../secret.png,1"], ":2: '../secret.png' lies outside of "),
        ("path,label", ["/etc/secret.png,1"], ":2: '/etc/secret.png' lies outside of "),
        ("path,label", ["sub/../../0.png,1"], ":2: 'sub/../../0.png' lies outside of "),
        ("path,label", ["0.png,1", f"1.png,{10**30}"], f":3: label {10**30} is larger than any number"),
        ("path,label", [f"0.png,{'9' * 5000}"], f":2: label {'9' * 40} is larger than any number"),
        ("path,label", [f"{'x' * 5000}.png,1"], f":2: '{'x' * 40}'...: File name too long"),
        ("path,label", ["sub\\0.png,1"], ":2: 'sub\\\\0.png': no such file in "),
        ("path,label", ["0.png,\u0665"], ":2: label '\u0665' is no whole number from 0 on"),
        ("path,label", ["a\0b.png,1"], ":2: 'a\\x00b.png': no such file in "),
        (
            "path,label",
            [f"{'x' * 70_000}.png,1"],
            ": can't be read as CSV: line 2 has more than 65536",
        ),
        ("path,label", [","], ":2: no path"),
        ("path,label", ['"0.png,1'], ": can't be read as CSV: unexpected end of data"),
        ("path,label", [], ": lists no images; give a line of path,label for each"),
    ],
)
def test_a_slip_in_a_csv_is_named_with_its_line(
    flat: Path, header: str, lines: list[str], message: str
) -> None:
    path = write_list(flat, lines, header)
    assert refusal("csv", path).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    "lines",
    [
        ["0.png, 0", "1.png ,1 "],
        [' "0.png", "0"', "1.png,\t1"],
        ["sub/../0.png,0", "./1.png,1"],
        ["{root}/0.png,0", "{root}/sub/../1.png,1"],
    ],
)
def test_other_ways_to_write_a_row(flat: Path, lines: list[str]) -> None:
    path = write_list(flat, [line.format(root=flat.resolve()) for line in lines], "path, label")
    source = open_source("csv", path)
    assert source.keys == ["0.png", "1.png"]
    assert source.labels.tolist() == [0, 1]


def test_no_csv(flat: Path) -> None:
    assert refusal("csv", flat / "no.csv") == f"{flat / 'no.csv'}: not found; give a CSV file of path,label"
    (flat / "list.csv").write_text("")
    assert "is empty; a first line path,label expected" in refusal("csv", flat / "list.csv")
    assert "can't be read as CSV" in refusal("csv", flat)


def test_a_label_of_a_csv_beyond_the_head(flat: Path) -> None:
    message = refusal("csv", write_list(flat, ["0.png,12"]), head=10)
    assert "13 classes, but the model tells 10 apart (num_classes); give images of the classes" in message


def test_two_classes_of_a_model_of_one_logit(flat: Path) -> None:
    message = refusal("csv", write_list(flat, ["0.png,1"]), head=1)
    assert "2 classes, but the model gives one logit, as for yes or no; say `classifier: false`" in message


def test_a_csv_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.csv")
    assert refusal("csv", tmp_path / "list.csv").endswith("can't be read as CSV: it is no regular file")


def test_a_table_is_read_no_further_than_its_first_slip(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of 10^8 lines would fill the memory before its second line is refused."""
    (flat / "list.csv").write_text("path,label\n" + "0.png,0\n" * 50_000)
    read = []
    monkeypatch.setattr(
        csv_source, "short_lines", lambda file: (read.append(line) or line for line in short_lines(file))
    )
    with pytest.raises(UserError, match=r"list\.csv:3: '0\.png' is listed twice, first in line 2"):
        CsvSource(flat / "list.csv")
    assert len(read) == 3


def test_names_that_a_spreadsheet_would_compute(tmp_path: Path) -> None:
    """They are written so that it does not, and read as they are."""
    names = ["+1.png", "-1.png", "./=1.png", "=1+1.png", "@SUM(A1).png", "\t=1.png", "plain.png"]
    rows = [Row(name, 0) for name in names]
    write_manifest(tmp_path / "m.csv", rows)
    cells = [line.split(",")[0] for line in (tmp_path / "m.csv").read_text().splitlines()]
    assert not [cell for cell in cells if cell[0] in "=+-@\t"]
    assert read_manifest(tmp_path / "m.csv") == rows


@pytest.mark.parametrize("label", ["9" * 5000, "9" * 31, "\u0665", "1.5", "-2", ""])
def test_labels_of_a_manifest_that_are_none(tmp_path: Path, label: str) -> None:
    (tmp_path / "m.csv").write_text(f"source,label\n0.png,{label}\n")
    with pytest.raises(UserError, match=r"m\.csv:2: '0\.png,.*' is no source and label") as error:
        read_manifest(tmp_path / "m.csv")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("key", ["9" * 5000, "5", "-1", "\u0661", "../x"])
def test_keys_of_arrays_that_are_none(tmp_path: Path, key: str) -> None:
    save_file({"images": torch.zeros(5, 1, 8, 8, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors: no image .*; it holds 5"):
        open_source("arrays", tmp_path / "a.safetensors").pixels(key, preprocessing())


def test_a_table_of_numbers_beyond_64_bits(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"name,images\na,{10**30}\nb,3\n")
    with pytest.raises(UserError, match="column 'images' holds a number larger than 64 bits hold"):
        read_table(tmp_path / "t.csv", ["name"])


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


@pytest.mark.parametrize(
    ("names", "text", "natural"),
    [
        ([str(i) for i in range(11)], "10, 2, 3, 4", "2, 3, 4, 5"),
        (["class_1", "class_2", "class_10"], "class_10, class_2", "class_2, class_10"),
        (["ant", "Bee", "cat"], "Bee, ant", "ant, Bee"),
        (["a9b2", "a9b10", "b"], "a9b10, a9b2", "a9b2, a9b10"),
    ],
)
def test_folders_whose_order_is_to_be_said(tmp_path: Path, names: list[str], text: str, natural: str) -> None:
    root = class_folders(tmp_path / "val", names)
    message = refusal("folder", root, head=len(names))
    assert f" on class folders are {text}" in message
    assert f"but {natural}" in message
    assert message.endswith("`class_order: string` or `class_order: natural`")
    draw_calibration(FolderSource(root), preprocessing(), 3, 0, tmp_path / "c.safetensors")
    for order, expected in (("string", sorted(names)), ("natural", names)):
        source = open_source("folder", root, class_order=order)  # type: ignore[arg-type]
        check_classes(source, len(names))
        labels = dict(zip([key.split("/")[0] for key in source.keys], source.labels.tolist(), strict=True))
        assert [expected[labels[name]] for name in names] == names


def test_timms_order_is_timms(tmp_path: Path) -> None:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    names = ["class_1", "class_10", "class_2", "Class_3", "x", "1a", "10", "9", "b01c2", "b1c10"]
    root = class_folders(tmp_path / "val", names)
    _, places = find_images_and_targets(str(root))
    assert ordered(names, "natural") == sorted(names, key=places.__getitem__)


def test_folders_whose_orders_agree(tmp_path: Path) -> None:
    for number, names in enumerate([[f"{i:02}" for i in range(11)], ["ant", "bee"], ["n01", "n02"]]):
        check_classes(FolderSource(class_folders(tmp_path / str(number), names)), len(names))


# --- what a folder holds besides


def test_suffixes_of_images(tmp_path: Path) -> None:
    written = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.avif": "AVIF", "d.dib": "DIB", "e.jp2": "JPEG2000",
               "f.pbm": "PPM", "g.mpo": "MPO", "h.apng": "PNG"}  # fmt: skip
    for name, form in written.items():
        picture(0, mode="L" if form == "PPM" else "RGB").save(tmp_path / name, form)
    rows, report = list_evaluation(FolderSource(tmp_path), None, None)
    assert [row.source for row in rows] == sorted(written)
    assert str(report) == "8 of 8 images, 0 unreadable"


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "val", ["ant", "bee", "cat"])
    (root / "bee/x.png").rename(root / "bee/x.heic")
    (root / "ant/notes").touch()
    (root / ".DS_Store").touch()
    os.mkfifo(root / "ant/pipe.png")
    rows, report = list_evaluation(FolderSource(root), 3, None)
    assert [(row.source, row.label) for row in rows] == [("ant/x.png", 0), ("cat/x.png", 2)]
    assert str(report) == "2 of 2 images, 0 unreadable, 3 files of other kinds passed over"
    said = capsys.readouterr().err
    assert f"warning: {root}: no images in class folder bee; labels count it all the same" in said
    for kind in ("1 .heic", "1 no suffix", "1 no regular file"):
        assert kind in said
    for name in ("ant", "cat"):
        (root / name / "x.png").unlink()
    assert "), only 1 no suffix, 1 no regular file, 1 .heic; such as ant/notes; put" in refusal(
        "folder", root
    )


def test_folders_that_systems_make_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They would move the labels of all classes after them, and show images twice."""
    root = class_folders(tmp_path / "val", ["ant", "bee"])
    made = ["__MACOSX/ant", "ant/@eaDir", "lost+found", "$RECYCLE.BIN"]
    for folder in made:
        (root / folder).mkdir(parents=True)
        shutil.copy(root / "ant/x.png", root / folder)
    rows, report = list_evaluation(FolderSource(root), 2, None)
    assert [(row.source, row.label) for row in rows] == [("ant/x.png", 0), ("bee/x.png", 1)]
    assert report.passed_over == len(made)
    assert "4 files passed over: 4 folder of a system; such as $RECYCLE.BIN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("link", "target"),
    [("ant/again", "."), ("ant/up", ".."), ("dog", "cat"), ("ant/away", "../../.."), ("d", "/")],
)
def test_a_folder_that_is_there_twice(tmp_path: Path, link: str, target: str) -> None:
    root = class_folders(tmp_path / "val", ["ant", "bee", "cat"])
    (root / link).symlink_to(target)
    message = refusal("folder", root)
    assert " are one folder, so images would count more than once; remove the link" in message
    assert str(root / link) in message


def test_a_link_to_itself_is_a_broken_image(tmp_path: Path) -> None:
    for number in range(100):
        picture(number, 8, 8).save(tmp_path / f"{number}.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    _, report = list_evaluation(FolderSource(tmp_path), None, None)
    assert str(report) == "100 of 101 images, 1 unreadable"


def test_a_linked_folder_of_elsewhere(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "val", ["ant"])
    class_folders(tmp_path / "other", ["bee"])
    (root / "bee").symlink_to(tmp_path / "other/bee")
    assert FolderSource(root).keys == ["ant/x.png", "bee/x.png"]


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
