"""Role and block from structure alone."""

from __future__ import annotations

import random
import string
from collections import Counter

import onnx
import pytest
import torch
from tiny_models import random_images, randomised, run_all, tiny_module, to_onnx
from tiny_separate import (
    Beside,
    BiasApart,
    CappedScores,
    Correlation,
    Cut,
    DenseOfHeads,
    Difference,
    Gate,
    GatedKeys,
    GroupedBlock,
    HeadsApart,
    NoProjection,
    OnlyValue,
    RotaryHalves,
    Separate,
    SeparateBlock,
    SharedKeyValue,
    Slopes,
    TamedBlock,
    TwoSoftmaxes,
)
from torch import nn

from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.attention_facts import attention_facts
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators
from ptq2themoon.vocabulary.operators import ROLES, Operator

IN_BLOCK = (
    "norm1", "qkv", "attn_scale", "attn_scores", "softmax", "attn_context", "proj", "residual1",
    "norm2", "fc1", "gelu", "fc2", "residual2",
)  # fmt: skip
AROUND = ("patch_embed", "pos_add", "norm", "head")


def fused(module: nn.Module) -> onnx.ModelProto:
    return fuse(normalise(to_onnx(module)))[0]


def placed(operators: list[Operator]) -> list[tuple[str | None, int | None]]:
    """(role, block) of what computes, in graph order."""
    return [(o.role, o.block) for o in operators if o.role != "other"]


def whole(blocks: int, in_block: tuple[str, ...] = IN_BLOCK) -> list[tuple[str, int | None]]:
    middle = [(role, block) for block in range(blocks) for role in in_block]
    return [("patch_embed", None), ("pos_add", None), *middle, ("norm", None), ("head", None)]


def unassigned(operators: list[Operator]) -> list[str]:
    return [operator.type for operator in operators if operator.role is None]


def test_roles_of_deit(deit) -> None:
    operators = find_roles(deit.fused)
    assert [(o.name, o.type) for o in operators] == [(n.name, n.op_type) for n in deit.fused.graph.node]
    assert not unassigned(operators)
    assert placed(operators) == whole(12)
    counts = Counter(operator.role for operator in operators)
    assert [counts[role] for role in ("qkv", "proj", "fc1", "fc2", "norm1", "norm2", "norm")] == [12] * 6 + [
        1
    ]
    assert {o.type for o in operators if o.role in ("qkv", "proj", "fc1", "fc2")} == {"PPQBiasFusedMatMul"}
    assert {o.type for o in operators if o.role in ("norm1", "norm2", "norm")} == {"LayerNormalization"}


def test_every_role_is_of_the_vocabulary(deit) -> None:
    found = {operator.role for operator in find_roles(deit.fused)}
    assert found == {*IN_BLOCK, *AROUND, "other"}
    assert found <= set(ROLES)


def test_what_only_moves_data_has_its_block(tiny) -> None:
    """From `norm1` to `residual2` of a block no other block begins."""
    blocks = [operator.block for operator in find_roles(tiny.fused)]
    inside = [block for block in blocks if block is not None]
    assert inside == sorted(inside)
    first, last = blocks.index(0), len(blocks) - blocks[::-1].index(1)
    assert None not in blocks[first:last]


