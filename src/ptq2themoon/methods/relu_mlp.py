"""MLP reconstruction: each GELU becomes a ReLU, and the two layers around it are trained to give the same.

Wu et al., "APHQ-ViT: Post-Training Quantization with Average Perturbation Hessian Based Reconstruction for
Vision Transformers", CVPR 2025, arXiv 2504.02508, section 3.3. What fc2 reads is 0 or above then, without
GELU's dense values below 0, and it is clipped softly. For each MLP, y its output with the GELU:

    min |fc2(relu(fc1(x))) - y|^2 + 2 |fc2(min(relu(fc1(x)), c)) - y|^2

over weights and biases of fc1 and fc2, x what the MLP reads in floating point, c a high percentile of what is
positive after the ReLU. It changes what the model computes, before calibration: agreement and SQNR are
measured against the model with its GELUs.

Where this differs from the paper or its released code:
- All errors count the same, as in GLF-Q; the paper weighs them by its average perturbation Hessian.
- The code trains LayerNorm's weights too.
- `bound` refuses what was not trained enough; the paper reports accuracy alone.
- The default preset `quick` trains far less than the paper's 20,000 iterations on 1,024 images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ptq2themoon.methods.base import GELU_KIND, Method, refuse_fixed, refuse_widened
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.training_settings import Preset, TrainingSettings

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools

RATE: dict[Preset, float] = {"quick": 1e-3, "paper": 4e-5}


class ReluMLPSettings(TrainingSettings):
    """How the MLPs are trained, and how well they must do."""

    rate: Annotated[float | None, Field(gt=0)] = None
    """Learning rate of Adam, which falls along half a cosine; null: the preset's, 1e-3 and 4e-5."""
    clipped: Annotated[float, Field(ge=0)] = 2.0
    """How much the error counts with what fc2 reads clipped, against 1 without."""
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.0
    """Where it is clipped, of the positive values, in percent."""
    bound: Annotated[float, Field(gt=0)] = 0.25
    """Refuse an MLP whose output is off by more than this share of its squares."""


class ReluMLP(Method):
    """Of every MLP with a GELU that one linear layer makes and one reads."""

    Settings = ReluMLPSettings
    settings: ReluMLPSettings

    def decides(self) -> dict[str, str]:
        """That there is no GELU."""
        return {GELU_KIND: "iterations: 0"} if self.settings.steps else {}

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Train each MLP by itself, on what it reads in floating point."""
        from ptq2themoon.progress import say
        from ptq2themoon.quantize.learning.mlps import gelu_mlps, put_relu, trained_mlps

        settings = self.settings
        if not settings.steps:
            return
        read = [operator.name for operator in model.operators if operator.role == "fc2"]
        refuse_fixed("relu_mlp", tools, read, "which reads something else then", "leave one out")
        mlps = gelu_mlps(model)
        if not mlps:
            refuse_widened("relu_mlp", tools)
            raise UserError("relu_mlp: no GELU between two linear layers in this model; leave the method out")
        rate = settings.or_preset(settings.rate, RATE)
        clipped = settings.clipped, settings.percentile
        floating, images = tools.floating(model), tools.images(settings.images)
        found = trained_mlps(mlps, floating, images, settings, rate, clipped, tools.seed, tools.state)
        put_relu(model, mlps)
        for mlp, trained in zip(mlps, found, strict=True):
            say(
                f"{mlp.fc2.name}: error of the MLP's output over its squares with ReLU: "
                f"{trained.before:.3g}, trained {trained.after:.3g}"
            )
            if trained.after > settings.bound:
                raise UserError(
                    f"relu_mlp: operator {mlp.fc2.name!r}: its output is off by {trained.after:.2g} "
                    f"of its squares with a ReLU, more than bound: {settings.bound:g}; train longer"
                )
            model.set_parameters(trained.values, equal=False)


METHOD = ReluMLP
