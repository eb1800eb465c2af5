"""The words of recipes for kinds of quantizers, granularity, and where an activation is quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_quantized import Tiny, images, write_recipe

from ptq2themoon.graph.meaning.nodes import Node
from ptq2themoon.quantize.plan import plan, protocol
from ptq2themoon.quantize.quantizers import LogSqrt2, Uniform
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipes import Recipe, TensorSpec, load_recipe

ASYMMETRIC = {"symmetry": "asymmetric", "codes": "unsigned"}
CHANNELS = {"granularity": "per-channel", "observer": "percentiles"}
HEADS = {"granularity": "per-head", "observer": "minmax"}


def of(recipe: Recipe, role: str, operand: str, block: int | None = 0) -> tuple[str, str, str]:
    spec: TensorSpec = recipe.spec(Operator("", "", role, block), operand, 8, 8)  # type: ignore[arg-type]
    return spec.kind, spec.symmetry, spec.codes


def tensors(planned: list[QuantizedOperator]) -> dict[tuple[str, int | None, str, int], QuantizedTensor]:
    """By role, block, operand and position; for the tiny model's operators this is unique."""
    return {
        (item.operator.role or item.operator.name, item.operator.block, t.operand, t.position): t
        for item in planned
        for t in item.tensors
    }


def refusal(folder: Path, *rules: dict[str, Any], **defaults: Any) -> str:
    with pytest.raises(UserError) as error:
        write_recipe(folder, *rules, **defaults)
    text = str(error.value).removeprefix(f"{folder}/")
    assert "\n" not in text
    return text


# Chosen by role, block and operand ------------------------------------------------------------------


def test_without_a_word_of_it_all_is_uniform_symmetric_and_signed(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert {of(recipe, role, o) for role in ("fc1", "softmax") for o in ("input", "weight", "output")} == {
        ("uniform", "symmetric", "signed")
    }


def test_kind_symmetry_and_codes_follow_role_block_and_operand(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        {"select": {"operand": ["input", "output"]}, "symmetry": "asymmetric"},
        {"select": {"role": "gelu", "block": 1}, **ASYMMETRIC},
        {"select": {"role": "softmax", "operand": "output"}, "kind": "log_sqrt2"},
        {"select": {"role": "softmax", "block": 2, "operand": "output"}, "kind": "uniform"},
    )
    assert of(recipe, "fc1", "weight") == ("uniform", "symmetric", "signed")
    assert of(recipe, "fc1", "input") == ("uniform", "asymmetric", "signed")
    assert of(recipe, "gelu", "input", 0) == ("uniform", "asymmetric", "signed")
    assert of(recipe, "gelu", "input", 1) == ("uniform", "asymmetric", "unsigned")
    assert of(recipe, "softmax", "input", 1)[0] == "uniform"
    assert of(recipe, "softmax", "output", 1)[0] == "log_sqrt2"
    assert of(recipe, "softmax", "output", 2)[0] == "uniform"  # a later rule takes it back


def test_defaults_may_say_them_for_all(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, **ASYMMETRIC)
    assert (
        of(recipe, "fc2", "weight") == of(recipe, "head", "output") == ("uniform", "asymmetric", "unsigned")
    )
    resolved = recipe.resolved()["defaults"]
    assert (resolved["kind"], resolved["symmetry"], resolved["codes"]) == (
        "uniform",
        "asymmetric",
        "unsigned",
    )


def test_codes_decide_the_range_of_the_integers(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"select": {"role": "fc1"}, "codes": "unsigned", "bits": 5})
    unsigned, signed = (recipe.spec(Operator("", "", role, 0), "input", 8, 8) for role in ("fc1", "fc2"))
    assert (unsigned.quant_min, unsigned.quant_max) == (0, 31)
    assert (signed.quant_min, signed.quant_max) == (-128, 127)


