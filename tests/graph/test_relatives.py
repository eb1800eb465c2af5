"""Families whose blocks are not a plain Vision Transformer's: roles and logits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import relatives
from exporter_matrix import written_rows
from relatives import RELATIVES, missing, relative
from tiny_models import run_all

# What its blocks do not have, or have as something else; all others have every role.
NO_GELU = {"eva02", "aimv2", "caformer", "levit"}  # gated MLPs, StarReLU, HardSwish
EXPECTED = {
    "crossvit": dict.fromkeys(("norm2", "fc1", "gelu", "fc2", "residual2"), 2),  # its fusion has no MLP
    "parallel": {"residual1": 2, "residual2": 2},  # one sum for two blocks
    "siglip": {"residual1": 1},  # nothing to add to in the attention pool
    "coat_lite": {"attn_scores": 4},  # keys are weighed alone
    "levit": {
        "norm1": 5,
        "norm2": 5,
        "residual1": 2,
    },  # normalised in batches; two attentions thin the tokens
    "efficientformer": {
        "norm1": 3,
        "norm2": 3,
        **dict.fromkeys(
            ("proj", "residual1", "fc1", "gelu", "fc2", "residual2"), 1
        ),  # its thinning attention
    },
}


# One of each structure; all others take as long together as everything else here.
QUICK = {"relpos_rpn", "parallel", "siglip", "beit3", "clip_quick", "cait", "convit", "tnt"}
FAMILIES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RELATIVES]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fused_graph_gives_what_torch_gives(name: str) -> None:
    found = relative(name)
    given = run_all(found.fused, found.images)[0]
    np.testing.assert_allclose(given, found.expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_on_the_page(name: str) -> None:
    page = written_rows("relatives")
    assert page[RELATIVES[name].label] == relatives.row(name), "run `make matrix`"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_role(name: str) -> None:
    """But for what the family does not have."""
    expected = Counter(EXPECTED.get(name, {}))
    if name in NO_GELU:
        expected["gelu"] = len(relative(name).places)
    assert missing(relative(name)) == expected
