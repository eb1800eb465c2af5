"""Fidelity, the machine, scales along the axis, and the page of tables."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ptq2themoon.benchmark.arena import LATENCY, OPERATORS, PEERS, fidelity
from ptq2themoon.benchmark.channelwise import per_axis
from ptq2themoon.benchmark.machine import FLAGS, machine
from ptq2themoon.benchmark.speed_tables import document


def test_fidelity_of_the_same_logits() -> None:
    logits = np.eye(4, dtype=np.float32)
    found = fidelity(logits, logits, np.array([0, 1, 2, 0]))
    assert found == {"top1": 75.0, "agreement": 100.0, "sqnr_db": None}


def test_fidelity_without_labels() -> None:
    reference = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    found = fidelity(reference + np.float32(0.5), reference, None)
    assert found == {"top1": None, "agreement": 100.0, "sqnr_db": 13.98}  # 10 log10(25 / 1)


def test_machine_tells_what_times_depend_on() -> None:
    found = machine(3, ("numpy", "no-such-package"))
    assert found["threads"] == 3
    assert found["cpu"]
    assert set(found["flags"]) <= set(FLAGS)
    assert found["versions"] == {"numpy": np.__version__, "no-such-package": "not installed"}


def divided(zero: int) -> onnx.ModelProto:
    """x [N, 4] times a vector, quantized in steps of one."""
    values = {
        "reciprocal": np.array([0.5, 1.0, 2.0, 4.0], np.float32),
        "scale": np.array(1, np.float32),
        "zero": np.array(zero, np.uint8 if zero else np.int8),
    }
    nodes = [
        helper.make_node("Mul", ["x", "reciprocal"], ["divided"], "divide"),
        helper.make_node("QuantizeLinear", ["divided", "scale", "zero"], ["codes"], "quantize"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], "dequantize"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "divided", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def test_scales_along_the_axis_give_the_same_codes() -> None:
    x = np.random.default_rng(0).normal(0, 20, (50, 4)).astype(np.float32)
    for zero in (0, 128):
        model = divided(zero)
        made, count = per_axis(model)
        assert count == 1
        assert [node.op_type for node in made.graph.node] == ["QuantizeLinear", "DequantizeLinear"]
        assert len(model.graph.node) == 3
        np.testing.assert_array_equal(run(made, x), run(model, x))


def test_nothing_along_the_axis_where_nothing_is_divided() -> None:
    model = divided(0)
    model.graph.node[0].op_type = "Add"
    made, count = per_axis(model)
    assert (count, made.SerializeToString()) == (0, model.SerializeToString())


def test_page_of_tables() -> None:
    facts = {"model": "m", "tool": "T", "variant": "v", "runtime": "R", "precision": "f32"}
    latency = dict.fromkeys(LATENCY, "1") | facts | {"kernels": "QGemm=3", "ratio": "2", "ratio_high": "2.5"}
    peer = dict.fromkeys(PEERS, "") | facts | {"bytes": "2500000", "size_ratio": "0.26", "top1": "81.25"}
    broken = peer | {"variant": "broken"}
    operator = dict.fromkeys(OPERATORS, "1") | {"model": "m", "operator": "Softmax", "share": "0.25"}
    simulated = {"model": "m", "measure": "simulation", "contestant": "c", "seconds": "3", "equal": "True"}
    simulated |= dict.fromkeys(("images", "batch", "threads", "ratio", "ratio_low", "ratio_high"), "4")
    computer = {"model": "m", "cpu": "C", "flags": ["avx2"], "threads": 2, "versions": {"numpy": "2"}}
    tables = {
        "latency": [latency],
        "peers": [peer, broken],
        "operators": [operator],
        "simulation": [simulated],
    }
    page = document([computer], tables)
    assert "| T | v | R | f32 | 2.00 (1.00–2.50) | 2.5 | 0.26 | 81.25 | – | – |" in page
    assert "| T | broken | R | f32 | does not run |" in page
    assert "C, avx2; 2 threads; numpy 2." in page
    assert "Softmax 25 %" in page
    assert "QGemm=3" in page
    assert "| m | simulation | c | 4 | 4 | 4 | 3 | 4.00 (4.00–4.00) | True |" in page
