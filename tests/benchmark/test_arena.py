"""A tiny model and its INT8 forms, timed and compared; with the other tools where those are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from tiny_info import model_info
from tiny_models import tiny_module, to_onnx
from tiny_quantized import Tiny, images

from ptq2themoon.benchmark.arena import BASE, LATENCY, OPERATORS, PEERS, Arena, Entry
from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.editing.onnx_run import product_kernels
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.tables.csv_rows import read_csv

ROOT = Path(__file__).parents[2]
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src")}
SCRIPT = ROOT / "workflow/scripts/benchmark/benchmark_runtimes.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx, model.json, fast.onnx and calibration.safetensors."""
    folder = tmp_path_factory.mktemp("arena")
    onnx.save(to_onnx(tiny_module()), folder / "model.onnx")
    tiny = Tiny.make(folder)
    _, quantized = tiny.calibrated("vanilla")
    onnx.save(deploy(read_graph(tiny.path), quantized, "fast").model, folder / "fast.onnx")
    (folder / "model.json").write_text(json.dumps(model_info()))
    pixels = torch.randint(0, 256, (6, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    save_file({"images": pixels, "labels": torch.arange(6) % 5}, folder / "calibration.safetensors")
    return folder


@pytest.fixture
def arena(folder: Path, tmp_path: Path) -> Arena:
    entries = [
        Entry("-", "FP32", folder / "model.onnx", quantized=False),
        Entry("ptq2themoon", "vanilla/fast", folder / "fast.onnx"),
        Entry("nobody", "broken", folder / "model.json"),
    ]
    return Arena("tiny", entries, 1, tmp_path)


def test_latency_has_a_row_for_each_that_runs(arena: Arena) -> None:
    rows = arena.latency(images(2).numpy(), rounds=2)
    assert [set(row) for row in rows] == [set(LATENCY)] * 2
    base, fast = rows
    assert (base["variant"], base["ratio"], base["batch"]) == ("FP32", "1.000", 2)
    assert float(fast["ratio_low"]) <= float(fast["ratio"]) <= float(fast["ratio_high"])
    assert "Integer" in fast["kernels"] or "QLinear" in fast["kernels"] or "QGemm" in fast["kernels"]
    assert "Integer" not in base["kernels"]
    assert list(arena.problems) == ["broken, ONNX Runtime"]


def test_comparison_has_every_row_and_says_why_one_does_not_run(arena: Arena) -> None:
    tested = images(5).numpy()
    base, fast, broken = arena.comparison(tested, np.zeros(5, np.int64), batch=2)
    assert set(base) == set(fast) == set(PEERS)
    assert (base["agreement"], base["sqnr_db"], base["images"]) == (100.0, None, 5)
    assert fast["sqnr_db"] > 10
    assert float(fast["size_ratio"]) < 1
    assert broken["problem"]
    assert "top1" not in broken


def test_without_images_there_is_no_accuracy(arena: Arena) -> None:
    assert "top1" not in arena.comparison(None, None, batch=2)[0]


def test_shares_of_the_operators_add_up(arena: Arena) -> None:
    arena.problems["broken, ONNX Runtime"] = "no model"
    rows = arena.operators(images(2).numpy(), runs=2)
    assert {row["variant"] for row in rows} == {"FP32", "vanilla/fast"}
    assert [set(row) for row in rows] == [set(OPERATORS)] * len(rows)
    for variant in ("FP32", "vanilla/fast"):
        assert sum(row["share"] for row in rows if row["variant"] == variant) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.skipif(not PEERS_PYTHON.is_file(), reason="the other tools are not installed: `make peers`")
def test_other_tools_beside_ours(folder: Path, tmp_path: Path) -> None:
    tables = ("latency", "peers", "operators")
    outputs = [word for table in tables for word in (f"--out-{table}", f"{tmp_path}/{table}.csv")]
    command = [PEERS_PYTHON, SCRIPT, "--name", "tiny", "--model", folder / "model.onnx", "--threads", "1"]
    command += ["--info", folder / "model.json", "--ours", f"vanilla/fast={folder / 'fast.onnx'}"]
    command += ["--calibration", folder / "calibration.safetensors", "--batches", "1", "2", "--rounds", "2"]
    command += [
        "--evaluation",
        folder / "calibration.safetensors",
        "--out-machine",
        tmp_path / "machine.json",
    ]
    done = subprocess.run([*map(str, command), *outputs], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    latency, peers, operators = (read_csv(tmp_path / f"{table}.csv") for table in tables)
    assert tuple(latency[0]) == LATENCY
    assert tuple(operators[0]) == OPERATORS
    assert {row["batch"] for row in latency} == {"1", "2"}
    tools = {"-": 3, "ptq2themoon": 3, "ONNX Runtime": 2, "NNCF": 2}
    assert {tool: sum(row["tool"] == tool for row in peers) for tool in tools} == tools
    assert [row["problem"] for row in peers if row["problem"]] == []
    ours = [
        row["kernels"] for row in latency if row["runtime"] == "OpenVINO" and row["tool"] == "ptq2themoon"
    ]
    assert ["FullyConnected:i8" in kernels for kernels in ours] == [True] * 4  # each batch and precision
    assert [kernels for kernels in ours if "FullyConnected:f" in kernels or "MatMul:f" in kernels] == []
    facts = json.loads((tmp_path / "machine.json").read_text())
    assert (facts["base"], facts["threads"]) == (BASE, 1)
    assert facts["versions"]["nncf"] != "not installed"


@pytest.mark.slow
def test_file_of_ppq_runs_at_any_batch(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: PPQ as it is, without the operators that are replaced for the pipeline."""
    out = tmp_path / "ppq.onnx"
    command = [
        sys.executable,
        ROOT / "workflow/scripts/benchmark/benchmark_ppq.py",
        "--model",
        folder / "model.onnx",
    ]
    command += ["--info", folder / "model.json", "--images", folder / "calibration.safetensors", "--out", out]
    done = subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entries = [
        Entry("-", "FP32", folder / "model.onnx", quantized=False),
        Entry("PPQ", "its own export", out),
    ]
    arena = Arena("tiny", entries, 1, tmp_path)
    _, found = arena.comparison(images(5).numpy(), None, batch=2)
    assert arena.problems == {}, done.stdout
    assert found["sqnr_db"] > 5
    assert any(name.startswith("Q") for name in product_kernels(out, tmp_path, quantized=True))
