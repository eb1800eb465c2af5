"""The chain with models whose weights are too many for one file: the limit is lowered for a tiny one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from tiny_models import random_images
from tiny_stages import files, run_stage, write_inputs

from ptq2themoon.graph.editing.onnx_run import run_onnx
from ptq2themoon.vocabulary import onnx_data
from ptq2themoon.vocabulary.onnx_data import data_beside, model_bytes, written_data

LIMIT = 10_000  # bytes of weights
CHAIN = (
    *("export", "draw_calibration", "list_evaluation", "fuse", "calibrate", "reference", "evaluate"),
    *("operator_errors", "attention_maps", "deploy", "runtime_part", "verify_runtime"),
)
MODELS = ("out/model.onnx", "out/fused.onnx", "out/q/faithful/int8.onnx")
NORMAL = json.dumps({"mean": [0.286], "std": [0.353]})
# Which model a stage reads first.
READS = {
    "fuse": "out/model.onnx",
    **dict.fromkeys(("calibrate", "reference", "evaluate", "operator_errors"), "out/fused.onnx"),
    **dict.fromkeys(("attention_maps", "deploy"), "out/fused.onnx"),
    **dict.fromkeys(("runtime_part", "verify_runtime"), "out/q/faithful/int8.onnx"),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every stage of the pipeline ran here; while it is there, the limit is low."""
    folder = write_inputs(tmp_path_factory.mktemp("large"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_data, "MOST_BYTES", LIMIT)
        for stage in CHAIN:
            ended = run_stage(folder, stage)
            assert ended.status == 0, f"{stage}: {ended.err}"
        yield folder


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_two_files_and_its_sidecar_has_both(large: Path, name: str) -> None:
    path = large / name
    assert written_data(path) == [data_beside(path)]
    onnx.checker.check_model(path, full_check=True)
    sidecar = json.loads(path.with_suffix(".sidecar.json").read_text())
    assert {name, f"{name}.data"} <= set(sidecar["outputs"])
    assert not any(read.endswith(".data") for read in sidecar["inputs"])  # the ONNX file tells their sum


def test_no_number_is_another(large: Path, chain: Path) -> None:
    """Graphs, scales, metrics and errors are those of the same model in one file."""
    for name in ("out/fp32/metrics.json", "out/q/metrics.json", "out/q/runtime.json", "out/q/ranking.json"):
        assert json.loads((large / name).read_text()) == json.loads((chain / name).read_text())
    for name in ("out/q/operators.csv", "out/q/attention.csv", "out/q/runtime_operators.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(large / name), pd.read_csv(chain / name))
    assert (large / "out/fusion.json").read_bytes() == (chain / "out/fusion.json").read_bytes()
    assert (large / "out/q/qparams.safetensors").read_bytes() == (
        chain / "out/q/qparams.safetensors"
    ).read_bytes()
    images = random_images(2, 1, 28, 28)
    for name in MODELS:
        np.testing.assert_array_equal(run_onnx(large / name, images), run_onnx(chain / name, images))


def test_the_size_is_that_of_both_files(large: Path, chain: Path) -> None:
    report = json.loads((large / "out/q/faithful/deploy.json").read_text())
    whole = json.loads((chain / "out/q/faithful/deploy.json").read_text())
    int8, fused = large / "out/q/faithful/int8.onnx", large / "out/fused.onnx"
    assert report["bytes"] == {"fp32": model_bytes(fused), "int8": model_bytes(int8)}
    for kind, size in report["bytes"].items():
        assert size == pytest.approx(whole["bytes"][kind], rel=0.2)


@pytest.mark.parametrize("how", ["removed", "changed"])
@pytest.mark.parametrize("stage", READS)
def test_no_stage_believes_weights_that_are_not_whole(
    large: Path, tmp_path: Path, stage: str, how: str
) -> None:
    copy = shutil.copytree(large, tmp_path / "copy", symlinks=True)
    data = data_beside(copy / READS[stage])
    content = data.read_bytes()
    data.unlink()
    if how == "changed":
        data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = files(copy)
    ended = run_stage(copy, stage)
    assert ended.status == 2
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {READS[stage]}: ")
    assert f"{data.name}' which is not there" in line.replace(",", "") or f"{data.name} beside it has" in line
    assert files(copy) == before


def test_a_file_of_others_with_data_beside_it(large: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(large, tmp_path / "copy", symlinks=True)
    (copy / "given").mkdir()
    for path in (large / "out/model.onnx", large / "out/model.onnx.data"):
        shutil.copy(path, copy / "given")
    ended = run_stage(copy, "export", source="onnx:given/model.onnx", preprocessing=NORMAL)
    assert (ended.status, ended.err) == (0, "")
    sidecar = json.loads((copy / "out/model.sidecar.json").read_text())
    assert list(sidecar["inputs"]) == ["given/model.onnx", "given/model.onnx.data"]
    assert list(sidecar["outputs"])[:2] == ["out/model.onnx.data", "out/model.onnx"]
    images = random_images(2, 1, 28, 28)
    expected = run_onnx(large / "out/model.onnx", images)
    np.testing.assert_allclose(run_onnx(copy / "out/model.onnx", images), expected, atol=1e-5)


def test_the_data_go_with_the_model_that_needed_them(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(large, tmp_path / "copy", symlinks=True)
    monkeypatch.setattr(onnx_data, "MOST_BYTES", 10**9)
    assert run_stage(copy, "fuse").status == 0
    assert not (copy / "out/fused.onnx.data").exists()
    assert run_stage(copy, "reference").status == 0


@pytest.mark.parametrize(
    ("exporter", "opset"), [("torchscript", 13), pytest.param("dynamo", 18, marks=pytest.mark.slow)]
)
def test_nothing_that_an_exporter_writes_beside_is_left(
    large: Path, tmp_path: Path, exporter: str, opset: int
) -> None:
    copy = shutil.copytree(large, tmp_path / "copy", symlinks=True)
    shutil.rmtree(copy / "out")
    ended = run_stage(copy, "export", exporter=exporter, opset=opset)
    assert ended.status == 0, ended.err
    assert sorted(path.name for path in (copy / "out").iterdir()) == [
        "model.json", "model.onnx", "model.onnx.data", "model.sidecar.json",
    ]  # fmt: skip
    images = random_images(2, 1, 28, 28)
    expected = run_onnx(large / "out/model.onnx", images)
    np.testing.assert_allclose(run_onnx(copy / "out/model.onnx", images), expected, atol=1e-4)
