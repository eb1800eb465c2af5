"""deploy.json and runtime.json. Without torch: the summary reads them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ptq2themoon.vocabulary.modes import Mode, Profile
from ptq2themoon.vocabulary.operators import Role
from ptq2themoon.vocabulary.records import Record
from ptq2themoon.vocabulary.validation import Positive, Strict

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PlacedOperator(Strict):
    """An operator that the recipe quantizes, where it is computed, and why there."""

    name: str
    type: str
    role: Role | None
    block: int | None
    runs: Literal["integer", "float"]
    why: str


class MigrationRecord(Strict):
    """How activations with per-channel scales became integers with one scale."""

    kind: Literal["layernorm", "multiplication"]
    operator: str
    into: str | None
    channels: Positive


class Sizes(Strict):
    """Bytes of the two files."""

    fp32: Positive
    int8: Positive


Share = Annotated[float, Field(ge=0, le=1)]


class FloatProducts(Strict):
    """Products that run in floating point because of one kind of quantizer, and their share of the work."""

    products: Positive
    share: Share


class Products(Strict):
    """Matrix products and convolutions; shares are of the multiply-accumulates of one image."""

    integer: Annotated[int, Field(ge=0)]
    float: Annotated[int, Field(ge=0)]
    integer_share: Share
    float_by_kind: dict[str, FloatProducts]
    """What each kind that no integer kernel takes costs."""


class FloatingOperator(Strict):
    """An operator with weights in floating point, and their share of the bytes of all constants."""

    name: str
    type: str
    role: Role | None
    block: int | None
    bytes: Positive
    share: Share


class FloatingWeights(Strict):
    """Float32 constants among the bytes of all; operators with a thousandth or more, largest first."""

    share: Share
    operators: list[FloatingOperator]


class DeployReport(Record):
    """What was deployed, from what, and what runs in integers."""

    stage: ClassVar[str] = "deploy"

    mode: Mode
    profile: Profile
    opset: Positive
    products: Products
    operators: list[PlacedOperator]
    folds: list[MigrationRecord]
    graph_sha256: Sha256
    qparams_sha256: Sha256
    int8_sha256: Sha256
    bytes: Sizes
    floating: FloatingWeights


class RuntimeMetrics(Strict):
    """One INT8 model against the labels, the reference and its simulation, over all evaluation images.

    Null where a model has no such figure, SQNR also where nothing differs.
    """

    images: Positive
    top1: float | None
    top5: float | None
    loss: float | None
    agreement: float | None
    """With the reference, which is in floating point."""
    agreement_simulation: float | None
    simulated_top1: float | None
    simulated_agreement: float | None
    """Of the simulation with the reference."""
    logits_sqnr_db: float | None
    logits_sqnr_db_simulation: float | None
    simulated_logits_sqnr_db: float | None
    least_agreement: float | None
    """The bound on `agreement_simulation`."""
    agrees: bool | None
    operators: int
    """How many were compared one by one."""
    departing: int
    first_departing: str | None
    largest_code_difference: int
    codes_that_differ: float
    farthest_from_tie: float | None
    kernels: dict[str, int]


class RuntimeReport(Record):
    """What the check of all modes found."""

    stage: ClassVar[str] = "verify_runtime"

    runtime: str
    faithful: RuntimeMetrics | None = None
    fast: RuntimeMetrics | None = None