def test_a_calibrated_model_has_the_quantizers_that_were_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        {"select": {"operand": ["input", "output"]}, **ASYMMETRIC},
        {"select": {"role": "softmax", "operand": "output"}, "kind": "log_sqrt2"},
        {"select": {"role": "attn_scores", "block": 1, "operand": "input"}, **HEADS},
        {"select": {"role": "norm1", "operand": "output"}, **CHANNELS},
    )
    model, planned = tiny.calibrated(recipe)
    found = tensors(planned)
    softmax = found["softmax", 0, "output", 0].ready()
    assert isinstance(softmax, LogSqrt2)
    gelu = found["gelu", 0, "output", 0].ready()
    assert isinstance(gelu, Uniform)
    assert (gelu.quant_min, gelu.quant_max, gelu.symmetric) == (0, 255, False)
    weight = found["fc1", 0, "weight", 1].ready()
    assert isinstance(weight, Uniform)
    assert (weight.quant_min, weight.symmetric) == (-128, True)
    for position in (0, 1):
        heads = found["attn_scores", 1, "input", position]
        assert (heads.granularity, heads.axis, heads.ready().scale.shape) == ("per-head", 1, (2,))
        assert found["attn_scores", 0, "input", position].axis is None
    norm = found["norm1", 0, "output", 0]
    assert (norm.axis, norm.ready().scale.shape) == (2, (32,))
    floating = SimulatedModel(tiny.graph, "cpu")(images(6))
    assert torch.nn.functional.cosine_similarity(model(images(6)), floating).min() > 0.98


def test_the_program_and_ppq_s_executor_agree_on_asymmetric_quantizers(tiny: Tiny, tmp_path: Path) -> None:
    rules = [
        {"select": {"operand": ["input", "output"]}, **ASYMMETRIC},
        {"select": {"role": ["norm1", "fc1"]}, "granularity": "per-channel", "observer": "minmax"},
        {"select": {"role": "fc2"}, "codes": "signed", "bits": 5},
    ]
    model, planned = tiny.calibrated(write_recipe(tmp_path, *rules))
    by_ppq = SimulatedModel(tiny.graph, "cpu", planned, engine="ppq")
    assert torch.equal(model(images(5)), by_ppq(images(5)))


@pytest.mark.parametrize(
    "rule",
    [
        {"select": {"role": "softmax", "operand": "output"}, "kind": "log_sqrt2"},
        {"select": {"role": "attn_scores", "operand": "input"}, **HEADS},
    ],
    ids=["log_sqrt2", "per-head"],
)
def test_what_ppq_has_no_quantizer_for_is_refused_by_its_engine(
    tiny: Tiny, tmp_path: Path, rule: dict[str, Any]
) -> None:
    _, planned = tiny.calibrated(write_recipe(tmp_path, rule))
    with pytest.raises(UserError, match=r"^PPQ's executor has no quantizer .*; use the program$"):
        SimulatedModel(tiny.graph, "cpu", planned, engine="ppq")


# Per head -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["attn_scores", "softmax", "attn_context"])
def test_heads_are_the_second_axis(tiny: Tiny, tmp_path: Path, role: str) -> None:
    rule = {"select": {"role": role, "operand": ["input", "output"]}, **HEADS}
    found = tensors(tiny.plan(write_recipe(tmp_path, rule)))
    inside = {key: t for key, t in found.items() if key[0] == role}
    assert len(inside) == 2 * (3 if role != "softmax" else 2)
    assert {t.axis for t in inside.values()} == {1}
    assert {t.axis for key, t in found.items() if key[0] != role} == {None}


def test_a_scale_of_a_head_is_of_its_values_alone(tiny: Tiny, tmp_path: Path) -> None:
    rule = {"select": {"role": "softmax", "operand": "output"}, **HEADS, "codes": "unsigned"}
    model, planned = tiny.calibrated(write_recipe(tmp_path, rule), batches=[images(4)])
    item = next(item for item in planned if item.operator.role == "softmax")
    seen: list[torch.Tensor] = []
    with model.only(()):
        name = item.operator.name
        floating = SimulatedModel(tiny.graph, "cpu", tiny.plan("vanilla"))
        floating(images(4), {name: lambda _, __, outputs: seen.append(outputs[0])})
    scale = next(t.scale for t in item.tensors if t.operand == "output")
    assert scale is not None
    torch.testing.assert_close(scale, seen[0].amax((0, 2, 3)) / 255, rtol=0.05, atol=0)
    assert scale[0] != scale[1]


@pytest.mark.parametrize("rank", [3, 5])
def test_heads_in_another_number_of_dimensions_are_refused(tmp_path: Path, rank: int) -> None:
    rule = {"select": {"role": "attn_scores", "operand": ["input", "output"]}, **HEADS}
    recipe = write_recipe(tmp_path, rule)
    node = Node("MatMul", [False, False], [rank, rank], [rank], transposed_weight=False)
    said = rf"^per-head: a tensor of a MatMul has {rank} dimensions, not \[images, heads, tokens, …\]; use"
    with pytest.raises(UserError, match=said):
        plan([Operator("scores", "MatMul", "attn_scores", 0)], {"scores": node}, recipe, 8, 8)