def scrambled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph under random names of operators and tensors."""
    generator = random.Random(seed)
    made: dict[str, str] = {"": ""}

    def name(old: str) -> str:
        return made.setdefault(old, "".join(generator.choices(string.ascii_lowercase, k=12)))

    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    graph.ClearField("value_info")
    for value in [*graph.input, *graph.output, *graph.initializer]:
        value.name = name(value.name)
    for node in graph.node:
        node.name = "".join(generator.choices(string.ascii_lowercase, k=12))
        node.input[:] = [name(old) for old in node.input]
        node.output[:] = [name(old) for old in node.output]
    scrambled = onnx.ModelProto()
    scrambled.CopyFrom(model)
    scrambled.graph.CopyFrom(graph)
    return scrambled


@pytest.mark.parametrize("seed", range(3))
def test_names_do_not_matter(tiny, seed: int) -> None:
    expected = [(o.type, o.role, o.block) for o in find_roles(tiny.fused)]
    of_fused = find_roles(scrambled(tiny.fused, seed))
    assert [(o.type, o.role, o.block) for o in of_fused] == expected
    of_export = find_roles(fuse(normalise(scrambled(tiny.exported, seed)))[0])
    assert [(o.type, o.role, o.block) for o in of_export] == expected


def shuffled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph in another order of evaluation."""
    generator = random.Random(seed)
    left = list(model.graph.node)
    made = {"", *(t.name for t in model.graph.initializer), *(i.name for i in model.graph.input)}
    nodes = []
    while left:
        node = generator.choice([node for node in left if made.issuperset(node.input)])
        left.remove(node)
        nodes.append(node)
        made.update(node.output)
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    shuffled.graph.ClearField("node")
    shuffled.graph.node.extend(nodes)
    return shuffled


@pytest.mark.parametrize("seed", range(3))
def test_order_of_operators_does_not_matter(seed: int) -> None:
    model = fused(Separate())
    expected = {o.name: o for o in find_roles(model) if o.role != "other"}
    mixed = shuffled(model, seed)
    assert [node.name for node in mixed.graph.node] != [node.name for node in model.graph.node]
    assert {o.name: o for o in find_roles(mixed) if o.role != "other"} == expected


def test_query_key_and_value_apart() -> None:
    module = Separate()
    model = fused(module)
    operators = find_roles(model)
    assert not unassigned(operators)
    expected = whole(2, ("q", "k", "v", *(role for role in IN_BLOCK if role != "qkv")))
    assert Counter(placed(operators)) == Counter(expected)
    images = random_images(3)
    (logits,) = run_all(model, images)
    torch.testing.assert_close(torch.from_numpy(logits), module(torch.from_numpy(images)), atol=1e-5, rtol=0)
    # Which is which: their weights tell.
    renamed, _ = rename_operators(model, operators)
    weights = {node.name: node.input[1] for node in model.graph.node if len(node.input) > 1}
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for role, layer in [("q", "query"), ("k", "key"), ("v", "value")]:
        (operator,) = (o for o in renamed if (o.role, o.block) == (role, 1))
        weight = getattr(module.blocks[1], layer).weight.detach().T
        torch.testing.assert_close(torch.from_numpy(arrays[weights[operator.name]].copy()), weight)


@pytest.mark.parametrize("block", [NoProjection, OnlyValue, GatedKeys])
def test_projections_that_do_not_fit_are_listed_not_guessed(block: type[SeparateBlock]) -> None:
    operators = find_roles(fused(Separate(block)))
    assert not {"qkv", "q", "k", "v", "qk", "kv"} & {operator.role for operator in operators}
    assert "PPQBiasFusedMatMul" in unassigned(operators)
    counts = Counter(operator.role for operator in operators)
    assert [counts[role] for role in ("proj", "residual1", "fc1", "fc2", "residual2")] == [2] * 5


def test_one_layer_for_keys_and_values() -> None:
    operators = find_roles(fused(Separate(SharedKeyValue)))
    assert not unassigned(operators)
    expected = whole(2, ("q", "kv", *(role for role in IN_BLOCK if role != "qkv")))
    assert Counter(placed(operators)) == Counter(expected)


def test_bounded_scores_are_scores() -> None:
    operators = find_roles(fused(Separate(CappedScores)))
    assert sorted(unassigned(operators)) == ["Clip", "Clip", "Tanh", "Tanh"]
    counts = Counter(operator.role for operator in operators)
    in_block = ("attn_scores", "softmax", "attn_context", "q", "k", "v", "proj", "fc1", "fc2")
    assert [counts[role] for role in in_block] == [2] * 9


