"""A tiny member of every family of Vision Transformers, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from timm.layers import set_fused_attn
from timm.models.byobnet import ByobNet, ByoModelCfg
from timm.models.mobilevit import _inverted_residual_block, _mobilevit_block
from tiny_models import randomised
from torch import nn

CLASSES = 5
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN: dict[str, Any] = {
    "img_size": 32,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (1, 2),
}
DINO: dict[str, Any] = {**VIT, "img_size": 56, "patch_size": 14}


def made(name: str, **arguments: Any) -> nn.Module:
    """A timm model whose attention is plain operators and none of whose parameters is zero or one."""
    set_fused_attn(False)
    return randomised(timm.create_model(name, **{"num_classes": CLASSES, **arguments}))


def mobilevit() -> nn.Module:
    """Two stages with transformers, of one and two blocks; patches of 2 x 2 pixels."""
    set_fused_attn(False)
    stages = (
        _inverted_residual_block(d=1, c=8, s=2),
        _mobilevit_block(d=1, c=12, s=1, transformer_dim=16, transformer_depth=1, patch_size=2),
        _mobilevit_block(d=1, c=16, s=2, transformer_dim=24, transformer_depth=2, patch_size=2),
    )
    # timm's own number of features before the classifier is larger than all the rest.
    config = ByoModelCfg(
        blocks=stages,
        stem_chs=8,
        stem_type="3x3",
        stem_pool="",
        downsample="",
        act_layer="silu",
        num_features=32,
    )
    return randomised(ByobNet(config, num_classes=CLASSES))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: made("vit_tiny_patch16_224", **VIT),
    "vit_average_pool": lambda: made("vit_tiny_patch16_224", **VIT, class_token=False, global_pool="avg"),
    "vit_features": lambda: made("vit_tiny_patch16_224", **VIT, num_classes=0),
    "deit_distilled": lambda: made("deit_tiny_distilled_patch16_224", **VIT),
    "swin": lambda: made("swin_tiny_patch4_window7_224", **SWIN),
    "mobilevit": mobilevit,
    "dinov2": lambda: made("vit_small_patch14_reg4_dinov2", **DINO),
    "dinov2_swiglu": lambda: made("vit_giant_patch14_reg4_dinov2", **DINO, num_classes=0),
}


def image_shape(name: str) -> tuple[int, int, int]:
    """Channels, height and width of a family's images."""
    size = 56 if name.startswith("dinov2") else 32
    return 3, size, size