# Contradictions -------------------------------------------------------------------------------------


def test_per_head_on_what_has_no_heads_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"select": {"role": "fc1", "operand": "input"}, **HEADS}) == (
        "recipe0.yaml: rules[0].granularity: fc1 (input) has no heads; per-head works for inputs and outputs "
        "of attn_context, attn_scale, attn_scores, softmax"
    )


def test_per_head_of_weights_is_refused(tmp_path: Path) -> None:
    text = refusal(tmp_path, {"select": {"role": "attn_scale", "operand": "weight"}, **HEADS})
    assert text.startswith(
        "recipe0.yaml: rules[0].granularity: attn_scale (weight) has no heads; per-head works"
    )


@pytest.mark.parametrize("observer", ["percentile", "mse", "kl"])
def test_per_head_with_an_observer_of_the_whole_tensor_is_refused(tmp_path: Path, observer: str) -> None:
    rule = {
        "select": {"role": "softmax", "operand": "output"},
        "granularity": "per-head",
        "observer": observer,
    }
    assert refusal(tmp_path, rule) == (
        "recipe0.yaml: rules[0].granularity: per-head works only with observer minmax or percentiles, but "
        f"softmax (output) has {observer!r} from {tmp_path}/recipe0.yaml: rules[0].observer"
    )


@pytest.mark.parametrize(
    ("settings", "has"),
    [
        ({"symmetry": "asymmetric"}, "uniform, asymmetric, signed"),
        ({"codes": "unsigned"}, "uniform, symmetric, unsigned"),
        ({"kind": "log_sqrt2"}, "log_sqrt2, symmetric, signed"),
    ],
)
def test_kl_of_anything_but_ppq_s_own_quantizer_is_refused(
    tmp_path: Path, settings: dict[str, str], has: str
) -> None:
    rule = {"select": {"role": "softmax", "operand": "output"}, "observer": "kl", **settings}
    assert refusal(tmp_path, rule) == (
        "recipe0.yaml: rules[0].observer: observer kl works only for kind uniform, symmetric, with signed "
        f"codes, but softmax (output) has {has}"
    )


def test_log_sqrt2_of_weights_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"select": {"role": "fc2"}, "kind": "log_sqrt2"}) == (
        "recipe0.yaml: rules[0].kind: kind log_sqrt2 is for activations, but selects fc2 (weight)"
    )


