"""Inputs broken by chance: each is read, or refused in lines; the long run is `tools/fuzz.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from broken_inputs import KINDS
from hypothesis import HealthCheck, given, settings

from ptq2themoon.vocabulary.errors import UserError

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
