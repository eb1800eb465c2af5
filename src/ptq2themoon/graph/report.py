"""fusion.json: operators before and after, what each fusion consumed, role and block, attention."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx

from ptq2themoon.errors import UserError
from ptq2themoon.graph.attention import attention_facts
from ptq2themoon.graph.fuse import Fusion, count_fused
from ptq2themoon.graph.operators import Operator


def count_types(model: onnx.ModelProto) -> dict[str, int]:
    """Number of operators of each type, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


def fusion_report(
    original: onnx.ModelProto,
    fused: onnx.ModelProto,
    fusions: Iterable[Fusion],
    operators: list[Operator],
    renamed: Mapping[str, str],
) -> dict[str, Any]:
    """What fusion.json holds, but for the check of the logits."""
    fusions = list(fusions)
    return {
        "counts": {"before": count_types(original), "after": count_types(fused)},
        "fused": count_fused(fused),
        "attention": attention_facts(fused, operators),
        "unassigned": [operator.name for operator in operators if operator.role is None],
        "operators": [operator._asdict() for operator in operators],
        "fusions": [
            {
                "kind": fusion.kind,
                "operator": renamed.get(fusion.operator, fusion.operator),
                "consumed": list(fusion.consumed),
            }
            for fusion in fusions
        ],
    }


def read_operators(path: Path) -> list[Operator]:
    """The operators that a fusion.json lists.

    Raises:
        UserError: a file of another form.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["operators"]
        return [Operator(e["name"], e["type"], e["role"], e["block"]) for e in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no fusion report of ptq2themoon ({error}); run the fuse stage") from None
