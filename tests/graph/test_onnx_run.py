"""Sessions: what is asked of ONNX Runtime depends on the processor; graphs of a fixed batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import random_images, written

from ptq2themoon.graph.editing.onnx_run import has_vnni, runner, session
from ptq2themoon.graph.forms.free_batch import set_batch


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx512f avx512_vnni avx512_bitalg", True),
        ("flags : avx2 avx_vnni", True),
        ("flags : avx2 avx512f avx512vl", False),
        (None, False),
    ],
)
def test_vnni_is_read_from_the_processor(tmp_path: Path, flags: str | None, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(flags)
    assert has_vnni(path) is expected


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_any_number_of_images(batch: int | str) -> None:
    """A graph that takes so many runs as often as it must, the last time with images twice."""
    model = written("y = Neg (x)", {})
    set_batch(model, batch)
    images = random_images(3, 4, 8)
    np.testing.assert_array_equal(runner(session(model, quantized=False))(images), -images)