@pytest.mark.parametrize(
    ("block", "softmaxes", "heads", "loose"),
    [
        (HeadsApart, 2, 1, []),
        (Difference, 1, 4, ["Mul", "Sub"]),
        (TwoSoftmaxes, 2, 2, ["Mul", "Sub"]),
        (DenseOfHeads, 1, 2, ["MatMul"]),
        (RotaryHalves, 1, 2, ["Add"] * 2 + ["Mul"] * 8 + ["Sub"] * 2),
    ],
)
def test_attention_in_other_words(
    block: type[SeparateBlock], softmaxes: int, heads: int, loose: list[str]
) -> None:
    """Heads of one layer are of one block, however many softmaxes they have."""
    model = fused(Separate(block))
    operators, _ = rename_operators(model, find_roles(model))
    assert sorted(unassigned(operators)) == sorted(loose * 2)
    counts = Counter((operator.role, operator.block) for operator in operators)
    for index in range(2):
        assert all(counts[role, index] == 1 for role in ("q", "k", "v", "proj", "fc1", "fc2", "residual2"))
        assert counts["softmax", index] == softmaxes
    facts = attention_facts(model, operators)
    assert [(b["heads"], b["tokens"], b["groups"], b["grid"]) for b in facts["blocks"]] == [
        (heads, 17, 1, (4, 4))
    ] * 2
    assert facts["class_token"]


@pytest.mark.parametrize(
    ("block", "lacking", "loose"),
    [
        (TamedBlock, {"norm1", "norm2"}, {"Add": 4, "Mul": 8, "Tanh": 4}),
        (GroupedBlock, {"norm1", "norm2"}, {"Add": 4, "Mul": 4, "InstanceNormalization": 4}),
        (Beside, {"norm2"}, {}),
        (Slopes, {"gelu"}, {"Abs": 2, "Add": 2, "Div": 2}),
    ],
)
def test_blocks_in_other_words(block: type[SeparateBlock], lacking: set[str], loose: dict[str, int]) -> None:
    """What is no LayerNorm or GELU has no role, but hides nothing."""
    operators = find_roles(fused(Separate(block)))
    expected = {"q", "k", "v", *IN_BLOCK} - {"qkv", *lacking}
    counts = Counter((operator.role, operator.block) for operator in operators)
    for index in range(2):
        assert {role: counts[role, index] for role in expected} == dict.fromkeys(expected, 1)
    assert {role for role, index in counts if index is None} - {None, "other"} == set(AROUND)
    assert Counter(unassigned(operators)) == loose


@pytest.mark.parametrize("norms", [False, True])
def test_patches_of_a_layer(norms: bool) -> None:
    module = Separate()
    module.embed = randomised(Cut(norms))
    model = fused(module)
    operators, _ = rename_operators(model, find_roles(model))
    counts = Counter(operator.role for operator in operators)
    assert [counts[role] for role in ("patch_embed", "pos_add", "norm")] == [1, 1, 1 + norms]
    assert unassigned(operators) == ["LayerNormalization"] * norms
    facts = attention_facts(model, operators)
    assert [b["grid"] for b in facts["blocks"]] == [(4, 4)] * 2
    assert facts["class_token"]


def test_a_bias_is_no_residual() -> None:
    operators = find_roles(fused(Separate(BiasApart)))
    expected = whole(2, ("q", "k", "v", *(role for role in IN_BLOCK if role != "qkv")))
    assert Counter(o for o in placed(operators) if o[0] is not None) == Counter(expected)
    assert unassigned(operators) == ["Add", "Add"]


def test_class_token_and_average_pool_have_the_same_ends() -> None:
    operators = find_roles(fused(tiny_module(global_pool="avg")))
    assert unassigned(operators) == ["ReduceMean"]
    assert [o for o in placed(operators) if o[0] is not None] == whole(2)
    assert [o.role for o in operators if o.type in ("LayerNormalization", "Gemm")][-2:] == ["norm", "head"]


