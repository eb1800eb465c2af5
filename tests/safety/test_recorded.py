"""Every file that is not as its sidecar says is named, with what must be made again; the others are not."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ptq2themoon.safety.recorded import SMALL, doubts
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.onnx_data import data_beside

WEIGHTS, GRAPH, TABLE, NOTE = (
    "weights.bin",
    "results/m/graph.onnx",
    "results/m/table.csv",
    "results/m/note.md",
)
CONTENT = {WEIGHTS: b"w" * (SMALL + 2), GRAPH: b"g" * (SMALL + 4), TABLE: b"a,b\n", NOTE: b"ab"}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph made from weights, two tables made from the graph; the graph and its weights are not small."""
    monkeypatch.chdir(tmp_path)
    Path(WEIGHTS).write_bytes(CONTENT[WEIGHTS])
    for inputs, outputs in (([WEIGHTS], [GRAPH]), ([GRAPH], [TABLE, NOTE])):
        paths = [Path(name) for name in outputs]
        with Stage("make", inputs=[*map(Path, inputs)], outputs=paths, parameters={}) as stage:
            for path in paths:
                stage.temporary(path).write_bytes(CONTENT[path.as_posix()])
    return tmp_path


def found() -> dict[str, tuple[str, list[str]]]:
    """What is wrong, and what is made again, by file."""
    return {
        one.file.as_posix(): (one.what, [path.as_posix() for path in one.again])
        for one in doubts(Path("results"))
    }


def with_its_time(name: str, change: Callable[[Path], object]) -> None:
    path = Path(name)
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_nothing_is_said_of_what_is_whole(tree: Path) -> None:
    assert found() == {}


def test_nothing_is_held_against_the_committed_example(tree: Path) -> None:
    """Its sidecars name the files of a run, made on another processor and with other parameters."""
    kept = Path(layout.EXAMPLE, "m/table.sidecar.json")
    kept.parent.mkdir(parents=True)
    shutil.copy("results/m/table.sidecar.json", kept)
    Path(TABLE).write_bytes(b"a;b\n")
    Path("results/m/table.sidecar.json").unlink()
    assert found() == {}


@pytest.mark.parametrize("left", [0, 0.5])
@pytest.mark.parametrize("name", CONTENT)
def test_a_file_that_was_cut_is_named_though_its_time_is_kept(tree: Path, name: str, left: float) -> None:
    size = int(len(CONTENT[name]) * left)
    with_its_time(name, lambda path: os.truncate(path, size))
    again = {WEIGHTS: [GRAPH], GRAPH: [GRAPH]}.get(name, [TABLE, NOTE])
    assert found() == {name: (f"{size} bytes, {len(CONTENT[name])} when it was recorded", again)}


@pytest.mark.parametrize("name", [TABLE, NOTE])
def test_another_content_of_a_small_file_is_seen(tree: Path, name: str) -> None:
    with_its_time(name, lambda path: path.write_bytes(b"x" * len(CONTENT[name])))
    assert found() == {name: ("other content than was recorded", [TABLE, NOTE])}


NOT_WHOLE = [
    b"",
    b'{"stage": "ma',
    b"[]",
    b'{"inputs": {}}',
    b"\xff",
    b"[" * 100_000,
    b'{"a":' * 150 + b"1" + b"}" * 150,
    b'{"inputs": {"a": ["x"]}, "outputs": {}}',
    b'{"inputs": {}, "outputs": {}, "bytes": [1]}',
    b'{"inputs": {}, "outputs": {}, "bytes": {"a": "1"}}',
    b'{"inputs": {}, "outputs": {}, "seed": ' + b"9" * 5_000 + b"}",
]


@pytest.mark.parametrize("content", NOT_WHOLE)
def test_a_sidecar_that_is_not_whole_is_in_doubt_with_all_beside_it(tree: Path, content: bytes) -> None:
    Path("results/m/table.sidecar.json").write_bytes(content)
    Path("results/m/tables.csv").touch()  # another result's
    assert found() == {"results/m/table.sidecar.json": ("not readable", [TABLE])}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_a_sidecar_that_is_no_file_is_not_waited_for(tree: Path, make: Callable[[str], None]) -> None:
    path = "results/m/table.sidecar.json"
    Path(path).unlink()
    make(path)
    assert found() == {path: ("not readable", [TABLE])}


def test_a_sidecar_of_many_files_takes_time_by_their_number(tree: Path) -> None:
    path = Path("results/m/table.sidecar.json")
    record = json.loads(path.read_text())
    record["inputs"] = {f"image{number}.png": "0" for number in range(20_000)}
    path.write_text(json.dumps(record))
    start = time.process_time()
    assert found() == {}
    assert time.process_time() - start < 5


def test_a_newer_input_is_no_secret(tree: Path) -> None:
    """Snakemake sees it by its time."""
    Path(WEIGHTS).write_bytes(b"other")
    os.utime(WEIGHTS, (2e9, 2e9))
    assert found() == {}


def test_what_is_missing_is_left_to_snakemake(tree: Path) -> None:
    for name in (WEIGHTS, TABLE):
        Path(name).unlink()
    assert found() == {}


def test_a_sidecar_without_sizes_still_tells_of_small_files(tree: Path) -> None:
    path = Path("results/m/table.sidecar.json")
    record = json.loads(path.read_text())
    del record["bytes"]
    path.write_text(json.dumps(record))
    assert found() == {}
    with_its_time(TABLE, lambda path: os.truncate(path, 1))
    assert list(found()) == [TABLE]


def test_folders_that_are_links_are_entered_once(tree: Path) -> None:
    Path("results/m").rename("elsewhere")
    Path("results/m").symlink_to(tree / "elsewhere")
    (tree / "elsewhere/loop").symlink_to(tree / "elsewhere")
    os.truncate(TABLE, 1)
    assert list(found()) == [TABLE]


# Weights beside an ONNX file, of which Snakemake does not know ---------------------------------------------


DATA = f"{GRAPH}.data"


@pytest.fixture
def large(tree: Path) -> Path:
    """The graph with weights beside it that are not small."""
    graph = Path(GRAPH)
    with Stage("make", inputs=[Path(WEIGHTS)], outputs=[graph], parameters={}) as stage:
        data_beside(stage.temporary(graph)).write_bytes(b"d" * (SMALL + 8))
        stage.temporary(graph).write_bytes(CONTENT[GRAPH])
    return tree


def test_nothing_is_said_of_weights_that_are_whole(large: Path) -> None:
    assert found() == {}
    os.utime(DATA)  # as after a download
    assert found() == {}


def test_weights_that_are_gone_are_named(large: Path) -> None:
    Path(DATA).unlink()
    assert found() == {DATA: ("not there", [GRAPH])}
    Path(GRAPH).unlink()  # which Snakemake sees
    assert found() == {}


def test_weights_that_were_cut_are_named(large: Path) -> None:
    with_its_time(DATA, lambda path: os.truncate(path, 7))
    assert found() == {DATA: (f"7 bytes, {SMALL + 8} when it was recorded", [DATA, GRAPH])}


def test_weights_that_changed_later_are_named(large: Path) -> None:
    Path(DATA).write_bytes(b"e" * (SMALL + 8))
    assert found() == {DATA: ("other content than was recorded", [DATA, GRAPH])}
