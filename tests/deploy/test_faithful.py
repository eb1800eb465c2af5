"""The faithful INT8 model: the simulation's codes, in a file that standard runtimes take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_deployed import Quantized, constants, kernels, of_type, sqnr
from tiny_quantized import Tiny, images, write_recipe

from ptq2themoon.deploy.compare import compare
from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.editing.onnx_run import session
from ptq2themoon.vocabulary.errors import UserError

ARCHITECTURES = ("vit", "swin", "mobilevit", "deit_distilled", "dinov2_swiglu")
RULE = {"granularity": "per-channel", "observer": "minmax"}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    return Quantized.make(tmp_path_factory.mktemp(request.param), request.param)


def test_a_standard_file_of_integers(family: Quantized) -> None:
    made = family.deployed("faithful").model
    onnx.checker.check_model(made, full_check=True)
    assert {opset.domain for opset in made.opset_import} == {""}
    assert not made.functions
    assert {node.domain for node in made.graph.node} == {""}
    assert made.graph.input == family.model.graph.input
    assert made.graph.output == family.model.graph.output
    weights = sum(v.size for v in constants(family.model).values() if v.ndim > 1 and v.dtype == np.float32)
    codes = sum(v.size for v in constants(made).values() if v.ndim > 1 and v.dtype == np.int8)
    assert codes > 0.95 * weights  # the rest: class token, masks of windows


def test_every_operator_gives_the_simulation_s_codes(family: Quantized) -> None:
    found = compare(family.model, family.quantized, family.simulated, family.images)
    assert len(found) == len(family.quantized)
    assert [d for d in found if d.departs] == []
    assert sum(d.differ for d in found) < 1e-4 * sum(d.values for d in found)


def test_end_to_end_it_is_the_simulation(family: Quantized) -> None:
    """Ties that fall to the other side are noise far below that of quantization."""
    made, simulated = family.deployed("faithful"), family.simulated(family.images).numpy()
    error = sqnr(simulated, family.floating())
    assert sqnr(family.run(made), simulated) > error + 6
    assert sqnr(family.run(made, optimise=False), simulated) > error + 6


def test_softmax_stays_in_floating_point(family: Quantized, tmp_path: Path) -> None:
    found = kernels(family.deployed("faithful").model, tmp_path)
    assert "QLinearSoftmax" not in found
    assert found["Softmax"] == len(of_type(family.model, "Softmax"))


@pytest.mark.parametrize("recipe", ["layernorm", "customized"])
def test_channel_wise_recipes(tmp_path: Path, recipe: str) -> None:
    tiny = Tiny.make(tmp_path, depth=7)
    made = Quantized.of(tiny, recipe, (8, 8), images(12))
    found = compare(made.model, made.quantized, made.simulated, made.images)
    assert not any(d.departs for d in found)
    placements = made.deployed("faithful").placements
    fc2 = placements[tiny.role("fc2", 5)]
    assert fc2.runs == ("float" if recipe == "customized" else "integer")
    assert ("channel" in fc2.why) == (recipe == "customized")
    simulated = made.simulated(made.images).numpy()
    assert sqnr(made.run(made.deployed("faithful")), simulated) > sqnr(simulated, made.floating()) + 6


@pytest.mark.parametrize("bits", [(8, 8), (6, 6), (4, 4), (8, 4), (3, 8)])
def test_fewer_bits_use_a_part_of_int8(tiny: Tiny, bits: tuple[int, int]) -> None:
    made = Quantized.of(tiny, "vanilla", bits, images(12))
    model = made.deployed("faithful").model
    codes = [v for v in constants(model).values() if v.dtype == np.int8 and v.ndim > 1]
    limit = 1 << (bits[0] - 1)
    assert codes
    assert all(-limit <= v.min() and v.max() < limit for v in codes)
    assert len({*codes[0].flatten().tolist()}) <= 2 * limit
    found = compare(made.model, made.quantized, made.simulated, made.images)
    assert not any(d.departs for d in found)


def test_codes_of_fewer_bits_in_the_runtime(tiny: Tiny) -> None:
    """Every QuantizeLinear's own output, large inputs too."""
    made = Quantized.of(tiny, "vanilla", (4, 4), images(12))
    model = made.deployed("faithful").model
    outputs = [node.output[0] for node in of_type(model, "QuantizeLinear")]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    found = session(model, quantized=True).run(outputs, {"images": 100 * made.images.numpy()})
    for values in found:
        codes = values.astype(np.int32) - (128 if values.dtype == np.uint8 else 0)
        assert -8 <= codes.min() <= codes.max() <= 7


def test_more_than_eight_bits_stay_in_floating_point(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"select": {"role": ["softmax", "fc1"]}, "bits": 12})
    made = Quantized.of(tiny, recipe, (8, 8), images(12))
    deployed = made.deployed("faithful")
    assert deployed.placements[tiny.role("fc1", 0)] == ("float", "more than 8 bits")
    found = compare(made.model, made.quantized, made.simulated, made.images)
    assert not any(d.departs for d in found)


def test_weights_per_input_channel_of_a_square_layer(tiny: Tiny, tmp_path: Path) -> None:
    """Where both counts of channels agree, a runtime could take them for those of the output."""
    rule = {"select": {"role": ["proj", "qkv"], "operand": "weight"}, **RULE, "weight_axis": "input"}
    made = Quantized.of(tiny, write_recipe(tmp_path, rule), (8, 8), images(12))
    found = compare(made.model, made.quantized, made.simulated, made.images)
    assert not any(d.departs for d in found)
    assert made.deployed("faithful").placements[tiny.role("proj", 0)].runs == "float"


def test_two_scales_in_a_row_stay_two(tiny: Tiny, tmp_path: Path) -> None:
    """ONNX Runtime would merge them into one."""
    rule = {"select": {"role": ["fc1", "qkv", "head"], "operand": "input"}, "observer": "minmax"}
    recipe = write_recipe(tmp_path, rule, percentile=95.0)
    made = Quantized.of(tiny, recipe, (8, 8), images(12))
    model = made.deployed("faithful")
    simulated = made.simulated(made.images).numpy()
    assert sqnr(made.run(model), simulated) > sqnr(simulated, made.floating()) + 6


def test_parameters_of_another_graph_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    made = Quantized.of(tiny, "vanilla", (8, 8), images(12))
    deeper = Quantized.of(Tiny.make(tmp_path, depth=3), "vanilla", (8, 8), images(12))
    with pytest.raises(UserError, match=r"fused.onnx: has no operator 'blocks.2.norm1'.*another graph"):
        deploy(made.model, deeper.quantized, "faithful", source=tiny.path)
    del made.quantized[1].tensors[0]
    made.quantized[1].tensors[0].position = 7
    with pytest.raises(UserError, match=r"'pos_add' has no weight 7 with a scale"):
        deploy(made.model, made.quantized, "fast", source=tiny.path)
