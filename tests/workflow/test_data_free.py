"""`snakemake data_free` on a tiny model: whole, verified, and nothing runs that need not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_run
import yaml
from clones import run
from PIL import Image
from tiny_run import snakemake, tiny_clone

pytestmark = pytest.mark.slow

SOURCES = {"real": "papers", "made from the model": "quick", "noise": "psaq_vit_noise"}
PARAMS: dict[str, Any] = {
    **tiny_run.PARAMS,
    "data_free": {
        "sources": SOURCES, "bits": ["w8a8", "w4a4"], "seeds": [0, 1], "calibration_images": 5, "images": 30,
        "shown": 4,
    },
}  # fmt: skip
QUICK = {"extends": "papers", "methods": [{"name": "psaq_vit", "images": 6, "iterations": 5}]}
HERE = "results/tiny/data_free/data_free"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after one whole run."""
    folder = tiny_clone(tmp_path_factory.mktemp("clone"))
    (folder / "recipes/quick.yaml").write_text(yaml.safe_dump(QUICK))
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    snakemake(folder, "all", "data_free")
    return folder


def test_every_source_has_a_row_at_all_bits(tree: Path) -> None:
    table = pd.read_csv(tree / f"{HERE}.csv")
    assert list(zip(table["source"], table["bits"], strict=True)) == [
        (source, bits) for source in SOURCES for bits in ("w8a8", "w4a4")
    ]
    assert table["calibration_images"].tolist() == [5, 5, 6, 6, 32, 32]
    assert (set(table["seeds"]), set(table["images"])) == ({2}, {30})
    assert table[["top1", "agreement", "logits_sqnr_db", "entropy", "entropy_std"]].notna().all(axis=None)


def test_the_figure_is_there(tree: Path) -> None:
    image = Image.open(tree / f"{HERE}.png").convert("RGB")
    assert len(image.getcolors(maxcolors=1 << 24)) > 20
    assert (tree / f"{HERE}.svg").read_text().rstrip().endswith("</svg>")


def test_a_second_run_changes_nothing(tree: Path) -> None:
    assert "Nothing to be done" in snakemake(tree, "all", "data_free")


def test_the_verifier_passes_and_then_catches_changed_images(tree: Path) -> None:
    verify = ("python", "workflow/scripts/tools/verify.py", "--data-free")
    assert run(tree, *verify).endswith(" results verified\n")
    path = tree / "results/models/tiny/data_free/quick-n5-s0.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    said = run(tree, *verify, status=2)
    path.write_bytes(before)
    assert "quick-n5-s0.safetensors: changed since it was made" in said
