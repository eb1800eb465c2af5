"""Both engines and both calibrations on a tiny model: rows, and equality to the bit."""

from __future__ import annotations

from pathlib import Path

from tiny_quantized import Tiny, images

from ptq2themoon.benchmark.engines import COLUMNS, OURS, PPQ_PASS, PROGRAM, REFERENCE, calibration, forward


def test_engines_are_timed_and_equal(tmp_path: Path) -> None:
    tiny = Tiny.make(tmp_path)
    _, quantized = tiny.calibrated("vanilla")
    qparams = tiny.saved(quantized, tmp_path)
    calls: list[int] = []
    rows = forward(tiny.fused, qparams, images(3), 2, {"another": lambda: calls.append(1)})
    assert [(row["contestant"], row["equal"]) for row in rows] == [
        (REFERENCE, None),
        (PROGRAM, True),
        ("another", None),
    ]
    assert rows[0]["ratio"] == "1.000"
    assert set(rows[0]) <= set(COLUMNS)
    assert len(calls) > 2


def test_calibrations_are_timed_and_their_scales_equal(tmp_path: Path) -> None:
    tiny = Tiny.make(tmp_path)
    rows = calibration(tiny.fused, lambda: tiny.plan("vanilla"), list(images(16).split(2)), rounds=1)
    assert [(row["contestant"], row["equal"]) for row in rows] == [(PPQ_PASS, None), (OURS, True)]
