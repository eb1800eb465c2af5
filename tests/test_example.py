"""`make example`: what it copies of results/, how it rounds, and what it leaves alone."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools/example.py"))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Some files of two models, one of them not the repository's."""
    files = {
        "summary.csv": "model,bits,top1,loss\ndemo,w8a8,91.5,0.22862961207867807\n",
        "summary.html": "page",
        "benchmarks/benchmarks.md": "[how](../../docs/benchmarks.md), [them](../summary.csv)\n",
        "demo/vanilla/w8a8-n256-s0/attention.csv": "image,cosine\n0,0.5\n",
        "demo/vanilla/w8a8-n256-s0/metrics.json": json.dumps(
            {"top1": 91.5, "loss": 1 / 3, "cosine": 0.9999773563}
        ),
        "demo/vanilla/w8a8-n256-s0/metrics.sidecar.json": json.dumps({"seed": 0, "wall_time_s": 12.3}),
        "demo/study/activations.csv": "channel\n1\n",
        "demo/study/top1.png": "figure",
        "models/demo/fused.onnx": "graph",
        "mine/fp32/metrics.json": "{}",
    }
    for name, content in files.items():
        path = tmp_path / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "results"


def made(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_what_is_small_and_the_repository_s_is_copied(
    tool: dict[str, Any], results: Path, tmp_path: Path
) -> None:
    out = tmp_path / "example"
    assert tool["write_example"](results, out, ["demo"]) == 5
    run = "demo/vanilla/w8a8-n256-s0"
    names = {
        "summary.csv",
        "benchmarks/benchmarks.md",
        f"{run}/metrics.json",
        f"{run}/metrics.sidecar.json",
        "demo/study/top1.png",
    }
    assert made(out) == names
    linked = (out / "benchmarks/benchmarks.md").read_text()
    assert linked == "[how](../../../docs/benchmarks.md), [them](../summary.csv)\n"
    assert (out / "summary.csv").read_text() == "model,bits,top1,loss\ndemo,w8a8,91.5,0.22863\n"
    assert json.loads((out / run / "metrics.json").read_text()) == {
        "top1": 91.5, "loss": 0.333333, "cosine": 0.99997736
    }  # fmt: skip
    assert json.loads((out / run / "metrics.sidecar.json").read_text()) == {"seed": 0}


def test_a_model_s_folder_is_replaced_whole_and_other_files_stay(
    tool: dict[str, Any], results: Path, tmp_path: Path
) -> None:
    out = tmp_path / "example"
    for name in ("demo/study/old.csv", "benchmarks/by_a_tool.csv"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("before")
    tool["write_example"](results, out, ["demo"])
    assert "demo/study/old.csv" not in made(out)
    assert "benchmarks/by_a_tool.csv" in made(out)


@pytest.mark.parametrize(
    ("cell", "short"),
    [
        ("0.123456789", "0.123457"),
        ("-2.4116392e-05", "-2.41164e-05"),
        ("1234.56789", "1234.57"),
        ("0.99999356", "0.99999356"),
        ("12345678", "12345678"),
        ("w8a8", "w8a8"),
        ("91.5", "91.5"),
        ("", ""),
    ],
)
def test_only_numbers_with_more_digits_change(tool: dict[str, Any], cell: str, short: str) -> None:
    assert tool["shorter"](cell) == short
