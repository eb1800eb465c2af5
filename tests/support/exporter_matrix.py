"""Every family written by every exporter, compared with torch and with the plain export of the same weights.

tools/matrix.py (`make matrix`) writes the tables of docs/models.md; tests/graph/test_matrix.py compares each
of their cells with what is found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from exporters import EXPORTERS, PLAIN, Exporter
from families import FAMILIES, image_shape
from fused_result import Result, result
from tiny_models import random_images
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BATCH = 3  # no exporter is given as many
LIMITS = (1e-5, 1e-4)  # that a table tells; the digits differ between machines
ROWS = {
    "vit": "ViT, class token",
    "vit_average_pool": "ViT, average pool",
    "vit_features": "ViT, no classifier",
    "deit_distilled": "DeiT, distilled",
    "swin": "Swin",
    "mobilevit": "MobileViT",
    "dinov2": "DINOv2, registers",
    "dinov2_swiglu": "DINOv2, SwiGLU",
}
COLUMNS = {
    PLAIN: "TorchScript 13",
    "torchscript-14": "TorchScript 14",
    "torchscript-17": "TorchScript 17",
    "torchscript-17-fused-attention": "TorchScript 17, fused attention",
    "torchscript-one-image": "TorchScript 13, one image",
    "torchscript-two-images": "TorchScript 13, two images",
    "many-at-once": "rewritten",
    "dynamo-18": "dynamo 18",
    "dynamo-20": "dynamo 20",
    "dynamo-20-fused-attention": "dynamo 20, fused attention",
    "dynamo-one-image": "dynamo 20, one image",
}
# torch 2.15 fails: "Cannot view a tensor", the output of scaled_dot_product_attention with a mask.
UNWRITABLE = {("swin", "dynamo-20-fused-attention")}


class Cell(NamedTuple):
    """One family by one exporter.

    Attributes:
        unequal: in what the fused graph differs from the plain export's.
        difference: largest one of an output from torch's, in ONNX Runtime and in PPQ.
    """

    unequal: list[str]
    difference: float

    def text(self) -> str:
        limit = next((limit for limit in LIMITS if self.difference <= limit), None)
        bound = f"≤ {limit:.0e}".replace("e-0", "e-") if limit else f"output differs by {self.difference:.1g}"
        return f"{' and '.join(self.unequal)} differ, {bound}" if self.unequal else f"equal, {bound}"


@cache
def module(family: str) -> nn.Module:
    return FAMILIES[family]().eval()


def _fused(family: str, exporter: Exporter) -> Result:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        exporter(module(family), torch.zeros(1, *image_shape(family)), path)
        return result(path, random_images(BATCH, *image_shape(family)))


@cache
def plain(family: str) -> Result:
    return _fused(family, EXPORTERS[PLAIN])


def cell(family: str, exporter: str) -> Cell:
    expected = plain(family)
    found = expected if exporter == PLAIN else _fused(family, EXPORTERS[exporter])
    pairs = {
        "roles": (found.places, expected.places),
        "order": (found.order, expected.order),
        "counts": (found.counts, expected.counts),
        "attention": (found.attention, expected.attention),
    }
    with torch.inference_mode():
        output = module(family)(torch.from_numpy(random_images(BATCH, *image_shape(family)))).numpy()
    difference = max(float(np.abs(given - output).max()) for given in (found.runtime, found.simulated))
    return Cell([name for name, (a, b) in pairs.items() if a != b], difference)


# The tables ---------------------------------------------------------------------------------------

Cells = Mapping[tuple[str, str], str]


def families_table() -> str:
    """Blocks, fused operators, and operators without a role of each family's plain export."""
    lines = []
    kinds = list(dict.fromkeys(kind for family in ROWS for kind in plain(family).counts))
    for family, label in ROWS.items():
        found = plain(family)
        blocks = 1 + max(block for _, _, block in found.places if block is not None)
        loose = sum(number for (_, role, _), number in found.places.items() if role is None)
        lines.append([label, str(blocks), *(str(found.counts.get(kind, 0)) for kind in kinds), str(loose)])
    return table(["Family", "Blocks", *kinds, "Without role"], lines)


def exporters_table(cells: Cells) -> str:
    lines = [[label, *(cells[family, exporter] for exporter in COLUMNS)] for family, label in ROWS.items()]
    return table(["Family", *COLUMNS.values()], lines)


def table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def written_table(name: str) -> str:
    """What the page has between the marks of a table."""
    found = re.search(region(name), PAGE.read_text(encoding="utf-8"), re.S)
    assert found, f"{PAGE}: no table {name!r}"
    return found[2]


def written_rows(name: str) -> dict[str, list[str]]:
    """The page's rows of a table, by their first cell."""
    rows = [line.strip("| ").split(" | ") for line in written_table(name).splitlines()[2:]]
    return {cells[0]: cells for cells in rows}


def written_cells() -> dict[tuple[str, str], str]:
    lines = [line.strip("| ").split(" | ") for line in written_table("exporters").splitlines()[2:]]
    return {
        (family, exporter): text
        for family, line in zip(ROWS, lines, strict=True)
        for exporter, text in zip(COLUMNS, line[1:], strict=True)
    }


def region(name: str) -> str:
    """A pattern of the page's table of that name: the mark before it, the table, the mark after it."""
    return rf"(<!-- table: {name} -->\n)(.*?)(\n<!-- end -->)"
