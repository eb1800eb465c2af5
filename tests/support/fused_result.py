"""What a file's fused graph is and gives, in the terms in which all exporters must agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from tiny_models import run_all

from ptq2themoon.graph.forms.fuse import count_fused, fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.attention_facts import attention_facts
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators
from ptq2themoon.quantize.simulation import SimulatedModel


class Result(NamedTuple):
    """A fused graph: what it has, and what it gives in ONNX Runtime and in PPQ."""

    counts: dict[str, int]
    places: Counter[tuple[str, str | None, int | None]]
    order: list[tuple[str | None, int | None]]
    attention: dict[str, Any]
    runtime: np.ndarray
    simulated: np.ndarray


def result(path: Path, images: np.ndarray) -> Result:
    fused, _ = fuse(normalise(onnx.load(path)))
    onnx.checker.check_model(fused, full_check=True)
    everything, _ = rename_operators(fused, find_roles(fused))
    operators = [o for o in everything if o.role != "other"]
    out = path.with_suffix(".fused.onnx")
    onnx.save(fused, out)
    return Result(
        count_fused(fused),
        Counter((o.type, o.role, o.block) for o in operators),
        [(o.role, o.block) for o in operators if o.role not in ("q", "k", "v", "attn_scale")],
        attention_facts(fused, everything),
        run_all(fused, images)[0],
        SimulatedModel(fused, "cpu")(torch.from_numpy(images)).numpy(),
    )
