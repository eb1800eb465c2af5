"""What of a quantized model runs on integer kernels, and what stays in floating point, as one row.

The table from kind to runtime (`kinds`) and the writer of the fast INT8 model decide: nothing is said here
that the model which they make would not do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.plan import QUANTIZABLE_TYPES
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator

ALL, SOME, NONE = "integer kernels", "integer kernels in part", "simulation only"
COLUMNS = (
    "methods", "weight_bits", "activation_bits", "runs_on", "integer_share", "float_products", "floating",
    "why",
)  # fmt: skip
# Roles as people call them; others have their own name, and operators without a role their type.
NAMES = {
    **dict.fromkeys(("norm1", "norm2", "norm"), "LayerNorm"),
    **dict.fromkeys(("residual1", "residual2"), "residual sums"),
    **{"gelu": "GELU", "pos_add": "position embedding's sum", "attn_scale": "attention's scaling"},
    **{"attn_scores": "queries times keys", "attn_context": "attention times values"},
    **{"patch_embed": "patch embedding"},
}


def kernels(model: QuantizedModel, methods: Iterable[str], source: Path) -> dict[str, str | float]:
    """One row with `COLUMNS`.

    Args:
        model: calibrated.
        methods: that its recipe calls.
        source: what messages call the model.
    """
    row: dict[str, str | float] = {
        "methods": " + ".join(dict.fromkeys(methods)),
        "weight_bits": weight_bits(model),
        "activation_bits": activation_bits(model),
        "floating": "; ".join(floating(model)),
    }
    try:
        made = deploy(model.edited, model.quantized, "fast", source=source)
    except UserError as error:
        return {**row, "runs_on": NONE, "integer_share": 0.0, "float_products": "all", "why": str(error)}
    roles = {operator.name: operator for operator in model.operators}
    placed = made.placements
    integer = [name for name in made.work if name in placed and placed[name].runs == "integer"]
    left = [name for name in made.work if name in placed and placed[name].runs == "float"]
    return {
        **row,
        "runs_on": NONE if not integer else SOME if left else ALL,
        "integer_share": made.products()["integer_share"],
        "float_products": "; ".join(dict.fromkeys(called(roles[name]) for name in left)),
        "why": "; ".join(dict.fromkeys(placed[name].why for name in left)),
    }


def floating(model: QuantizedModel) -> list[str]:
    """What the recipe leaves in floating point, each once, in graph order; biases last."""
    quantized = {item.operator.name for item in model.quantized}
    found = [o for o in model.operators if o.type in QUANTIZABLE_TYPES and o.name not in quantized]
    biases = any(tensor.operand == "bias" for item in model.quantized for tensor in item.tensors)
    return list(dict.fromkeys([*map(called, found), *([] if biases else ["biases"])]))


def called(operator: Operator) -> str:
    """An operator's role as people call it."""
    role = operator.role if operator.role not in (None, "other") else operator.type
    return NAMES.get(role or "", role or "")


def weight_bits(model: QuantizedModel) -> float:
    """Mean bits of all quantized weights, each value counted."""
    graph = model.graph()
    nodes = {node.name: node for node in graph.nodes}
    found = [
        (tensor.ready().bits, graph.constants[nodes[slot.operator].input[slot.position]].size)
        for slot, tensor in model.slots()
        if tensor.operand == "weight"
    ]
    return _mean(found)


def activation_bits(model: QuantizedModel) -> float:
    """Mean bits of quantized inputs and outputs, each tensor counted once."""
    return _mean([(tensor.ready().bits, 1) for _, tensor in model.slots() if not tensor.is_parameter])


def _mean(found: Sequence[tuple[int, int]]) -> float:
    total = sum(count for _, count in found)
    return sum(bits * count for bits, count in found) / total if total else float("nan")
