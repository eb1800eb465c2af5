"""Einsum as matrix products, whatever its letters."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_models import run_all

from ptq2themoon.graph.forms.normalise import normalise


def model(equation: str, first: tuple[int, ...], second: tuple[int, ...], constant: bool) -> onnx.ModelProto:
    """Both operands of one image, of which the second may be a constant."""
    rng = np.random.default_rng(0)
    sizes = ", ".join(map(str, first))
    body = "z = Reshape (x, to)" if not constant else ""
    text = (
        f'<ir_version: 8, opset_import: ["": 13]> g (float[1, {sizes}] x) => (float[n, m] y) '
        f'{{ a = Reshape (x, of) {body} e = Einsum <equation = "{equation}"> (a, {"w" if constant else "z"}) '
        "y = Flatten <axis = 0> (e) }"
    )
    found = onnx.parser.parse_model(text)
    values = {"of": np.array(first), "to": np.array(second), "w": rng.standard_normal(second, np.float32)}
    unused = "to" if constant else "w"
    found.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in values.items() if name != unused
    )
    return found


CASES = [
    ("bhid,bhjd->bhij", (1, 2, 3, 4), (1, 2, 3, 4), False),
    ("bthd,bshd->bhts", (1, 3, 2, 4), (1, 3, 2, 4), False),
    ("bhts,bshd->bthd", (1, 2, 3, 3), (1, 3, 2, 3), False),
    ("b i d, b j d -> b i j", (1, 3, 4), (1, 3, 4), False),
    ("...td,...sd->...ts", (1, 2, 3, 4), (1, 2, 3, 4), False),
    ("btc,ck->btk", (1, 3, 4), (4, 5), True),
    ("btc,chk->bhtk", (1, 3, 4), (4, 2, 5), True),
    ("bthd,hdk->btk", (1, 3, 2, 4), (2, 4, 5), True),
    ("bhtd,dk->bhkt", (1, 2, 3, 4), (4, 5), True),
    ("bhij,hg->bgij", (1, 2, 3, 4), (2, 2), True),
    ("bhtd,hdk->bhtk", (1, 2, 3, 4), (2, 4, 5), True),
]


@pytest.mark.parametrize(("equation", "first", "second", "constant"), CASES)
def test_products(equation: str, first: tuple, second: tuple, constant: bool) -> None:
    made = model(equation, first, second, constant)
    normalised = normalise(made)
    kinds = {node.op_type for node in normalised.graph.node}
    assert "MatMul" in kinds
    assert "Einsum" not in kinds
    images = np.random.default_rng(1).standard_normal((1, *first)).astype(np.float32)
    np.testing.assert_allclose(run_all(normalised, images)[0], run_all(made, images)[0], atol=1e-5)


@pytest.mark.parametrize("equation", ["bhid,bhjd,bhjk->bhik", "bhjk,bhid,bhjd->bhik", "bhid,bhjd,bhjk->bihk"])
def test_products_of_three(equation: str) -> None:
    """Attention without its softmax, in one operator."""
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 13]> g (float[n, 2, 3, 3] x) => (float[n, a, b, c] y) '
        f'{{ y = Einsum <equation = "{equation}"> (x, x, x) }}'
    )
    normalised = normalise(made)
    assert sum(node.op_type == "MatMul" for node in normalised.graph.node) == 2
    assert "Einsum" not in {node.op_type for node in normalised.graph.node}
    images = np.random.default_rng(1).standard_normal((3, 2, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(run_all(normalised, images)[0], run_all(made, images)[0], atol=1e-4)
