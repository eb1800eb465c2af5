"""The language of recipe files: a model for each part of a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ptq2themoon.vocabulary.errors import nearest
from ptq2themoon.vocabulary.operators import ROLES, Operator, Role, with_joint
from ptq2themoon.vocabulary.validation import Key, Strict, one_or_many

Operand = Literal["input", "weight", "bias", "output"]
Granularity = Literal["per-tensor", "per-channel", "per-head"]
# Each module of quantize/observers but its base is one; none is imported here.
_OBSERVERS = Path(__file__).parents[1] / "quantize" / "observers"
OBSERVER_NAMES = tuple(sorted({path.stem for path in _OBSERVERS.glob("*.py")} - {"__init__", "base"}))
# And each module of quantize/quantizers but the bases.
_KINDS = Path(__file__).parents[1] / "quantize" / "quantizers"
KIND_NAMES = tuple(
    sorted(p.stem for p in _KINDS.glob("*.py") if p.stem != "__init__" and not p.stem.startswith("base"))
)
if TYPE_CHECKING:
    Observer = str
    Kind = str
else:
    Observer = Literal[OBSERVER_NAMES]
    Kind = Literal[KIND_NAMES]
Axis = Literal["input", "output"]
Symmetry = Literal["symmetric", "asymmetric"]
Codes = Literal["signed", "unsigned"]
Activations = Literal["twice", "once"]
Protocol = Literal["all-operators", "products"]

OPERANDS: tuple[Operand, ...] = get_args(Operand)


def _percent(value: Any) -> Any:
    if isinstance(value, float) and 0.5 <= value < 1:
        raise ValueError(f"{value} is not in percent; did you mean {round(value * 100, 10)}?")
    return value


_some = Field(min_length=1)
MOST_RULES = 500  # of a recipe with all that it extends
Block = Annotated[int, Field(ge=0, le=9999)]
SomeRoles = Annotated[list[Role], _some]
SomeBlocks = Annotated[list[Block], _some]
SomeOperands = Annotated[list[Operand], _some]
Roles = Annotated[SomeRoles, BeforeValidator(one_or_many, json_schema_input_type=Role | SomeRoles)]
Blocks = Annotated[SomeBlocks, BeforeValidator(one_or_many, json_schema_input_type=Block | SomeBlocks)]
Position = Annotated[int, Field(ge=0, le=99)]
SomePositions = Annotated[list[Position], _some]
Positions = Annotated[
    SomePositions, BeforeValidator(one_or_many, json_schema_input_type=Position | SomePositions)
]
Operands = Annotated[
    SomeOperands, BeforeValidator(one_or_many, json_schema_input_type=Operand | SomeOperands)
]

SetQuantize = Annotated[bool, Field(description="false: the tensors stay in floating point.")]
SetBits = Annotated[int, Field(ge=2, le=16, description="Bits that replace those of params.yaml.")]
SetKind = Annotated[Kind, Field(description="The formula of the quantizer.")]
SetSymmetry = Annotated[
    Symmetry, Field(description="For kind uniform: zero point 0, or one that fits the range of the values.")
]
SetCodes = Annotated[
    Codes, Field(description="For kind uniform: -2^(bits-1) to 2^(bits-1)-1, or 0 to 2^bits-1.")
]
SetGranularity = Annotated[
    Granularity, Field(description="One scale for the tensor, one per channel, or one per head.")
]
SetObserver = Annotated[
    Observer, Field(description="How the range is chosen; per-channel needs minmax or percentiles.")
]
SetPercentile = Annotated[
    float,
    Field(
        ge=50,
        le=100,
        description="In percent, for the observer percentile: values beyond it, on either side, are clipped.",
    ),
    BeforeValidator(_percent),
]
SetWeightAxis = Annotated[
    Axis, Field(description="Per-channel weights have one scale per input channel, or per output channel.")
]


class Sparse(Strict):
    """What is not set is absent; an empty value is a slip."""

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("is empty; give a value or drop the key")
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Leave null out of the schema too."""
        reference = handler(core_schema)
        for field in handler.resolve_ref_schema(reference)["properties"].values():
            if field.get("default", ...) is None:
                del field["default"]
                options = [option for option in field.pop("anyOf") if option != {"type": "null"}]
                field |= options[0] if len(options) == 1 else {"anyOf": options}
        return reference


