"""Models that several tests ask; made once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import timm
from timm.layers import set_fused_attn
from tiny_models import randomised, tiny_module, tiny_vit, to_onnx

from ptq2themoon.graph.forms.fuse import Fusion, fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.vocabulary.operators import Operator


class Stages(NamedTuple):
    """A model as exported, normalised and fused."""

    exported: onnx.ModelProto
    normalised: onnx.ModelProto
    fused: onnx.ModelProto
    fusions: list[Fusion]


def stages(exported: onnx.ModelProto) -> Stages:
    normalised = normalise(exported)
    return Stages(exported, normalised, *fuse(normalised))


@pytest.fixture(scope="session")
def deit() -> Stages:
    """deit_tiny_patch16_224 in full size, random weights."""
    set_fused_attn(False)
    return stages(to_onnx(randomised(timm.create_model("deit_tiny_patch16_224")), (1, 3, 224, 224)))


@pytest.fixture(scope="session")
def tiny() -> Stages:
    return stages(to_onnx(tiny_module()))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Operator]]:
    return tiny_vit(tmp_path_factory.mktemp("tiny"))
