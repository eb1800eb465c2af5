"""Rotation: the function stays wherever it may, the matrices are the papers', and all else is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from families import VIT, image_shape, made
from onnx import numpy_helper
from stretched import stretched
from tiny_methods import FLOATING_WEIGHTS, Case, recipe, sqnr

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.editing.onnx_run import kernel_counts, run_onnx, session
from ptq2themoon.quantize.hadamard import hadamard_matrix, keeping_ones, random_rotation
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.modes import Mode
from ptq2themoon.vocabulary.recipes import Recipe

# LayerNorms of streams, and blocks.
PLACES = {"vit": (5, 2), "deit_distilled": (5, 2), "dinov2": (5, 2), "vit_average_pool": (5, 2),
          "mobilevit": (8, 3)}  # fmt: skip
NORMS = pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])


def rotated(*, base: str = "papers", **settings: Any) -> Recipe:
    return recipe(base, methods=[{"name": "rotation", **settings}])


def only(part: str, **settings: Any) -> Recipe:
    """One part of the method alone."""
    return rotated(**{name: name == part for name in ("residual", "qk", "values")}, **settings)


def parameters(model: onnx.ModelProto, operator: str) -> list[np.ndarray]:
    """The constants among the inputs of an operator, float64."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (node,) = (node for node in model.graph.node if node.name == operator)
    return [constants[name].astype(np.float64) for name in node.input if name in constants]


def output(case: Case, model: onnx.ModelProto, operator: str) -> np.ndarray:
    """What an operator gives in floating point, float64."""
    seen: list[torch.Tensor] = []
    SimulatedModel(model, "cpu")(case.images[:4], {operator: lambda _, __, outputs: seen.append(outputs[0])})
    return seen[0].double().numpy()


def difference(case: Case, model: QuantizedModel) -> float:
    """Largest difference of the logits in floating point, over the largest logit."""
    wanted, found = case.floating(), SimulatedModel(model.rewritten, "cpu")(case.images)
    return float((found - wanted).abs().max() / wanted.abs().max())


# Matrices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 12, 16, 20, 28, 36, 44, 64, 80, 144, 192, 384, 768])
def test_hadamard_matrices_have_signs_alone_and_orthogonal_rows(size: int) -> None:
    matrix = hadamard_matrix(size)
    assert matrix is not None
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, size * np.eye(size))


@pytest.mark.parametrize("size", [7, 92])
def test_other_sizes_get_a_random_orthogonal_matrix(size: int) -> None:
    assert hadamard_matrix(size) is None
    found = random_rotation(size, np.random.default_rng(3))
    np.testing.assert_allclose(found @ found.T, np.eye(size), atol=1e-12)
    np.testing.assert_array_equal(found, random_rotation(size, np.random.default_rng(3)))
    assert not np.array_equal(found, random_rotation(size, np.random.default_rng(4)))