def test_norm_before_the_average_pool() -> None:
    """As Swin's; `fc_norm=False` keeps timm's norm in front of the pool."""
    operators = find_roles(fused(tiny_module(global_pool="avg", fc_norm=False, final_norm=True)))
    assert [o for o in placed(operators) if o[0] is not None] == whole(2)
    assert unassigned(operators) == ["ReduceMean"]


def test_layer_scale_stands_before_the_residual() -> None:
    operators = find_roles(fused(tiny_module(init_values=1e-1)))
    assert [o for o in placed(operators) if o[0] is not None] == whole(2)
    assert unassigned(operators) == ["Mul"] * 4  # the scales themselves have no role


@pytest.mark.parametrize(
    ("overrides", "loose"),
    [
        ({"qkv_bias": False}, []),
        ({"proj_bias": False}, []),
        ({"reg_tokens": 2}, []),
        ({"no_embed_class": True, "reg_tokens": 2}, []),
        ({"class_token": False, "global_pool": "avg"}, ["ReduceMean"]),
        ({"qk_norm": True}, ["LayerNormalization"] * 4),
    ],
    ids=str,
)
def test_variants_of_timm_have_the_same_roles(overrides: dict, loose: list[str]) -> None:
    operators = find_roles(fused(tiny_module(**overrides)))
    assert [o for o in placed(operators) if o[0] is not None] == whole(2)
    assert unassigned(operators) == loose


def test_features_without_a_head() -> None:
    operators = find_roles(fused(tiny_module(num_classes=0)))
    assert placed(operators) == whole(2)[:-1]


@pytest.mark.parametrize("head", [nn.Sequential(nn.Linear(32, 5), nn.Softmax(-1)), Gate(), Correlation()])
def test_a_softmax_elsewhere_is_no_attention(head: nn.Module) -> None:
    operators = find_roles(fused(Separate(classifier=head)))
    assert {operator.block for operator in operators} == {None, 0, 1}
    assert "Softmax" in unassigned(operators)


def test_no_attention_no_blocks() -> None:
    class Mixer(nn.Sequential):
        def __init__(self) -> None:
            width = 32
            stem = [nn.Conv2d(1, width, 4, 4), nn.Flatten(2), nn.Linear(16, 16), nn.GELU()]
            super().__init__(*stem, nn.Flatten(1), nn.LayerNorm(512), nn.Linear(512, 5))

    operators = find_roles(fused(randomised(Mixer())))
    assert {operator.block for operator in operators} == {None}
    assert [o.role for o in operators if o.role not in (None, "other")] == ["patch_embed", "norm", "head"]
    assert unassigned(operators) == ["PPQBiasFusedMatMul", "Gelu"]


def test_names_tell_the_place(tiny) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny.fused)
    found = find_roles(model)
    operators, renamed = rename_operators(model, found)
    assert [node.name for node in model.graph.node] == [operator.name for operator in operators]
    assert len({operator.name for operator in operators}) == len(operators)
    assert [o._replace(name="") for o in operators] == [o._replace(name="") for o in found]
    assert renamed == {old.name: new.name for old, new in zip(found, operators, strict=True)}
    names = {operator.name for operator in operators}
    assert {"patch_embed", "pos_add", "norm", "head"} <= names
    assert {f"blocks.{block}.{role}" for block in (0, 1) for role in IN_BLOCK} <= names
    for operator in operators:
        if operator.role == "other":
            stem = operator.type.lower()
            assert operator.name.removeprefix(f"blocks.{operator.block}.").rpartition("_")[0] in ("", stem)
    onnx.checker.check_model(model, full_check=True)
    assert find_roles(model) == operators


def test_an_operator_without_a_role_keeps_its_name() -> None:
    model = fused(tiny_module(global_pool="avg"))
    for node in model.graph.node:
        if node.op_type == "ReduceMean":
            node.name = "head"  # a name that another one is about to get
    operators, renamed = rename_operators(model, find_roles(model))
    by_type = {operator.type: operator.name for operator in operators}
    assert by_type["ReduceMean"] == "head"
    assert by_type["Gemm"] == "head_2"
    assert "head" not in renamed
