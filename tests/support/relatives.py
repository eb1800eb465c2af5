"""Small members, with random weights, of families whose blocks differ from a plain Vision Transformer's."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from families import CLASSES, SWIN, VIT, made
from timm.layers import set_fused_attn
from timm.models import gcvit, metaformer, mvitv2
from tiny_models import random_images, randomised, to_onnx
from torch import nn

from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.attention_facts import attention_facts
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators
from ptq2themoon.vocabulary.operators import Operator

IMAGES = 3  # no file is written for as many
STAGES: dict[str, Any] = {
    "img_size": 64,
    "embed_dims": (16, 16, 32, 32),
    "depths": (1,) * 4,
    "num_heads": (1, 1, 2, 2),
}


def caformer() -> nn.Module:
    """Two convolutional stages and two of attention, with LayerNorms that have no bias."""
    norms = [metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2
    mixers = [metaformer.SepConv] * 2 + [metaformer.Attention] * 2
    return metaformer.MetaFormer(
        depths=(1,) * 4, dims=(16, 24, 32, 32), token_mixers=mixers, norm_layers=norms, num_classes=CLASSES
    )


def mvit() -> nn.Module:
    config = mvitv2.MultiScaleVitCfg(depths=(1, 2), embed_dim=(16, 32), num_heads=1)
    return mvitv2.MultiScaleVit(config, img_size=(64, 64), num_classes=CLASSES)


def gc() -> nn.Module:
    """Windows with their own queries, then with those of the whole image."""
    return gcvit.GlobalContextVit(
        img_size=(128, 128), embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 1, 2, 2), num_classes=CLASSES
    )


class Relative(NamedTuple):
    """How a family is called, its module, and the side of its images."""

    label: str
    make: Callable[[], nn.Module]
    size: int


def _timm(label: str, name: str, size: int = 32, **arguments: Any) -> Relative:
    return Relative(label, lambda: made(name, **arguments), size)


RELATIVES = {
    "swinv2": _timm("Swin v2", "swinv2_tiny_window8_256", **SWIN),
    "swinv2_cr": _timm("Swin v2 CR", "swinv2_cr_tiny_224", **SWIN),
    "relpos": _timm("ViT, relative positions", "vit_relpos_small_patch16_224", **VIT),
    "relpos_rpn": _timm("ViT, norms after the branches", "vit_relpos_base_patch32_plus_rpn_256", **VIT),
    "parallel": _timm("ViT, parallel blocks", "vit_small_patch16_18x2_224", **VIT),
    "rope": _timm("ViT, rotary embedding", "vit_base_patch16_rope_reg1_gap_256", **VIT),
    "clip_quick": _timm("CLIP, QuickGELU", "vit_base_patch16_clip_quickgelu_224", **VIT),
    "siglip": _timm("SigLIP, attention pool", "vit_base_patch16_siglip_224", **VIT, num_classes=0),
    "sam": _timm("SAM", "samvit_base_patch16_224", **VIT),
    "beit": _timm("BEiT", "beit_base_patch16_224", **VIT),
    "beit3": _timm("BEiT-3", "beit3_base_patch16_224", **VIT),
    "eva02": _timm("EVA-02", "eva02_tiny_patch14_224", 28, **{**VIT, "img_size": 28, "patch_size": 7}),
    "dinov3": _timm("DINOv3", "vit_small_patch16_dinov3", **VIT),
    "aimv2": _timm("AIMv2", "aimv2_large_patch14_224", **VIT),
    "hybrid": _timm(
        "ResNet and ViT", "vit_tiny_r_s16_p8_224", 64, img_size=64, embed_dim=32, depth=2, num_heads=2
    ),
    "tiny_vit": _timm(
        "TinyViT",
        "tiny_vit_5m_224",
        64,
        embed_dims=(16, 32),
        depths=(1, 2),
        num_heads=(1, 2),
        window_sizes=(4, 4),
    ),
    "davit": _timm(
        "DaViT", "davit_tiny", 64, depths=(1, 1), embed_dims=(16, 32), num_heads=(1, 2), window_size=4
    ),
    "caformer": Relative("CAFormer", caformer, 64),
    "crossvit": _timm(
        "CrossViT",
        "crossvit_tiny_240",
        img_size=32,
        img_scale=(1.0, 1.0),
        patch_size=(4, 8),
        embed_dim=(16, 32),
        depth=((1, 2, 0),),
        num_heads=(2, 2),
        mlp_ratio=(2, 2, 1),
    ),
    "hiera": _timm(
        "Hiera", "hiera_tiny_224", 64, img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 1, 1)
    ),
    "twins_pcpvt": _timm("Twins-PCPVT", "twins_pcpvt_small", 64, **STAGES),
    "twins_svt": _timm("Twins-SVT", "twins_svt_small", 64, **STAGES, wss=(4, 4, 2, 2)),
    "pvt_v2": _timm(
        "PVT v2", "pvt_v2_b0", 64, depths=(1,) * 4, embed_dims=(8, 16, 24, 32), num_heads=(1, 1, 2, 2)
    ),
    "gcvit": Relative("GC ViT", gc, 128),
    "mvitv2": Relative("MViT v2", mvit, 64),
    "edgenext": _timm(
        "EdgeNeXt", "edgenext_xx_small", 64, dims=(8, 16, 24, 32), depths=(1,) * 4, heads=(2,) * 4
    ),
    "levit": _timm(
        "LeViT",
        "levit_128s",
        64,
        img_size=64,
        embed_dim=(32, 48, 64),
        depth=(1,) * 3,
        key_dim=8,
        num_heads=(2,) * 3,
    ),
    "cait": _timm("CaiT", "cait_xxs24_224", **VIT),
    "xcit": _timm("XCiT", "xcit_nano_12_p16_224", **VIT),
    "convit": _timm("ConViT", "convit_tiny", **{**VIT, "embed_dim": 16}, local_up_to_layer=1),
    "coat_lite": _timm(
        "CoaT-Lite",
        "coat_lite_tiny",
        img_size=32,
        embed_dims=(16, 16, 32, 32),
        serial_depths=(1,) * 4,
        num_heads=8,
    ),
    "efficientformer": _timm(
        "EfficientFormer v2",
        "efficientformerv2_s0",
        64,
        img_size=64,
        embed_dims=(8, 16, 24, 32),
        depths=(1, 1, 2, 2),
        num_vit=1,
    ),
    "pit": _timm(
        "PiT",
        "pit_ti_224",
        img_size=32,
        patch_size=8,
        stride=4,
        depth=(1, 1, 1),
        base_dims=(16, 16, 16),
        heads=(1, 2, 2),
    ),
    "tnt": _timm(
        "TNT",
        "tnt_s_legacy_patch16_224",
        img_size=32,
        embed_dim=32,
        inner_dim=8,
        depth=2,
        num_heads_inner=2,
        num_heads_outer=2,
    ),
}


class Found(NamedTuple):
    """A relative's fused graph, and what torch gives for the images."""

    module: nn.Module
    fused: onnx.ModelProto
    operators: list[Operator]
    images: np.ndarray
    expected: np.ndarray

    @property
    def places(self) -> dict[int, Counter[str]]:
        """How many operators of each block have each role."""
        found: dict[int, Counter[str]] = {}
        for operator in self.operators:
            if operator.block is not None and operator.role not in (None, "other"):
                found.setdefault(operator.block, Counter())[str(operator.role)] += 1
        return found

    @property
    def loose(self) -> Counter[str]:
        """Types of the operators without a role."""
        return Counter(operator.type for operator in self.operators if operator.role is None)

    @property
    def attention(self) -> dict[str, Any]:
        return attention_facts(self.fused, self.operators)


