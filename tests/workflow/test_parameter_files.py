"""Parameter files as Snakemake gets them: nothing of theirs runs, and what is wrong is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from clones import clone, run
from safetensors.torch import save_file

from ptq2themoon.vocabulary.yaml_files import TEMPLATE


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a model file, of which no job needs more than its name, and images."""
    folder = clone(tmp_path_factory.mktemp("clone"))
    (folder / "model.onnx").touch()
    save_file({"images": torch.zeros(8, 3, 32, 32, dtype=torch.uint8)}, folder / "images.safetensors")
    return folder


def write(folder: Path, images: str = "images.safetensors", **others: Any) -> None:
    model = {"source": "onnx:model.onnx", "dataset": "mine", "preprocessing": {"mean": [0.5], "std": [0.5]}}
    params = {
        "models": {"mine": model},
        "datasets": {"mine": {"kind": "arrays", "calibration": images, "evaluation": images}},
        "recipes": ["vanilla"],
        "bits": ["w8a8"],
        "calibration": {"images": 4, "batch_size": 2, "seeds": [0]},
        "evaluation": {"images": 8, "batch_size": 4},
        "errors": {"images": 2, "logits_images": 1},
        **others,
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(params, allow_unicode=True))


def plan(folder: Path, *options: str, status: int = 0) -> str:
    said = run(folder, "snakemake", "--configfile", "mine.yaml", "--dry-run", *options, status=status)
    assert "Warning" not in said
    return said


def test_no_template_runs(tree: Path) -> None:
    write(tree, **{TEMPLATE: True, "device": "?open('ran', 'w').close() or 'cpu'"})
    said = plan(tree, status=1)
    assert said.splitlines()[-1].startswith(f"error: mine.yaml: {TEMPLATE}: templates run code")
    assert not (tree / "ran").exists()


def test_a_template_is_refused_without_the_profile_too(tree: Path) -> None:
    """Its code has run by then, but no job starts."""
    write(tree, **{TEMPLATE: True, "device": "?'cpu'"})
    said = plan(tree, "--workflow-profile", "none", "--cores", "1", status=1)
    assert f"mine.yaml: {TEMPLATE}: templates run code" in said
    assert "Building DAG" not in said


def test_no_template_of_the_default_file_runs(tree: Path) -> None:
    write(tree, **{TEMPLATE: True, "device": "?open('ran', 'w').close() or 'cpu'"})
    (tree / "mine.yaml").rename(tree / "params.yaml")
    said = run(tree, "snakemake", "--dry-run", status=1)
    (tree / "params.yaml").unlink()
    assert f"params.yaml: {TEMPLATE}: templates run code" in said
    assert not (tree / "ran").exists()


def test_a_file_that_snakemakes_reader_breaks_on(tree: Path) -> None:
    write(tree)
    with (tree / "mine.yaml").open("a") as file:
        file.write("device: 2024-99-99\n")
    lines = plan(tree, status=1).splitlines()
    assert lines[-1].startswith("error: mine.yaml: line ")
    assert "'2024-99-99' is no timestamp" in lines[-1]
    assert "Traceback" not in lines


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plots": {"colormap": "viridis; touch ran"}}, "plots.colormap: 'viridis; touch ran' names no"),
        ({"plots": {"colormap": "virids"}}, "--colormap virids: unknown; did you mean 'viridis'?"),
    ],
)  # fmt: skip
def test_a_colour_map_that_is_none(tree: Path, changes: dict[str, Any], said: str) -> None:
    write(tree, **changes)
    found = plan(tree, status=1)
    assert said in found
    assert "Building DAG" not in found


NAME = 'it\'s 100% "new" $HOME; {a b} #.safetensors'


def test_marks_of_the_shell_in_a_name(tree: Path) -> None:
    (tree / NAME).hardlink_to(tree / "images.safetensors")
    write(tree, images=NAME)
    assert "'it'\"'\"'s 100% \"new\" $HOME; {a b} #.safetensors'" in plan(tree, "-p")
