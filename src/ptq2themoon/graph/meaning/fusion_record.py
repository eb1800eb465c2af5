"""fusion.json: operators before and after, what each fusion consumed, role and block, attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar

import onnx
from pydantic import Field

from ptq2themoon.graph.forms.fuse import Fusion, count_fused
from ptq2themoon.graph.meaning.attention_facts import attention_facts
from ptq2themoon.vocabulary.operators import Operator, Role
from ptq2themoon.vocabulary.records import Record
from ptq2themoon.vocabulary.validation import Positive, Strict, validate


class Block(Strict):
    """Attention of one block; null where the graph does not tell.

    Attributes:
        softmax: the operator.
        tokens: that attend to each other in a group.
        groups: sets of tokens of an image that attend apart, such as Swin's windows.
        prefix_tokens: tokens before the patches.
        grid: rows and columns of patches; null where the tokens make no single grid.
        stage: how often the width of the tokens has changed before.
    """

    softmax: str
    heads: Positive | None
    tokens: int | str | None
    groups: Positive | None
    prefix_tokens: int
    grid: tuple[int, int] | None
    stage: int


class Attention(Strict):
    """Of all blocks, and what is taken for the class token, or why there is none."""

    blocks: Annotated[list[Block], Field(min_length=1)]
    class_token: bool
    note: str


class Counts(Strict):
    """Operators of each type in the exported and in the fused graph."""

    before: dict[str, int]
    after: dict[str, int]


class PlacedOperator(Strict):
    """An operator of the fused graph."""

    name: str
    type: str
    role: Role | None
    block: int | None


class FusionRecord(Strict):
    """One fusion: the operator that it made, and those that it consumed."""

    kind: str
    operator: str
    consumed: list[str]


class FusionReport(Record):
    """What fusion.json holds."""

    stage: ClassVar[str] = "fuse"

    images: Positive
    """That the logits of both graphs were compared on."""
    max_abs_logit_difference: float
    counts: Counts
    fused: dict[str, int]
    attention: Attention
    unassigned: list[str]
    """Operators without a role."""
    operators: list[PlacedOperator]
    fusions: list[FusionRecord]

    @property
    def placed(self) -> list[Operator]:
        """The operators in graph order."""
        return [Operator(**entry.model_dump()) for entry in self.operators]


def count_types(model: onnx.ModelProto) -> dict[str, int]:
    """Number of operators of each type, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


def fusion_report(
    original: onnx.ModelProto,
    fused: onnx.ModelProto,
    fusions: Iterable[Fusion],
    operators: list[Operator],
    renamed: Mapping[str, str],
    images: int,
    difference: float,
) -> FusionReport:
    """What fusion.json holds.

    Args:
        images, difference: how many logits were compared on, and how far they differ at most.
    """
    facts = {
        "images": images,
        "max_abs_logit_difference": difference,
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
    return validate(FusionReport, facts, "fusion.json")
