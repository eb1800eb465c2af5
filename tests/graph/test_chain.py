"""Every family through all stages: what the simulation and ONNX Runtime give is what the page says."""

from __future__ import annotations

import pytest
from exporter_matrix import written_rows
from whole_chain import LABELS, chain_row

NEAR = 1.0  # dB: sums in another order round to other codes


def decibels(cell: str) -> float:
    return float(cell.removesuffix(" dB"))


@pytest.mark.slow
@pytest.mark.parametrize("name", LABELS)
def test_on_the_page(name: str) -> None:
    _, *errors, faithful, fast = chain_row(name)
    _, *written, faithful_written, fast_written = written_rows("chain")[LABELS[name]]
    assert (faithful, fast) == (faithful_written, fast_written), "run `make matrix ARGS=chain`"
    assert [*map(decibels, errors)] == pytest.approx([*map(decibels, written)], abs=NEAR)


def test_all_families_are_on_the_page() -> None:
    assert list(written_rows("chain")) == list(LABELS.values())
