"""Assignments to slices as exporters write them, at any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import random_images, run_all, to_onnx
from torch import nn

from ptq2themoon.graph.forms.normalise import normalise


class Assigned(nn.Module):
    """Adds to a part of [images, 1, 16, 16]."""

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        x[:, :, self.rows, self.columns] = x[:, :, self.rows, self.columns] * 3
        return x


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(0, None), slice(0, None)),
        (slice(1, None), slice(0, None)),
        (slice(0, None), slice(0, 5)),
        (slice(2, 7), slice(3, 9)),
    ],
    ids=str,
)
@pytest.mark.parametrize("opset", [13, 17])
def test_a_box(rows: slice, columns: slice, opset: int) -> None:
    module = Assigned(rows, columns)
    model = normalise(to_onnx(module, opset=opset))
    assert "ScatterND" not in {node.op_type for node in model.graph.node}
    images = random_images(3)
    np.testing.assert_allclose(run_all(model, images)[0], module(torch.from_numpy(images)).numpy(), atol=1e-6)
