"""Constants with rows for each image of a fixed batch, left with what serves any batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_models import random_images, run_all

from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.vocabulary.errors import UserError

BIAS = random_images(1, 2, 4, 4)  # [1, heads, tokens, tokens]
MASK = np.where(random_images(3, 1, 4, 4) > 1, -100, 0).astype(np.float32)  # [windows, 1, tokens, tokens]
MASK[0] = 0  # as in Swin, whose first window has none


def scores(body: str, constants: dict[str, np.ndarray], images: int = 1) -> onnx.ModelProto:
    """x [images, 3 windows, 2 heads, 4, 4] to y; `body` makes t of s, which is x as [images * 3, 2, 4, 4]."""
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 20]> g (float[{images}, 3, 2, 4, 4] x)'
        f" => (float[{images}, 3, 2, 4, 4] y)"
        "<int64[4] rows = {-1, 2, 4, 4}, int64[5] back = {-1, 3, 2, 4, 4}> "
        f"{{ s = Reshape (x, rows)\n {body}\n y = Reshape (t, back) }}"
    )
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def repeated(value: np.ndarray, images: int) -> np.ndarray:
    return np.tile(value, (images, 1, 1, 1))


def assert_gives(model: onnx.ModelProto, added: np.ndarray) -> None:
    """x + `added`, [windows or 1, heads or 1, 4, 4], for any number of images."""
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 2, 5):
        x = random_images(batch, 3, 2, 4, 4)
        np.testing.assert_allclose(run_all(model, x)[0], x + added[None], rtol=0, atol=2e-5)


@pytest.mark.parametrize("images", [1, 2])
def test_bias_and_mask_are_added_one_after_the_other(images: int) -> None:
    normalised = normalise(scores("t = Add (s, c)", {"c": repeated(BIAS + MASK, images)}, images))
    assert types(normalised) == {"Reshape": 4, "Add": 2}
    shapes = [numpy_helper.to_array(tensor).shape for tensor in normalised.graph.initializer]
    assert (1, 2, 4, 4) in shapes
    assert (1, 3, 1, 4, 4) in shapes
    assert_gives(normalised, BIAS + MASK)


def test_an_infinite_mask() -> None:
    mask = np.where(MASK < 0, np.float32(-np.inf), 0)
    assert_gives(normalise(scores("t = Add (c, s)", {"c": BIAS + mask})), BIAS + mask)


def test_what_is_no_sum_of_bias_and_mask_stays_one_constant() -> None:
    each = random_images(3, 2, 4, 4)
    normalised = normalise(scores("t = Add (s, c)", {"c": each}))
    assert types(normalised) == {"Reshape": 4, "Add": 1}
    assert_gives(normalised, each)


@pytest.mark.parametrize("images", [1, 2])
def test_a_bias_repeated_for_every_window(images: int) -> None:
    normalised = normalise(scores("t = Add (s, c)", {"c": repeated(BIAS, 3 * images)}, images))
    assert types(normalised) == {"Reshape": 2, "Add": 1}
    assert_gives(normalised, BIAS)


def test_several_behind_each_other() -> None:
    constants = {"c": repeated(BIAS + MASK, 2), "d": repeated(MASK, 2)}
    assert_gives(normalise(scores("a = Add (s, c)\n t = Sub (a, d)", constants, 2)), BIAS)


def test_where() -> None:
    """A condition for each window, and a scalar."""
    constants = {"keep": repeated(MASK == 0, 2), "zero": np.float32(0)}
    normalised = normalise(scores("t = Where (keep, s, zero)", constants, 2))
    x = random_images(3, 3, 2, 4, 4)
    np.testing.assert_array_equal(run_all(normalised, x)[0], np.where(MASK == 0, x, 0))


def test_what_differs_between_images_is_refused() -> None:
    model = scores("t = Add (s, c)", {"c": random_images(6, 2, 4, 4)}, images=2)
    model.graph.node[1].name = "sum"
    line = (
        r"operator 'sum' \(Add\), after .*: its constant \[6, 2, 4, 4\] is not the same for each image of "
        "a batch of 2; export the model with a batch of one, or with a free one"
    )
    with pytest.raises(UserError, match=line):
        normalise(model)
