"""Masks of attention in one form, and never a scale for what they hide."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tiny_models import random_images, run_all, written

from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.forms.fuse import name_operators
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.nodes import read_nodes

LOWEST = float(np.finfo(np.float32).min)


def types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def masked(low: float, rest: float = 0.0, whole_row: bool = False) -> np.ndarray:
    value = np.full((4, 8), rest, dtype=np.float32)
    value[:, 6:] = low
    if whole_row:
        value[0] = low
    return value


def same(model: onnx.ModelProto, normalised: onnx.ModelProto) -> None:
    images = random_images(3, 4, 8)
    np.testing.assert_allclose(run_all(normalised, images)[0], run_all(model, images)[0], atol=1e-6)


@pytest.mark.parametrize("low", [-np.inf, LOWEST, -1e9, -65504.0, -1e4])
@pytest.mark.parametrize(
    ("rest", "expected"), [(0, ["Where", "Softmax"]), (0.5, ["Add", "Where", "Softmax"])]
)
def test_an_added_mask(low: float, rest: float, expected: list[str]) -> None:
    model = written("s = Add (mask, x)\ny = Softmax <axis = -1> (s)", {"mask": masked(low, rest)})
    normalised = normalise(model)
    assert types(normalised) == expected
    same(model, normalised)


def test_a_subtracted_mask() -> None:
    model = written("s = Sub (x, mask)\ny = Softmax <axis = -1> (s)", {"mask": -masked(-1e9)})
    normalised = normalise(model)
    assert types(normalised) == ["Where", "Softmax"]
    same(model, normalised)


@pytest.mark.parametrize(
    ("body", "mask"),
    [
        ("s = Add (x, mask)\ny = Softmax <axis = -1> (s)", masked(-100.0)),  # as Swin's
        ("s = Add (x, mask)\ny = Softmax <axis = -1> (s)", masked(-1e4, whole_row=True)),
        ("s = Add (x, mask)\ny = Relu (s)", masked(-1e9)),
    ],
)
def test_what_stays(body: str, mask: np.ndarray) -> None:
    model = written(body, {"mask": mask})
    assert types(normalise(model))[0] == "Add"


@pytest.mark.parametrize("low", [-np.inf, LOWEST])
def test_hidden_scores_have_no_scale(low: float) -> None:
    """Until the Softmax: a bias between leaves them hidden."""
    body = "h = Where (hidden, low, x)\ns = Add (h, bias)\ny = Softmax <axis = -1> (s)"
    constants = {"hidden": masked(1) > 0, "low": np.float32(low), "bias": masked(0.5)}
    graph = Graph(normalise(written(body, constants)))
    name_operators(graph)
    nodes = read_nodes(graph.finish())
    assert {name: (node.hidden_inputs, node.hidden_outputs) for name, node in nodes.items()} == {
        "Where": (set(), {0}),
        "Add": ({0}, {0}),
        "Softmax": ({0}, set()),
    }


GUARDED = "w = Softmax <axis = -1> (s)\nn = IsNaN (w)\ng = Where (n, zero, w)\ny = Relu (g)"


@pytest.mark.parametrize(
    ("mask", "kept"),
    [(masked(-np.inf), False), (masked(-np.inf, whole_row=True), True), (masked(1.0), False)],
)
def test_zeros_in_place_of_no_number(mask: np.ndarray, kept: bool) -> None:
    """As fused attention is written: they go where a mask leaves a score in each row."""
    constants = {"mask": mask, "zero": np.float32(0)}
    model = written(f"s = Add (x, mask)\n{GUARDED}", constants)
    normalised = normalise(model)
    assert ("IsNaN" in types(normalised)) == kept
    same(model, normalised)


def test_zeros_in_place_of_no_number_behind_a_mask_of_the_images() -> None:
    body = f"c = Greater (x, zero)\ns = Where (c, low, x)\n{GUARDED}"
    assert "IsNaN" in types(normalise(written(body, {"low": np.float32(-np.inf), "zero": np.float32(0)})))


def test_a_bound_below_all_scores() -> None:
    body = "s = Add (x, mask)\nb = Max (s, low)\ny = Softmax <axis = -1> (b)"
    model = written(body, {"mask": masked(LOWEST), "low": np.float32(LOWEST)})
    normalised = normalise(model)
    assert types(normalised) == ["Where", "Softmax"]
    same(model, normalised)
