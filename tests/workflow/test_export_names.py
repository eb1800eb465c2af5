"""timm's DeiT and ViT by name, with weights of one's own; and what a user without a network reads."""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import randomised
from tiny_stages import files, run_stage

WIDTHS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16)}
NAMES = [
    *(f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")),
    *(f"vit_{size}_patch16_224" for size in WIDTHS),
]


def save_weights(path: Path, name: str, **arguments: Any) -> None:
    """Random weights as their author might keep them; a .pth under `model`, as DeiT's own are."""
    state = randomised(timm.create_model(name, **arguments)).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 300}, path)


def export(folder: Path, name: str, checkpoint: str, **arguments: Any) -> dict[str, Any]:
    """model.json of an exported model."""
    changes = {"source": name, "checkpoint": checkpoint, "arguments": json.dumps(arguments)}
    ended = run_stage(folder, "export", **changes)
    assert ended.status == 0, ended.err
    return json.loads((folder / "out/model.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_every_size_by_name(tmp_path: Path, name: str) -> None:
    """Two blocks of each, which is all that differs from the whole but for the number of blocks."""
    save_weights(tmp_path / "mine.safetensors", name, depth=2)
    info = export(tmp_path, name, "mine.safetensors", depth=2)
    assert info["max_abs_logit_difference"] <= 1e-4
    assert (info["architecture"], info["num_classes"], info["opset"]) == (name, 1000, 13)
    assert info["input_size"] == [3, 224, 224]
    model = onnx.load(tmp_path / "out/model.onnx", load_external_data=False)
    shapes = {tuple(tensor.dims) for tensor in model.graph.initializer}
    width, _ = WIDTHS[name.split("_")[1]]
    assert {(width, 3, 16, 16), (1, 197, width), (width, 3 * width), (width, 4 * width)} <= shapes
    assert Counter(node.op_type for node in model.graph.node)["Softmax"] == 2


@pytest.mark.parametrize(
    ("name", "mean", "crop"),
    [("deit_tiny_patch16_224", 0.485, 0.9), ("vit_tiny_patch16_224", 0.5, 0.9)],
)
def test_preprocessing_is_of_the_name(tmp_path: Path, name: str, mean: float, crop: float) -> None:
    """ImageNet's mean for DeiT, one half for the ViT of Google."""
    save_weights(tmp_path / "mine.pth", name, depth=1)
    preprocessing = export(tmp_path, name, "mine.pth", depth=1)["preprocessing"]
    assert preprocessing["mean"][0] == mean
    assert preprocessing["crop_pct"] == crop
    assert preprocessing["interpolation"] == "bicubic"


def test_deit_tiny_whole(tmp_path: Path) -> None:
    """Through the very scripts: export, images, fuse."""
    name = "deit_tiny_patch16_224"
    save_weights(tmp_path / "mine.safetensors", name)
    info = export(tmp_path, name, "mine.safetensors")
    assert info["max_abs_logit_difference"] <= 1e-4
    assert info["parameters"] == 5_717_416
    images = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)
    save_file({"images": images}, tmp_path / "out/calibration.safetensors")
    ended = run_stage(tmp_path, "fuse", check_images=2)
    assert ended.status == 0, ended.err
    report = json.loads((tmp_path / "out/fusion.json").read_text())
    assert report["fused"] == {"MatMul+Add": 48, "LayerNorm": 25, "GELU": 12}
    assert report["max_abs_logit_difference"] <= 1e-4
    assert (report["images"], report["unassigned"]) == (2, [])
    places = Counter((operator["role"], operator["block"]) for operator in report["operators"])
    for role in ("qkv", "proj", "fc1", "fc2", "norm1", "norm2", "gelu", "softmax"):
        assert [places[role, block] for block in range(12)] == [1] * 12
    assert places["norm", None] == 1
    types = Counter(operator["type"] for operator in report["operators"])
    assert (types["PPQBiasFusedMatMul"], types["LayerNormalization"], types["Gelu"]) == (48, 25, 12)
    assert report["attention"] == {
        "softmax": [f"blocks.{block}.softmax" for block in range(12)],
        "heads": 3,
        "grid": [14, 14],
        "prefix_tokens": 1,
    }


@pytest.mark.parametrize("source", ["deit_tiny_patch16_224", "hf-hub:someone/model"])
def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    def nowhere(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(socket.socket, "connect", nowhere)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between attempts
    before = files(tmp_path)
    cache = json.dumps({"cache_dir": str(tmp_path / "cache")})
    ended = run_stage(tmp_path, "export", source=source, arguments=cache)
    assert ended.status == 2
    line = ended.err.splitlines()[-1]
    assert line.startswith(f"error: model {source!r}: timm cannot make it (")
    assert line.endswith("; without a network give `checkpoint: FILE.safetensors`")
    assert {path for path in files(tmp_path) if not path.startswith("cache/")} == set(before)


def test_an_image_size_of_the_users_own(tmp_path: Path) -> None:
    """The size that a model is made for wins over the one that its tag was trained with."""
    arguments = {"depth": 1, "img_size": 64, "num_classes": 3}
    save_weights(tmp_path / "w.safetensors", "vit_tiny_patch16_224", **arguments)
    info = export(tmp_path, "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "w.safetensors", **arguments)
    assert info["input_size"] == [3, 64, 64]
    assert info["preprocessing"]["input_size"] == [3, 64, 64]