class Select(Sparse):
    """Which tensors a rule is for: those that meet every condition; `{}` means all."""

    role: Roles | None = None
    """What the operator does in the transformer; `q` and `k` together also select `qk`, and so on."""
    block: Blocks | None = None
    """Which transformer blocks, from 0."""
    operand: Operands | None = None
    """Which of the operator's tensors; `input` and `output` are its activations."""
    position: Positions | None = None
    """Which input or output, from 0; of an attention product, 0 is the left side and 1 the right."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """All roles that `role` asks for; with `q` and `k` also the layer that makes both, and so on."""
        return with_joint(tuple(self.role)) if self.role else ROLES

    def matches(self, operator: Operator, operand: Operand, position: int) -> bool:
        """Whether every condition fits."""
        return (
            self.finds(operator)
            and (self.operand is None or operand in self.operand)
            and (self.position is None or position in self.position)
        )

    def finds(self, operator: Operator) -> bool:
        """Whether role and block fit; operand and position may be others."""
        return (self.role is None or operator.role in self.roles) and (
            self.block is None or operator.block in self.block
        )

    def misses(self, operators: Sequence[Operator]) -> Iterator[tuple[Key, str]]:
        """What is asked for here and not found in a model of these operators."""
        present = {operator.role for operator in operators}
        if self.role and not present.intersection(self.roles):
            hint = nearest(self.role[0], [role for role in ROLES if role in present])
            yield ("role",), f"selects no operator with {_listed(self.role)}; {hint}"
            return
        there = [o.block for o in operators if self.role is None or o.role in self.roles]
        blocks = sorted({block for block in there if block is not None})
        for block in self.block or ():
            what = _listed(self.role) if self.role else "this model"
            if not blocks:
                yield ("block",), f"selects no operator with {block}; {what} has no block, drop the key"
            elif block not in blocks:
                hint = f"nearest valid: {_closest(block, blocks)} ({what} has blocks {_listed(blocks)})"
                yield ("block",), f"selects no operator with {block}; {hint}"


class Defaults(Strict):
    """Settings of tensors that no rule selects; bits are those of params.yaml."""

    quantize: SetQuantize = True
    kind: SetKind = "uniform"
    symmetry: SetSymmetry = "symmetric"
    codes: SetCodes = "signed"
    granularity: SetGranularity
    observer: SetObserver
    percentile: SetPercentile
    weight_axis: SetWeightAxis


class Rule(Sparse):
    """Settings for the tensors that it selects."""

    select: Select
    optional: bool = False
    """true: the rule may select nothing in a model."""
    quantize: SetQuantize | None = None
    bits: SetBits | None = None
    kind: SetKind | None = None
    symmetry: SetSymmetry | None = None
    codes: SetCodes | None = None
    granularity: SetGranularity | None = None
    observer: SetObserver | None = None
    percentile: SetPercentile | None = None
    weight_axis: SetWeightAxis | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What the file says of it."""
        return self.model_dump(exclude_none=True, exclude_defaults=True)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the tensors that it selects; nobody may change them."""
        return self.model_dump(exclude={"select", "optional"}, exclude_none=True)

    @model_validator(mode="after")
    def _sets_something(self) -> Rule:
        if not self.settings:
            valid = ", ".join(name for name in type(self).model_fields if name not in ("select", "optional"))
            raise ValueError(f"sets nothing; valid: {valid}")
        return self


class MethodCall(Strict):
    """A published method; its other keys are its settings."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keys besides the name."""
        return dict(self.model_extra or {})


class RecipeFile(Sparse):
    """A recipe: defaults, or a recipe to extend, and rules; the last matching rule wins."""

    description: str = ""
    """The purpose of the recipe."""
    extends: str | None = None
    """A recipe of the same folder, without `.yaml`."""
    activations: Activations | None = None
    """`twice`: the operator that writes an activation quantizes it, and each reader; `once`: only readers."""
    defaults: Defaults | None = None
    rules: list[Rule] = Field(default=[], max_length=MOST_RULES)
    """Rules in order; for each setting, the last rule that selects a tensor decides."""
    methods: list[MethodCall] = Field(default=[], max_length=50)
    """Published methods, in this order, those of the extended recipe first."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["extends"]}, {"required": ["defaults"]}]}
    )


def _closest(wanted: int, known: Sequence[int]) -> int:
    return min(known, key=lambda number: abs(number - wanted))


def _listed(values: Sequence[Any]) -> str:
    """`[0, 1, 2]` -> `0 to 2`; other lists with commas."""
    first, last = values[0], values[-1]
    if len(values) > 2 and isinstance(first, int) and list(values) == list(range(first, last + 1)):
        return f"{first} to {last}"
    return ", ".join(repr(value) for value in values)
