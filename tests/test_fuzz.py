"""Inputs broken by chance: each is read, or refused in lines; the long run is `tools/fuzz.py`."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

import pytest
from broken_inputs import KINDS
from hypothesis import HealthCheck, given, settings

from ptq2themoon.vocabulary.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES = {"parameters": 120, "recipes": 120, "onnx": 40, "images": 60}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_broken_is_refused_in_lines(kind: str) -> None:
    ended = {"read": 0, "refused": 0}

    @settings(
        max_examples=EXAMPLES[kind],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[kind].inputs)
    def reads(content: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                KINDS[kind].read(content, Path(folder))
            except UserError:
                ended["refused"] += 1
            else:
                ended["read"] += 1

    reads()
    assert min(ended.values()) > 0  # else the changes are too small, or too large, to tell anything


def test_the_long_run_counts_how_inputs_ended(tmp_path: Path) -> None:
    tool = runpy.run_path(str(ROOT / "tools/fuzz.py"))
    tool["chunks_of"].__globals__["CHUNK"] = 20
    chunks = list(tool["chunks_of"]("parameters", range(2), tmp_path / "kept"))
    row = tool["summed"](chunks)
    assert row["inputs"] == row["read"] + row["refused"] == 40
    assert row["other_errors"] == row["crashes"] == row["over_10_s"] == 0
    assert row["memory_last_mb"] > 100
    assert not (tmp_path / "kept").exists()
