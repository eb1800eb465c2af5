"""Outlier channels made by hand: the function stays, and activations have them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families import FAMILIES, image_shape
from torch import Tensor, nn

from ptq2themoon.benchmark.outlier_channels import GROWTH, stretch
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.parameters import Params

IMAGES = {"images": 4, "batch_size": 4}
ARRAYS = {"kind": "arrays", "calibration": "a.safetensors", "evaluation": "b.safetensors"}


def ranges(module: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """Largest magnitude of each channel that a layer reads."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(x)
    handle.remove()
    return seen[0].detach().abs().flatten(0, -2).amax(0)


@pytest.mark.parametrize("family", ["vit", "swin", "deit_distilled", "dinov2"])
def test_the_function_stays_and_channels_grow(family: str) -> None:
    plain, x = FAMILIES[family]().eval(), torch.randn(2, *image_shape(family))
    grown = copy.deepcopy(plain)
    stretch(grown, 0)
    torch.testing.assert_close(grown(x), plain(x), rtol=1e-5, atol=1e-5)
    for old, new in zip(plain.modules(), grown.modules(), strict=True):
        if not (hasattr(old, "norm1") and hasattr(old, "attn")):
            continue
        layers = [(old.attn.qkv, new.attn.qkv), (old.attn.proj, new.attn.proj), (old.mlp.fc1, new.mlp.fc1)]
        for before, after in layers:
            ratio = ranges(grown, after, x) / ranges(plain, before, x)
            assert ratio.max() == pytest.approx(GROWTH[0], rel=1e-3)
            assert ratio.median() == pytest.approx(1, rel=1e-3)


def test_the_seed_decides_which() -> None:
    models = [FAMILIES["vit"]() for _ in range(3)]
    for module, seed in zip(models, (0, 0, 1), strict=True):
        stretch(module, seed)
    first, again, other = (module.blocks[0].norm1.weight for module in models)  # type: ignore[union-attr, index]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_without_such_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="no block with norm1, attn"):
        stretch(nn.Linear(2, 2), 0)


def test_only_models_of_timm_are_stretched(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.touch()
    foreign = {"source": f"onnx:{file}", "preprocessing": {"mean": [0.5], "std": [0.5]}, "dataset": "data"}
    mapping = {
        "models": {"mine": {"source": "vit_tiny_patch16_224", "dataset": "data"}, "foreign": foreign},
        "datasets": {"data": ARRAYS}, "recipes": ["vanilla"], "bits": ["w8a8"],
        "calibration": {**IMAGES, "seeds": [0]}, "evaluation": IMAGES,
        "errors": {"images": 4, "logits_images": 4}, "benchmark": {"stretched": True, "recipes": []},
    }  # fmt: skip
    assert list(Params.from_mapping(mapping).stretched) == ["stretched-mine"]
    mapping["models"]["stretched-mine"] = mapping["models"]["mine"]  # type: ignore[index]
    with pytest.raises(UserError, match=r"models.stretched-mine: taken by the benchmark"):
        Params.from_mapping(mapping)
