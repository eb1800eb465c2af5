"""Sessions: what is asked of ONNX Runtime depends on the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptq2themoon.graph.editing.onnx_run import has_vnni


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
