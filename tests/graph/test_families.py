"""Roles, blocks, logits and attention of every family, from a plain TorchScript export."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from families import FAMILIES, SWIN, VIT, image_shape, made
from timm.models.eva import Eva
from tiny_models import random_images, randomised, run_all, to_onnx
from torch import nn

from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.attention_facts import attention_facts
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.operators import Operator

ATTENTION = ("norm1", "qkv", "attn_scale", "attn_scores", "softmax", "attn_context", "proj", "residual1")
MLP = ("norm2", "fc1", "gelu", "fc2", "residual2")
PLAIN = dict.fromkeys((*ATTENTION, *MLP), 1)
WITHOUT_GELU = {role: 1 for role in PLAIN if role != "gelu"}
VIT_ENDS = {"patch_embed": 1, "pos_add": 1, "norm": 1, "head": 1}
NO_HEAD = {"patch_embed": 1, "pos_add": 1, "norm": 1}
LAYER_SCALE = {"Mul": 4}
CLASS_TOKEN = "the class token is the one token before the patches, which the output reads"
POOL = "no class token: the output is a mean over tokens"


class Expected(NamedTuple):
    """What a family's operators are."""

    blocks: int
    in_block: dict[str, int]  # how many operators of a block have the role
    around: dict[str, int]  # and outside of the blocks
    unassigned: dict[str, int]  # by type


# Swin: the merging's layer; bias and mask of the scores; the pool. Its other norms: of patches, of merging.
# MobileViT: what is convolutional, and SiLU.
EXPECTED = {
    "vit": Expected(2, PLAIN, VIT_ENDS, {}),
    "vit_average_pool": Expected(2, PLAIN, VIT_ENDS, {"ReduceMean": 1}),
    "vit_features": Expected(2, PLAIN, NO_HEAD, {}),
    "deit_distilled": Expected(2, PLAIN, {**VIT_ENDS, "head": 2}, {"Add": 1, "Div": 1}),
    "swin": Expected(
        4,
        PLAIN,
        {"patch_embed": 1, "norm": 3, "head": 1},
        {"MatMul": 1, "Add": 5, "ReduceMean": 1},
    ),
    "mobilevit": Expected(
        3,
        WITHOUT_GELU,
        {"norm": 2, "head": 1},
        {"Conv": 19, "Sigmoid": 17, "Mul": 17, "GlobalAveragePool": 1},
    ),
    "dinov2": Expected(2, PLAIN, VIT_ENDS, LAYER_SCALE),
    "dinov2_swiglu": Expected(2, WITHOUT_GELU, NO_HEAD, {"Mul": 8, "Sigmoid": 2}),
}


class Fused(NamedTuple):
    module: nn.Module
    exported: onnx.ModelProto
    fused: onnx.ModelProto
    operators: list[Operator]


def fused(module: nn.Module, shape: tuple[int, ...]) -> Fused:
    exported = to_onnx(module, (1, *shape))
    model, _ = fuse(normalise(exported))
    operators, _ = rename_operators(model, find_roles(model))
    return Fused(module, exported, model, operators)


def assert_logits(found: Fused, batch: int, *shape: int) -> None:
    """The fused graph gives what the module gives."""
    images = random_images(batch, *shape)
    with torch.inference_mode():
        expected = found.module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_all(found.fused, images)[0], expected, rtol=0, atol=1e-4)


@cache
def family(name: str) -> Fused:
    return fused(FAMILIES[name](), image_shape(name))


def roles_of(operators: list[Operator], block: int | None) -> Counter[str | None]:
    return Counter(o.role for o in operators if o.block == block and o.role not in (None, "other"))


