"""Family by exporter: one fused graph, torch's logits at any batch, and the tables of docs/models.md."""

from __future__ import annotations

from pathlib import Path

import exporter_matrix as matrix
import pytest
import torch
from exporter_matrix import COLUMNS, ROWS, UNWRITABLE
from exporters import EXPORTERS
from families import FAMILIES, image_shape

from ptq2themoon.graph.editing.onnx_run import TOLERANCE

# torch's dynamo exporter takes seconds a model.
SLOW = {name: pytest.mark.slow if name.startswith("dynamo") else () for name in COLUMNS}
CELLS = [
    pytest.param(family, exporter, marks=SLOW[exporter], id=f"{family}-{exporter}")
    for family in FAMILIES
    for exporter in COLUMNS
    if (family, exporter) not in UNWRITABLE
]


@pytest.mark.parametrize(("family", "exporter"), CELLS)
def test_equal(family: str, exporter: str) -> None:
    cell = matrix.cell(family, exporter)
    assert cell.unequal == []
    assert cell.difference <= TOLERANCE
    assert matrix.written_cells()[family, exporter] == cell.text(), "run `make matrix`"


def test_all_families_are_on_the_page() -> None:
    assert list(ROWS) == list(FAMILIES)
    assert matrix.written_table("families") == matrix.families_table(), "run `make matrix`"
    assert matrix.written_table("exporters") == matrix.exporters_table(matrix.written_cells())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "exporter"), sorted(UNWRITABLE))
def test_torch_fails(family: str, exporter: str, tmp_path: Path) -> None:
    """A newer one that does not needs a cell."""
    example = torch.zeros(1, *image_shape(family))
    with pytest.raises(torch.onnx.OnnxExporterError, match="Cannot view a tensor"):
        EXPORTERS[exporter](matrix.module(family), example, tmp_path / "model.onnx")
    assert matrix.written_cells()[family, exporter] == "torch fails"
