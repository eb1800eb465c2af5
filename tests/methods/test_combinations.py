"""Two methods in one recipe: a pair keeps what both did, or is refused in one line that names both."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import RECIPES, Case, recipe, sqnr
from torch import Tensor

from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.methods import all_made, method_class, method_names
from ptq2themoon.methods.base import Stage
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipe_language import MethodCall
from ptq2themoon.vocabulary.recipes import load_recipe

BITS = (6, 6)
WORSE = 4.0  # dB that two methods may lose against none, and against each of them alone
# Fewer candidates than by default: what two methods do to each other does not depend on them.
SETTINGS: dict[str, dict[str, Any]] = {
    "adalog": {"candidates": 16, "steps": 2},
    "liu2021": {"n": 8},
    "mixed_precision": {"budget": 5.0},  # so that bits other than the base's must be chosen
    "ocs": {"activations": 0.02},
    "ptq4vit": {"n": 8, "rounds": 1},
    "relu_mlp": {"bound": 10},
    "scale_search": {"n": 8},
}
# Of methods that learn.
SHORT = {"iterations": 2, "generator_steps": 2, "student_steps": 2, "batch": 8}
PAIRS = [(first, second) for first in method_names() for second in method_names() if first != second]


def call(name: str, **settings: Any) -> dict[str, Any]:
    fields = method_class(name).Settings.model_fields
    short = {key: value for key, value in SHORT.items() if key in fields}
    return {"name": name, **short, **SETTINGS.get(name, {}), **settings}


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of_family("vit")


def quantized(case: Case, base: str, *calls: dict[str, Any]) -> Tensor:
    return case.logits(case.quantized(recipe(base, methods=calls), BITS))


def tried(case: Case, base: str, *calls: dict[str, Any]) -> tuple[Tensor | None, str]:
    """Logits, or why the methods are refused."""
    try:
        return quantized(case, base, *calls), ""
    except UserError as error:
        return None, str(error)


@pytest.fixture(scope="module")
def alone(case: Case) -> Any:
    """Logits of one method, or of none, in a protocol."""
    return cache(lambda base, *names: quantized(case, base, *map(call, names)))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_methods_keep_what_both_did_or_are_refused(
    case: Case, alone: Any, first: str, second: str
) -> None:
    base = "fq_vit" if "fq_vit" in (first, second) else "papers"
    found, said = tried(case, base, call(first), call(second))
    if found is None:
        assert "\n" not in said
        assert first in said
        assert second in said
        return
    assert torch.isfinite(found).all()
    floating = case.floating()
    least = min(sqnr(alone(base, *names), floating) for names in ((), (first,), (second,)))
    assert sqnr(found, floating) > least - WORSE
    for name, other in ((first, second), (second, first)):
        if not torch.equal(alone(base, name), alone(base)):
            assert not torch.equal(found, alone(base, other)), f"{other} undoes {name}"


# What is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ("gptq", "erq", "rounding of weights"),
        ("adalog", "fq_vit", "quantizer of softmax's output"),
        ("repq_vit", "adalog", "quantizer of softmax's output"),
        ("ptq4vit", "repq_vit", "quantizer of softmax's output"),
        ("scale_search", "ptq4vit", "scales of what products read"),
        ("liu2021", "scale_search", "scales of what products read"),
        ("scale_search", "erq", "scales of weights"),
        ("power_of_two", "erq", "scales in the end"),
        ("adaround", "gptq", "rounding of weights"),
        ("qdrop", "power_of_two", "scales in the end"),
        ("relu_mlp", "adalog", "quantizer of GELU's output"),
    ],
    ids=str,
)
def test_two_that_decide_the_same_are_refused_in_either_order(first: str, second: str, what: str) -> None:
    calls = [MethodCall(name=first), MethodCall(name=second)]
    for one, other in (calls, calls[::-1]):
        both = rf"^{one.name} and {other.name} both decide the {what}; "
        with pytest.raises(UserError, match=both) as error:
            all_made([one, other])
        assert str(error.value).endswith("leave one of them out")


def test_a_method_is_called_once(tmp_path: Path) -> None:
    recipe_file = tmp_path / "again.yaml"
    for name in ("papers", "gptq"):
        (tmp_path / f"{name}.yaml").write_text((RECIPES / f"{name}.yaml").read_text())
    recipe_file.write_text("description: again\nextends: gptq\nmethods: [{name: gptq}]\n")
    with pytest.raises(UserError, match="gptq is called twice; methods of a recipe that is"):
        load_recipe(recipe_file)


def test_a_line_says_which_settings_leave_it_to_the_other() -> None:
    calls = [MethodCall(name="ptq4vit"), MethodCall(name="adalog")]
    ways = "say softmax_twin: false for ptq4vit or softmax: false for adalog, or leave"
    with pytest.raises(UserError, match=ways):
        all_made(calls)


def test_a_recipe_is_refused_when_it_is_read(tmp_path: Path) -> None:
    for name in ("papers.yaml", "vanilla.yaml"):
        (tmp_path / name).write_bytes((RECIPES / name).read_bytes())
    path = tmp_path / "both.yaml"
    path.write_text("extends: papers\nmethods: [{name: gptq}, {name: erq}]\n")
    with pytest.raises(
        UserError, match=r"both.yaml: methods: gptq and erq both decide the rounding"
    ) as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


FIXED = [
    (call("noisyquant"), call("smoothquant")),
    (call("noisyquant"), call("repq_vit")),
    (call("noisyquant"), call("adalog")),
    (call("repq_vit", log_sqrt2=False), call("smoothquant")),
    (call("adalog", softmax=False), call("repq_vit")),
]


@pytest.mark.parametrize(("first", "second"), FIXED, ids=lambda one: one["name"])
def test_a_method_that_would_change_what_is_fixed_must_come_first(
    case: Case, first: dict[str, Any], second: dict[str, Any]
) -> None:
    names = first["name"], second["name"]
    with pytest.raises(UserError) as error:
        quantized(case, "papers", first, second)
    said = rf"{names[1]}: {names[0]} has chosen the quantizer of the input of '"
    assert str(error.value).startswith(said)
    assert str(error.value).endswith(f"; name {names[1]} before it")
    assert torch.isfinite(quantized(case, "papers", second, first)).all()


def test_activations_are_not_split_once_their_range_is_fixed(case: Case) -> None:
    with pytest.raises(UserError, match=r"^ocs: repq_vit has chosen .*; say activations: 0 for ocs$"):
        quantized(case, "papers", call("repq_vit"), call("ocs"))
    assert torch.isfinite(quantized(case, "papers", call("repq_vit"), call("ocs", activations=0))).all()


@pytest.mark.parametrize("first", ["adalog", "noisyquant"])
def test_channels_are_duplicated_before_they_are_shifted(case: Case, first: str) -> None:
    with pytest.raises(UserError, match=rf"^ocs: {first} has shifted channels .*; name ocs before it$"):
        quantized(case, "papers", call(first), call("ocs", activations=0))
    assert torch.isfinite(quantized(case, "papers", call("ocs"), call(first))).all()


@pytest.mark.parametrize("second", ["smoothquant", "repq_vit"])
def test_channels_are_scaled_before_they_are_duplicated(case: Case, second: str) -> None:
    with pytest.raises(UserError, match=rf"^{second}: ocs has duplicated .*; name {second} before ocs$"):
        quantized(case, "papers", call("ocs"), call(second))
    assert torch.isfinite(quantized(case, "papers", call(second), call("ocs", activations=0))).all()


@pytest.mark.parametrize("second", ["ocs", "repq_vit", "smoothquant"])
def test_layers_are_rewritten_before_they_are_trained(case: Case, second: str) -> None:
    with pytest.raises(UserError, match=rf"^{second}: relu_mlp has trained .*; name {second} before it$"):
        quantized(case, "papers", call("relu_mlp"), call(second))


@pytest.mark.parametrize("names", [("relu_mlp", "noisyquant"), ("noisyquant", "relu_mlp")], ids=" ".join)
def test_a_noise_before_a_trained_layer_is_refused(case: Case, names: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=rf"^{names[1]}: {names[0]} has .*; leave one out$"):
        quantized(case, "papers", *map(call, names))


# Stages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("bias_correction", "gptq"), ("gptq", "power_of_two"), ("erq", "noisyquant"), ("gptq", "scale_search")],
    ids="+".join,
)
def test_what_builds_on_another_comes_after_it_in_either_order(case: Case, names: tuple[str, str]) -> None:
    calls = [call(name) for name in names]
    assert torch.equal(quantized(case, "papers", *calls), quantized(case, "papers", *calls[::-1]))


def test_a_stage_builds_on_those_before_it() -> None:
    stage = {name: all_made([MethodCall(name=name)])[0].stage for name in method_names()}
    assert stage["scale_search"] == stage["ptq4vit"] == stage["liu2021"] == Stage.SCALES
    assert stage["power_of_two"] < stage["fq_vit"] < stage["gptq"] == stage["erq"]
    assert stage["gptq"] < stage["noisyquant"] == stage["adalog"] < stage["bias_correction"]


def biases(model: QuantizedModel) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of linear layers, as a method's rewrite has them and in the end."""
    found = [linear_layers(Graph(graph)) for graph in (model.rewritten, model.edited)]
    first, last = ([layer.bias for layer in layers if layer.bias is not None] for layers in found)
    return first, last


def test_weights_that_made_up_for_a_shift_leave_the_bias_to_them(case: Case) -> None:
    """Rounded on what the layer reads, noise and all: taking the noise's rounding out again would undo it."""
    first, last = biases(case.quantized(recipe("papers", methods=[call("noisyquant"), call("gptq")]), BITS))
    assert all(np.array_equal(one, other) for one, other in zip(first, last, strict=True))
    first, last = biases(case.quantized(recipe("papers", methods=[call("noisyquant")]), BITS))
    assert not all(np.array_equal(one, other) for one, other in zip(first, last, strict=True))
