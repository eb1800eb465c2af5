"""timm's DeiT and ViT by name, with weights of one's own; and what a user without a network reads."""

from __future__ import annotations

import hashlib
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
    same = {"heads": 3, "tokens": 197, "groups": 1, "prefix_tokens": 1, "grid": [14, 14], "stage": 0}
    blocks = [{"softmax": f"blocks.{block}.softmax", **same} for block in range(12)]
    assert report["attention"]["blocks"] == blocks
    assert report["attention"]["class_token"] is True


def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on nothing can be reached; the hosts that were tried."""
    tried: list[str] = []

    def nowhere(host: object, *_: object, **__: object) -> None:
        tried.append(str(host))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(socket.socket, "connect", nowhere)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tried


HUB = "https://huggingface.co"
PROVIDE = [
    (
        "deit_tiny_patch16_224",
        f"fetch {HUB}/timm/deit_tiny_patch16_224.fb_in1k/resolve/main/model.safetensors elsewhere, "
        "give `checkpoint: FILE.safetensors`",
    ),
    (
        "vit_tiny_patch16_224.augreg_in21k",
        f"fetch {HUB}/timm/vit_tiny_patch16_224.augreg_in21k/resolve/main/model.safetensors elsewhere, "
        "give `checkpoint: FILE.safetensors`",
    ),
    (
        "hf-hub:someone/model@v2",
        f"fetch config.json and model.safetensors from {HUB}/someone/model/tree/v2, "
        "give `source: local-dir:FOLDER`",
    ),
]


@pytest.mark.parametrize(("source", "advice"), PROVIDE, ids=[source for source, _ in PROVIDE])
def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, advice: str) -> None:
    tried = no_network(monkeypatch)
    cache = json.dumps({"cache_dir": str(tmp_path / "cache")})
    ended = run_stage(tmp_path, "export", source=source, arguments=cache)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"error: model {source!r}: no network, and not fetched before; {advice}\n"
    assert tried == ["huggingface.co"]  # once: nothing is tried again and again
    assert not [path for path in files(tmp_path) if path.startswith("out/")]


def test_a_proxy_is_what_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = no_network(monkeypatch)
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    assert run_stage(tmp_path, "export", source="deit_tiny_patch16_224").status == 2
    assert tried == ["proxy.invalid"]


def in_the_cache(folder: Path, repository: str, revision: str, commit: str, **contents: bytes) -> None:
    """Files as huggingface_hub keeps them once they are fetched; `_` stands for the dot of a name."""
    place = folder / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / revision).write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    for name, content in contents.items():
        (place / "snapshots" / commit / name.replace("_", ".")).write_bytes(content)


@pytest.mark.parametrize(
    ("source", "repository", "revision"),
    [
        ("vit_tiny_patch16_224", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "main"),
        ("hf-hub:someone/model@v2", "someone/model", "v2"),
    ],
)
def test_what_was_fetched_is_used_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, repository: str, revision: str
) -> None:
    """Without a network too; the record names the commit, whatever name the revision goes by."""
    no_network(monkeypatch)
    save_weights(tmp_path / "mine.safetensors", "vit_tiny_patch16_224", depth=1)
    weights, commit = (tmp_path / "mine.safetensors").read_bytes(), "0123456789abcdef" * 2 + "01234567"
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 1000, "pretrained_cfg": {}}
    contents = {"model_safetensors": weights, "config_json": json.dumps(config).encode()}
    in_the_cache(tmp_path / "cache", repository, revision, commit, **contents)
    arguments = json.dumps({"cache_dir": str(tmp_path / "cache"), "depth": 1})
    ended = run_stage(tmp_path, "export", source=source, arguments=arguments)
    assert (ended.status, ended.out, ended.err) == (0, "", "")
    assert json.loads((tmp_path / "out/model.json").read_text())["weights"] == {
        "repository": repository,
        "revision": commit,
        "file": "model.safetensors",
        "sha256": hashlib.sha256(weights).hexdigest(),
    }


def test_sizes_of_a_fetched_config_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch)
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}, "model_args": {"depth": 10**9}}
    in_the_cache(tmp_path / "cache", "someone/model", "v2", "0" * 40, config_json=json.dumps(config).encode())
    arguments = json.dumps({"cache_dir": str(tmp_path / "cache")})
    line = run_stage(tmp_path, "export", source="hf-hub:someone/model@v2", arguments=arguments).err
    assert "timm cannot make it (its config.json: model_args.depth: 1000000000 is too large" in line


def test_a_name_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch)
    line = run_stage(tmp_path, "export", source="levit_256d").err
    advice = "timm knows no weights for it; name a tag that has some, or give `checkpoint: FILE`"
    assert line == f"error: model 'levit_256d': {advice}\n"