def exported(name: str) -> tuple[nn.Module, onnx.ModelProto]:
    """The module, and its file of opset 17, or of 18 where one exporter of torch fails."""
    set_fused_attn(False)
    relative = RELATIVES[name]
    module = randomised(relative.make())
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    shape = (1, 3, relative.size, relative.size)
    with torch.no_grad():
        module(torch.zeros(shape))  # what it keeps of its first run
    with contextlib.redirect_stdout(io.StringIO()):
        if name not in ("aimv2",):
            return module, to_onnx(module, shape, opset=17)
        program = torch.onnx.export(
            module, (torch.zeros(2, *shape[1:]),), None, dynamo=True, opset_version=18, verbose=False,
            input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    return module, program.model_proto


@cache
def relative(name: str) -> Found:
    """The fused graph of one; made once."""
    module, model = exported(name)
    fused, _ = fuse(normalise(model))
    operators, _ = rename_operators(fused, find_roles(fused))
    images = random_images(IMAGES, 3, RELATIVES[name].size, RELATIVES[name].size)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    return Found(module, fused, operators, images, expected)


# The table ----------------------------------------------------------------------------------------

LAYERS = ({"qkv"}, {"q", "k", "v"}, {"q", "kv"}, {"qk", "v"}, {"kv"}, {"k", "v"})
PARTS = (
    "norm1", "attn_scores", "softmax", "attn_context", "proj", "residual1", "norm2", "fc1", "gelu", "fc2",
    "residual2",
)  # fmt: skip
HEAD = ("Family", "Blocks", "Blocks without", "Without role", "Class token")


def missing(found: Found) -> Counter[str]:
    """In how many blocks each role is not there; one name for the layers of queries, keys and values."""
    lacking: Counter[str] = Counter()
    for roles in found.places.values():
        lacking.update(part for part in PARTS if part not in roles)
        if not any(layers <= set(roles) for layers in LAYERS):
            lacking["q, k, v"] += 1
    return lacking


def row(name: str) -> list[str]:
    """A family's cells."""
    found = relative(name)
    return [
        RELATIVES[name].label,
        str(len(found.places)),
        _counted(missing(found)),
        _counted(found.loose),
        "yes" if found.attention["class_token"] else "no",
    ]


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items(), key=lambda i: -i[1])) or "–"
