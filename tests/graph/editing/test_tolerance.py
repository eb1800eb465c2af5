"""How far two forms of one model may be apart: by more, the larger their outputs are."""

from __future__ import annotations

import numpy as np
import pytest

from ptq2themoon.graph.editing.onnx_run import TOLERANCE, tolerated


@pytest.mark.parametrize(("scale", "times"), [(0.0, 1), (0.01, 1), (1.0, 1), (2.4, 2.4), (300.0, 300)])
def test_relative_to_the_outputs(scale: float, times: float) -> None:
    outputs = np.full((4, 5), scale, dtype=np.float32)
    outputs[::2] *= -1
    assert tolerated(outputs) == pytest.approx(times * TOLERANCE)
