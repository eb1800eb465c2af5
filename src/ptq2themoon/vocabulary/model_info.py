"""model.json: what an exported model is, and how it wants its images. Without torch, for figures read it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, ValidationInfo, field_validator, model_validator

from ptq2themoon.vocabulary.records import Record
from ptq2themoon.vocabulary.validation import Positive, Strict

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
CropMode = Literal["center", "squash", "border"]
LONGEST_SIDE = 8192  # pixels
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]
ImageSize = Annotated[list[Side], Field(min_length=3, max_length=3)]  # [channels, height, width]
Above0 = Annotated[float, Field(gt=0)]
CropShare = Annotated[float, Field(ge=0.1, le=1)]  # images are resized to the crop's side over this
READABLE_CHANNELS = (1, 3)  # grey, RGB


class PreprocessingInfo(Strict):
    """timm's data config, as far as evaluation needs it."""

    input_size: ImageSize
    """[channels, height, width]."""
    interpolation: Interpolation
    mean: list[float]
    """Of each channel, for pixels in 0..1."""
    std: list[Above0]
    """Of each channel, for pixels in 0..1."""
    crop_pct: CropShare
    crop_mode: CropMode

    @field_validator("input_size")
    @classmethod
    def _readable(cls, size: list[int]) -> list[int]:
        if size[0] not in READABLE_CHANNELS:
            raise ValueError(f"{size[0]} channels; 1 (grey) or 3 (RGB) can be read")
        return size

    @field_validator("mean", "std")
    @classmethod
    def _of_each_channel(cls, values: list[float], info: ValidationInfo) -> list[float]:
        channels = info.data.get("input_size", values)
        if "input_size" in info.data and len(values) != channels[0]:
            raise ValueError(f"{values} does not give a number for each of {channels[0]} channels")
        return values


class Check(Strict):
    """The random images that the export was checked on, and what the model gives for them."""

    images: Positive
    seed: NonNegativeInt
    logits: list[list[float]] | None
    """Of each image; null for features, which can be millions of numbers."""


class ModelInfo(Record):
    """What export tells of a model."""

    stage: ClassVar[str] = "export"

    source: str
    output: Literal["logits", "features"]
    num_classes: Positive | None
    """Null for features."""
    architecture: str | None
    """timm's name; null for an ONNX file."""
    weights: dict[str, str | None]
    producer: str | None = None
    """Of an ONNX file: who wrote it."""
    exporter: str
    opset: Positive
    input_size: list[Positive]
    parameters: NonNegativeInt
    output_name: str | None = None
    """Of an ONNX file: the output that is used."""
    other_outputs: list[str] = []
    """Of an ONNX file: those that are left out."""
    preprocessing: PreprocessingInfo
    label_names: list[str] | None
    max_abs_logit_difference: float
    check: Check

    @model_validator(mode="after")
    def _classes_of_logits(self) -> Self:
        if (self.num_classes is None) != (self.output == "features"):
            raise ValueError(f"num_classes is {self.num_classes}, but the output is {self.output}")
        return self