@pytest.mark.parametrize("granularity", ["per-channel", "per-head"])
def test_log_sqrt2_of_channels_or_heads_is_refused(tmp_path: Path, granularity: str) -> None:
    rule = {"select": {"role": "softmax", "operand": "output"}, "kind": "log_sqrt2", "observer": "minmax"}
    assert refusal(tmp_path, {**rule, "granularity": granularity}) == (
        f"recipe0.yaml: rules[0].kind: kind log_sqrt2 is per-tensor, but softmax (output) is {granularity}"
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "log_2"}, "rules[0].kind: unknown value 'log_2'; did you mean 'log2'?"),
        (
            {"symmetry": "asymetric"},
            "rules[0].symmetry: unknown value 'asymetric'; did you mean 'asymmetric'?",
        ),
        ({"codes": "unsinged"}, "rules[0].codes: unknown value 'unsinged'; did you mean 'unsigned'?"),
        (
            {"granularity": "per-heads"},
            "rules[0].granularity: unknown value 'per-heads'; did you mean 'per-head'?",
        ),
        (
            {"observer": "percentils"},
            "rules[0].observer: unknown value 'percentils'; did you mean 'percentiles'?",
        ),
        ({"kind": None}, "rules[0].kind: is empty; give a value or drop the key"),
    ],
)
def test_slips_in_the_new_words_are_refused_with_the_nearest(
    tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    assert refusal(tmp_path, {"select": {"role": "softmax", "operand": "output"}, **setting}) == (
        f"recipe0.yaml: {message}"
    )


@pytest.mark.parametrize("observer", ["minmax", "percentile", "percentiles", "mse"])
@pytest.mark.parametrize("settings", [{"codes": "unsigned"}, {"kind": "log_sqrt2"}], ids=str)
def test_values_below_0_are_refused_when_the_model_is_calibrated(
    tiny: Tiny, tmp_path: Path, observer: str, settings: dict[str, str]
) -> None:
    rule = {"select": {"role": "fc1", "block": 1, "operand": "output"}, "observer": observer, **settings}
    name = tiny.role("fc1", 1)
    said = rf"^operator '{name}', output 0: observer '{observer}': values below 0 \(least -\d+\.\d+\) have"
    with pytest.raises(UserError, match=said) as error:
        tiny.calibrated(write_recipe(tmp_path, rule))
    assert "\n" not in str(error.value)


def test_unsigned_symmetric_weights_below_0_are_refused_too(tiny: Tiny, tmp_path: Path) -> None:
    rule = {"select": {"role": "head", "operand": "weight"}, "codes": "unsigned", "observer": "percentiles"}
    with pytest.raises(UserError, match=r"^operator 'head', weight 1: observer .*: values below 0"):
        tiny.calibrated(write_recipe(tmp_path, rule))


# Where an activation is quantized -------------------------------------------------------------------


def word(folder: Path, name: str, activations: str | None, extends: str | None = None) -> Recipe:
    content: dict[str, Any] = {"activations": activations} if activations else {}
    if extends:
        content["extends"] = extends
    else:
        content["defaults"] = {
            "granularity": "per-tensor", "observer": "minmax", "percentile": 99.9, "weight_axis": "input",
        }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_recipe(path)


def test_once_leaves_every_output_to_its_readers_but_the_model_s(tiny: Tiny, tmp_path: Path) -> None:
    once, twice = (tensors(tiny.plan(word(tmp_path, name, name))) for name in ("once", "twice"))
    plain = tensors(tiny.plan(word(tmp_path, "plain", None)))
    assert twice.keys() == plain.keys()
    gone = twice.keys() - once.keys()
    assert {key[2] for key in gone} == {"output"}
    assert [key for key in once if key[2] == "output"] == [("head", None, "output", 0)]
    assert all(once[key] == twice[key] for key in once)


def test_an_output_that_is_moved_before_it_is_the_model_s_stays_quantized(tmp_path: Path) -> None:
    features = Tiny.of_family("vit_features", tmp_path)
    found = tensors(features.plan(word(tmp_path, "once", "once")))
    assert [key[0] for key in found if key[2] == "output"] == ["norm"]


def test_the_child_s_word_wins_and_without_one_the_parent_s_counts(tmp_path: Path) -> None:
    assert word(tmp_path, "base", "once").activations == "once"
    assert word(tmp_path, "same", None, "base").activations == "once"
    assert word(tmp_path, "back", "twice", "same").activations == "twice"
    assert word(tmp_path, "again", "once", "back").activations == "once"
    assert word(tmp_path, "none", None).activations == "twice"
    assert word(tmp_path, "same", None, "base").resolved()["activations"] == "once"


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: activations: unknown value 'thrice'; "):
        word(tmp_path, "mine", "thrice")


@pytest.mark.parametrize("reader_bits", [5, 4])
def test_once_and_twice_are_alike_just_where_maker_and_reader_agree(
    tiny: Tiny, tmp_path: Path, reader_bits: int
) -> None:
    """Quantizing twice by one grid is the identity."""
    rules = [
        {"select": {}, "quantize": False},
        {"select": {"role": "norm1", "operand": "output"}, "quantize": True, "bits": 5},
        {"select": {"role": "qkv", "operand": "input"}, "quantize": True, "bits": reader_bits},
    ]
    logits = []
    for name in ("once", "twice"):
        word(tmp_path, name, name)
        path = tmp_path / f"{name}_norm.yaml"
        path.write_text(yaml.safe_dump({"extends": name, "rules": rules}))
        logits.append(tiny.calibrated(load_recipe(path))[0](images(5)))
    assert torch.equal(*logits) == (reader_bits == 5)


# Protocol -------------------------------------------------------------------------------------------


def test_the_protocol_is_that_of_what_is_quantized(tiny: Tiny, tmp_path: Path) -> None:
    assert protocol(tiny.plan("vanilla")) == "all-operators"
    others = ["pos_add", "norm1", "norm2", "norm", "softmax", "gelu", "attn_scale", "residual1", "residual2"]
    present = {o.role for o in tiny.operators}
    floating = {"select": {"role": [r for r in others if r in present]}, "quantize": False}
    assert protocol(tiny.plan(write_recipe(tmp_path, floating))) == "products"
    one = {"select": {"role": "gelu", "operand": "output"}, "quantize": True}
    assert protocol(tiny.plan(write_recipe(tmp_path, floating, one))) == "all-operators"