@pytest.mark.parametrize("name", FAMILIES)
def test_roles(name: str) -> None:
    operators, expected = family(name).operators, EXPECTED[name]
    for block in range(expected.blocks):
        assert roles_of(operators, block) == expected.in_block, block
    assert roles_of(operators, None) == expected.around
    assert roles_of(operators, expected.blocks) == {}
    assert Counter(o.type for o in operators if o.role is None) == expected.unassigned


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_layer_and_norm_of_the_module_is_found(name: str) -> None:
    """Counted in the module itself; Swin's merging of patches is in no block."""
    found = family(name)
    loose = EXPECTED[name].unassigned
    linear = [m for m in found.module.modules() if isinstance(m, nn.Linear)]
    roles = ("qkv", "proj", "fc1", "fc2", "head")
    assert sum(o.role in roles for o in found.operators) == len(linear) - loose.get("MatMul", 0)
    norms = [m for m in found.module.modules() if isinstance(m, nn.LayerNorm)]
    placed = sum(o.role in ("norm1", "norm2", "norm") for o in found.operators)
    assert placed == len(norms)
    assert sum(o.type == "LayerNormalization" for o in found.operators) == len(norms)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_module_s(name: str, batch: int) -> None:
    assert_logits(family(name), batch, *image_shape(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_follow_each_other(name: str) -> None:
    blocks = [o.block for o in family(name).operators if o.block is not None]
    assert blocks == sorted(blocks)


# Attention ----------------------------------------------------------------------------------------


def facts_of(found: Fused) -> dict[str, Any]:
    return attention_facts(found.fused, found.operators)


def entries(facts: dict[str, Any]) -> list[tuple]:
    keys = ("heads", "tokens", "groups", "prefix_tokens", "grid", "stage")
    return [tuple(entry[key] for key in keys) for entry in facts["blocks"]]


BLOCKS = {  # heads, tokens, groups, prefix_tokens, grid, stage
    "vit": [(2, 17, 1, 1, (4, 4), 0)] * 2,
    "vit_average_pool": [(2, 16, 1, 0, (4, 4), 0)] * 2,
    "vit_features": [(2, 17, 1, 1, (4, 4), 0)] * 2,
    "deit_distilled": [(2, 18, 1, 2, (4, 4), 0)] * 2,
    "swin": [(1, 16, 4, 0, None, 0)] * 2 + [(2, 16, 1, 0, (4, 4), 1)] * 2,
    "mobilevit": [(4, 16, 4, 0, (4, 4), 0)] + [(4, 4, 4, 0, (2, 2), 1)] * 2,
    "dinov2": [(2, 21, 1, 5, (4, 4), 0)] * 2,
    "dinov2_swiglu": [(2, 21, 1, 5, (4, 4), 0)] * 2,
}
NOTES = {
    "vit": CLASS_TOKEN,
    "vit_average_pool": POOL,
    "vit_features": CLASS_TOKEN,
    "deit_distilled": "the class token is the first of 2 tokens before the patches, which the output reads; "
    "it reads token 1 too (counted from 0); the others are left out, as they are no patches",
    "swin": POOL,
    "mobilevit": POOL,
    "dinov2": "the class token is the first of 5 tokens before the patches, which the output reads; "
    "the others are left out, as they are no patches",
}
NOTES["dinov2_swiglu"] = NOTES["dinov2"]


@pytest.mark.parametrize("name", FAMILIES)
def test_attention(name: str) -> None:
    facts = facts_of(family(name))
    assert entries(facts) == BLOCKS[name]
    names = [f"blocks.{block}.softmax" for block in range(EXPECTED[name].blocks)]
    assert [entry["softmax"] for entry in facts["blocks"]] == names
    assert (facts["class_token"], facts["note"]) == (not NOTES[name].startswith("no "), NOTES[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_is_of_the_shape_that_is_told(name: str) -> None:
    found = family(name)
    probe = onnx.ModelProto()
    probe.CopyFrom(found.fused)
    for entry in facts_of(found)["blocks"]:
        (node,) = (n for n in probe.graph.node if n.name == entry["softmax"])
        probe.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
    _, *attention = run_all(probe, random_images(3, *image_shape(name)))
    for value, entry in zip(attention, facts_of(found)["blocks"], strict=True):
        assert value.shape == (3 * entry["groups"], entry["heads"], entry["tokens"], entry["tokens"])


@pytest.mark.parametrize(
    ("overrides", "prefix", "note"),
    [
        ({"global_pool": "avg"}, 1, f"{POOL}; none of the 1 tokens before the patches is singled out"),
        ({"class_token": False, "reg_tokens": 2, "global_pool": "avg"}, 2, f"{POOL}; none of the 2"),
        ({"global_pool": ""}, 1, "no class token: the output singles out no token"),
        ({"no_embed_class": True, "reg_tokens": 2}, 3, "the class token is the first of 3"),
        ({"no_embed_class": True}, 1, CLASS_TOKEN),
    ],
    ids=str,
)
def test_a_class_token_is_one_that_the_output_reads(
    overrides: dict[str, Any], prefix: int, note: str
) -> None:
    kept = {"num_classes": 0} if overrides.get("global_pool") == "" else {}
    facts = facts_of(fused(made("vit_tiny_patch16_224", **VIT, **overrides, **kept), (3, 32, 32)))
    assert entries(facts) == [(2, 16 + prefix, 1, prefix, (4, 4), 0)] * 2
    assert facts["note"].startswith(note)
    assert facts["class_token"] is not note.startswith("no ")


# Relatives ----------------------------------------------------------------------------------------


def test_norm_before_the_blocks() -> None:
    """As CLIP's."""
    found = fused(made("vit_tiny_patch16_224", **VIT, pre_norm=True), (3, 32, 32))
    assert roles_of(found.operators, None) == {**VIT_ENDS, "norm": 2}
    assert all(roles_of(found.operators, block) == PLAIN for block in range(2))


WITHOUT_NORMS = {role: 1 for role in PLAIN if role not in ("norm1", "norm2", "gelu")}
# Fewer tokens come out than went in, so nothing is added after attention.
SMALLER = {**{role: 1 for role in WITHOUT_NORMS if role not in ("qkv", "residual1")}, "q": 1, "kv": 1}
LEVIT = [SMALLER if block in (2, 6) else WITHOUT_NORMS for block in range(11)]


@pytest.mark.parametrize(
    ("name", "overrides", "size", "blocks"),
    [
        ("swinv2_tiny_window8_256", SWIN, 32, [PLAIN] * 4),  # norms after branches
        ("levit_128s", {"img_size": 64}, 64, LEVIT),  # batch norms, Hardswish
        ("cait_xxs24_224", VIT, 32, [PLAIN] * 2),  # talking heads
    ],
)
def test_blocks_that_are_no_plain_transformers(
    name: str, overrides: dict[str, Any], size: int, blocks: list[dict[str, int]]
) -> None:
    """As docs/models.md lists them."""
    found = fused(made(name, **overrides), (3, size, size))
    assert [roles_of(found.operators, block) for block in range(len(blocks))] == blocks
    assert_logits(found, 3, 3, size, size)


def test_swin_whose_windows_need_padding() -> None:
    """5 x 5 tokens in windows of 4: the map is padded to 8 x 8, whose last windows are part zeros."""
    module = made("swin_tiny_patch4_window7_224", **{**SWIN, "img_size": 20, "always_partition": True})
    found = fused(module, (3, 20, 20))
    assert roles_of(found.operators, 1) == roles_of(found.operators, 3) == PLAIN
    assert_logits(found, 3, 3, 20, 20)
    assert [entry[1:5] for entry in entries(facts_of(found))] == [(16, 4, 0, None)] * 2 + [
        (16, 1, 0, None)
    ] * 2


def test_mobilevit_whose_patches_need_resizing(tmp_path: Path) -> None:
    """A map of 3 x 3 is resized to 4 x 4, of patches of 2 x 2, and back."""
    found = fused(FAMILIES["mobilevit"](), (3, 24, 24))
    assert sum(o.type == "Resize" for o in found.operators) == 2
    assert [entry[1:5] for entry in entries(facts_of(found))][-1] == (4, 4, 0, (2, 2))
    assert_logits(found, 3, 3, 24, 24)
    onnx.save(found.fused, tmp_path / "fused.onnx")
    images = random_images(2, 3, 24, 24)
    in_ppq = SimulatedModel(onnx.load(tmp_path / "fused.onnx"), "cpu")(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(in_ppq, run_all(found.fused, images)[0], rtol=0, atol=1e-4)


def test_gated_mlp_of_two_first_layers() -> None:
    """As EVA-02: gate and values from a layer each, a norm before the last layer; q, k, v apart."""
    module = Eva(
        img_size=32, patch_size=8, num_classes=5, embed_dim=32, depth=2, num_heads=2, qkv_fused=False,
        mlp_ratio=2, swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=False, global_pool="token",
    )  # fmt: skip
    operators = fused(randomised(module), (3, 32, 32)).operators
    expected = {**WITHOUT_GELU, "fc1": 2, "q": 1, "k": 1, "v": 1}
    del expected["qkv"]
    for block in range(2):
        assert roles_of(operators, block) == expected
    assert {"blocks.1.fc1", "blocks.1.fc1_2"} <= {operator.name for operator in operators}