@pytest.mark.parametrize("size", [7, 64, 192])
def test_a_reflection_lets_a_rotation_keep_the_vector_of_ones(size: int) -> None:
    before = random_rotation(size, np.random.default_rng(0))
    found, ones = keeping_ones(before), np.ones(size)
    np.testing.assert_allclose(found @ found.T, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(found @ ones, ones, atol=1e-12)
    np.testing.assert_allclose(ones @ found, ones, atol=1e-12)
    np.testing.assert_array_equal(keeping_ones(np.eye(size)), np.eye(size))
    assert np.linalg.matrix_rank(found - before, tol=1e-9) == 1


# The function stays -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", PLACES)
@NORMS
def test_the_function_stays_on_each_family(family: str, norm: str) -> None:
    """Every LayerNorm's parameters, and every layer around, went elsewhere."""
    case = Case.of_family(family)
    model = case.quantized(rotated(norm=norm))
    assert difference(case, model) <= 1e-5
    assert not model.changes
    kinds = Counter(o.type for o in model.operators if o.role in ("norm1", "norm2", "norm"))
    norms, blocks = PLACES[family]
    kind = "RMSNormalization" if norm == "rmsnorm" else "LayerNormalization"
    assert kinds == {kind: norms}
    for operator in model.operators:
        if operator.type == kind:
            gamma, *beta = parameters(model.rewritten, operator.name)
            assert (gamma == 1).all()
            assert not np.any(beta)
    changed = [
        o.name
        for o in model.operators
        if o.role in ("qkv", "proj", "fc1", "fc2")
        and not np.array_equal(*(parameters(m, o.name)[0] for m in (case.reference, model.rewritten)))
    ]
    assert len(changed) == 4 * blocks


@pytest.mark.parametrize("family", [*PLACES, "swin", "vit_features"])
@pytest.mark.parametrize("part", ["qk", "values"])
def test_heads_alone_are_rotated_on_each_family(family: str, part: str) -> None:
    case = Case.of_family(family)
    model = case.quantized(only(part))
    assert difference(case, model) <= 1e-5
    makers = [o.name for o in model.operators if o.role == "qkv"]
    readers = [o.name for o in model.operators if o.role == "proj"]
    for name in makers:
        before, after = (parameters(m, name)[0] for m in (case.reference, model.rewritten))
        same = (before == after).all(0)
        third = len(same) // 3
        assert same[: 2 * third].any() == (part == "values")
        assert same[2 * third :].any() == (part == "qk")
    for name in readers:
        before, after = (parameters(m, name)[0] for m in (case.reference, model.rewritten))
        assert np.array_equal(before, after) == (part == "qk")


@NORMS
def test_roles_blocks_and_attention_stay(vit: Case, norm: str) -> None:
    model = vit.quantized(rotated(norm=norm))
    placed = {(o.name, o.role, o.block) for o in model.operators}
    assert placed == {(o.name, o.role, o.block) for o in vit.operators}
    softmax = next(o.name for o in vit.operators if (o.role, o.block) == ("softmax", 1))
    before, after = (output(vit, m, softmax) for m in (vit.reference, model.rewritten))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_layerscale_goes_into_the_layer_before_it() -> None:
    case = Case.of_family("dinov2")
    scales = [n.name for n in case.reference.graph.node if n.name.endswith(("ls1/Mul", "ls2/Mul"))]
    assert len(scales) == 4
    model = case.quantized(only("residual"))
    assert not {node.name for node in model.rewritten.graph.node}.intersection(scales)


# The equations ------------------------------------------------------------------------------------


@NORMS
def test_the_residual_stream_is_what_the_equations_say(vit: Case, norm: str) -> None:
    """In numpy: W_out M R1 and R1^T diag(gamma) W_in; the stream itself is (x - mean) R1."""
    model = vit.quantized(only("residual", norm=norm))
    r1 = random_rotation(32, np.random.default_rng([0, 0]))
    r1 = keeping_ones(r1) if norm == "layernorm" else r1
    m = np.eye(32) - 1 / 32
    (gamma, beta), (weight, bias) = (parameters(vit.reference, f"blocks.1.{n}") for n in ("norm1", "qkv"))
    for found, wanted in zip(
        parameters(model.rewritten, "blocks.1.qkv"),
        (r1.T @ np.diag(gamma) @ weight, bias + beta @ weight),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    for found, wanted in zip(
        parameters(model.rewritten, "blocks.0.fc2"), parameters(vit.reference, "blocks.0.fc2"), strict=True
    ):
        np.testing.assert_allclose(found, wanted @ m @ r1, atol=1e-6)
    before, after = (parameters(g, "patch_embed") for g in (vit.reference, model.rewritten))
    np.testing.assert_allclose(after[0], np.einsum("oihw,op->pihw", before[0], m @ r1), atol=1e-6)
    before, after = (output(vit, g, "blocks.1.residual2") for g in (vit.reference, model.rewritten))
    np.testing.assert_allclose(after, (before - before.mean(-1, keepdims=True)) @ r1, atol=1e-5)


def test_heads_are_rotated_as_the_equations_say(vit: Case) -> None:
    model = vit.quantized(rotated(residual=False))
    d, heads = 16, 2
    before, after = (parameters(g, "blocks.1.qkv") for g in (vit.reference, model.rewritten))
    rngs = [np.random.default_rng([0, part]) for part in (1, 2)]
    r2, r3 = ([random_rotation(d, rng) for _ in range(2)][1] for rng in rngs)  # block by block
    every = np.kron(np.eye(heads), r2), np.kron(np.eye(heads), r2), np.kron(np.eye(heads), r3)
    for found, wanted in zip(after, before, strict=True):
        parts = np.split(wanted, 3, axis=-1)
        turned = np.concatenate([part @ r for part, r in zip(parts, every, strict=True)], -1)
        np.testing.assert_allclose(found, turned, atol=1e-6)
    before, after = (parameters(g, "blocks.1.proj") for g in (vit.reference, model.rewritten))
    np.testing.assert_allclose(after[0], np.kron(np.eye(heads), r3).T @ before[0], atol=1e-6)
    np.testing.assert_array_equal(after[1], before[1])


def test_parts_draw_for_themselves_and_from_the_seed(vit: Case) -> None:
    whole, alone = (
        parameters(vit.quantized(r).rewritten, "blocks.0.fc2") for r in (rotated(), only("residual"))
    )
    np.testing.assert_array_equal(whole[0], alone[0])


def test_switched_off_it_is_its_base_to_the_bit(vit: Case) -> None:
    model = vit.quantized(rotated(residual=False, qk=False, values=False), (4, 4))
    plain = vit.quantized(recipe("papers"), (4, 4))
    assert not model.rewrite
    assert dict(model.slots()) == dict(plain.slots())
    assert torch.equal(vit.logits(model), vit.logits(plain))


# RMSNorm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "faithful"])
def test_onnx_runtime_fuses_rmsnorm_and_keeps_its_integer_kernels(
    vit: Case, mode: Mode, tmp_path: Path
) -> None:
    counts = {}
    for name, of in (("rotation", rotated(norm="rmsnorm")), ("papers", recipe("papers"))):
        model = vit.quantized(of)
        deployed = deploy(model.edited, model.quantized, mode)
        optimised = tmp_path / f"{name}.onnx"
        running = session(deployed.model, quantized=True, optimised=optimised)
        counts[name] = kernel_counts(optimised)
        assert deployed.products()["integer"] == len(vit.quantized(of).quantized) - (mode == "faithful")
        found = running.run(None, {running.get_inputs()[0].name: vit.images.numpy()})[0]
        assert sqnr(torch.from_numpy(found), vit.floating()) > 20
    assert counts["rotation"].pop("SimplifiedLayerNormalization") == 5
    assert counts["papers"].pop("LayerNormalization") == 5
    assert counts["rotation"] == counts["papers"]


def test_rmsnorm_is_one_function_that_onnx_runtime_runs(vit: Case) -> None:
    model = vit.quantized(rotated(norm="rmsnorm"))
    found = run_onnx(model.rewritten, vit.images.numpy())
    np.testing.assert_allclose(found, vit.floating().numpy(), atol=1e-4)
    x = output(vit, model.rewritten, "blocks.0.residual1")
    wanted = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(output(vit, model.rewritten, "blocks.0.norm2"), wanted, atol=1e-4)


def test_rmsnorm_is_quantized_where_layernorm_is(vit: Case) -> None:
    found, plain = (
        vit.quantized(of)
        for of in (rotated(base="vanilla", norm="rmsnorm"), rotated(base="vanilla", residual=False))
    )
    norms = {o.name for o in vit.operators if o.type == "LayerNormalization"}
    slots = [{slot for slot, _ in m.slots() if slot.operator in norms} for m in (found, plain)]
    assert {slot for slot in slots[1] if slot.position < 2} == slots[0]  # beta is gone


# What it is for -----------------------------------------------------------------------------------


def with_outliers() -> Case:
    """A ViT of which one channel is large, up or down by token, and counts for little in what reads it."""
    module = made("vit_tiny_patch16_224", **VIT)
    with torch.no_grad():
        module.pos_embed[:, ::2, 3] += 20  # type: ignore[index]
        module.pos_embed[:, 1::2, 3] -= 20  # type: ignore[index]
        for block in module.blocks:  # type: ignore[union-attr]
            block.attn.qkv.weight[:, 3] /= 100
            block.mlp.fc1.weight[:, 3] /= 100
        module.head.weight[:, 3] /= 100  # type: ignore[union-attr, index]
    return Case.of(module, image_shape("vit"))


@NORMS
def test_outliers_of_the_stream_are_spread(norm: str) -> None:
    """Where what LayerNorms give is quantized, and nothing else."""
    case = with_outliers()
    others = {"select": {"role": ["proj", "fc2", "attn_scores", "attn_context"]}, "quantize": False}
    methods = [{"name": "rotation", "qk": False, "values": False, "norm": norm}]
    plain, found = (
        case.sqnr(recipe("papers", others, FLOATING_WEIGHTS, methods=each), (8, 4)) for each in ([], methods)
    )
    assert found > plain + 3


@NORMS
def test_stretched_layernorms_are_undone(norm: str) -> None:
    """gamma goes into the weights, so how it shares a channel's size with them makes no difference."""
    module = made("vit_tiny_patch16_224", **VIT)
    of = rotated(norm=norm)
    cases = [Case.of(each, image_shape("vit")) for each in (module, stretched(module))]
    first, second = (case.logits(case.quantized(of, (8, 8))) for case in cases)
    assert sqnr(second, first) > 25


# What it refuses ----------------------------------------------------------------------------------


def test_streams_that_cannot_be_rotated_are_named() -> None:
    for family, named in (
        ("swin", "'norm' (LayerNormalization)"),
        ("vit_features", "gives the model's output"),
    ):
        with pytest.raises(UserError) as error:
            Case.of_family(family).quantized(rotated())
        said = str(error.value)
        assert said.startswith("rotation: the residual stream cannot be rotated, ")
        assert named in said
        assert said.endswith("; say residual: false")
        assert "\n" not in said


def test_norms_of_queries_and_keys_let_no_rotation_pass() -> None:
    case = Case.of(made("vit_tiny_patch16_224", **VIT, qk_norm=True), image_shape("vit"))
    with pytest.raises(
        UserError, match=r"^rotation: the queries and keys of block 0 .* say qk: false$"
    ) as error:
        case.quantized(rotated())
    assert "(LayerNormalization) reads what the layers before it give" in str(error.value)
    assert difference(case, case.quantized(rotated(qk=False))) <= 1e-5


def test_rotary_positions_let_no_rotation_pass() -> None:
    case = Case.of(made("eva02_tiny_patch14_224", **{**VIT, "num_heads": 2}), image_shape("vit"))
    with pytest.raises(UserError, match=r"^rotation: the queries and keys of block 0 .* say qk: false$"):
        case.quantized(rotated(residual=False))


@pytest.mark.parametrize("first", ["repq_vit", "ocs", "smoothquant", "noisyquant"])
def test_it_comes_before_methods_that_it_would_undo(vit: Case, first: str) -> None:
    of = recipe("papers", methods=[{"name": first}, {"name": "rotation"}])
    with pytest.raises(UserError, match=rf"^rotation: {first} came before it, .*; name rotation first$"):
        vit.quantized(of)


@pytest.mark.parametrize("after", ["repq_vit", "smoothquant", "gptq", "bias_correction"])
def test_other_methods_go_on_from_there(vit: Case, after: str) -> None:
    model = vit.quantized(recipe("papers", methods=[{"name": "rotation"}, {"name": after}]))
    assert difference(vit, model) <= 1e-5
    assert sqnr(vit.logits(model), vit.floating()) > 20
