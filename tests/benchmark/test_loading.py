"""The benchmark runs, and what it last found is what the project promises."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import committed
import pytest
from tiny_images import run_script

LOADING, RUNTIME, TORCH, BOTH = (
    "read, resize, crop",
    "FP32 model, ONNX Runtime",
    "FP32 model, torch",
    "read and FP32 model, ONNX Runtime",
)


def by_measure(text: str) -> dict[str, dict[str, str]]:
    return {row["measure"]: row for row in csv.DictReader(text.splitlines())}


@pytest.mark.slow
def test_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "loading.csv"
    options = ["--images", "6", "--model-images", "4", "--batch-size", "2", "--repeats", "1", "--cores", "1"]
    options += ["--model", "test_vit", "--out", str(out)]
    assert not run_script("benchmark_loading.py", options, monkeypatch)
    table = by_measure(out.read_text())
    assert list(table) == [LOADING, RUNTIME, TORCH, BOTH]
    for row in table.values():
        assert float(row["lowest"]) <= float(row["images_per_second"]) <= float(row["highest"])
    recorded = json.loads((tmp_path / "loading.sidecar.json").read_text())["parameters"]
    assert (recorded["images"], recorded["width"], recorded["height"]) == (6, 500, 375)
    assert 20 < recorded["kilobytes"] < 200


def test_images_are_read_faster_than_deit_tiny_evaluates() -> None:
    table = by_measure(committed.text("results/example/benchmarks/loading.csv"))
    assert (table[LOADING]["images"], table[LOADING]["cores"]) == ("2000", "2")
    assert float(table[RUNTIME]["loading_ratio"]) >= 1
    assert float(table[TORCH]["loading_ratio"]) >= 1
