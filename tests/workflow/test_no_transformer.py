"""A graph without attention is refused before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from tiny_models import randomised, to_onnx
from tiny_stages import files, run_stage
from torch import nn


def test_fuse_refuses_a_graph_that_is_no_transformer(chain: Path, tmp_path: Path) -> None:
    for name in ("model.json", "calibration.safetensors"):
        (tmp_path / "out").mkdir(exist_ok=True)
        shutil.copy(chain / "out" / name, tmp_path / "out" / name)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    onnx.save(to_onnx(randomised(net), (1, 1, 28, 28)), tmp_path / "out/model.onnx")
    before = files(tmp_path)
    ended = run_stage(tmp_path, "fuse")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.endswith(
        "out/model.onnx: no transformer: no Softmax between two products of activations was found; "
        "give a Vision Transformer whose attention is plain operators"
    )
    assert files(tmp_path) == before
