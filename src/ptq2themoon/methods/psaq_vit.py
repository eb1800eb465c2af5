"""PSAQ-ViT: calibration images made from the model itself; no real image is read.

Li, Ma, Chen, Xiao and Gu, "Patch Similarity Aware Data-Free Quantization for Vision Transformers", ECCV 2022,
arXiv 2203.02250, section 3. With O_l the output of block l's self-attention, averaged over heads, and o_i the
part of patch i, images x that start as Gaussian noise go down

    L(x) = -sum over l of H(l) + a1 L_OH + a2 L_TV

    G_ij = o_i o_j / (|o_i| |o_j|)                       similarity of all pairs of patches
    f(g) = mean over i, j of K((g - G_ij) / h) / h       its density, K the standard normal density
    H    = -integral of f ln f                           differential entropy

L_OH is the cross entropy of the model's output and a drawn class, L_TV stands for total variation. The recipe
then calibrates on these images and quantizes as it says; the paper's own calibration is plain min-max. The
paper's settings: 32 images, 1000 iterations, learning rate 0.20 (0.25 for Swin), a1 1.0, a2 0.05; of its
released code h 0.01, 10 points, and what follows of Adam, moves and total variation.

The default `iterations`, 120, is quick, an eighth of the paper's: on the model that comes with the project
its 32 images take less than 5 minutes of one CPU core. Say `iterations: 1000` for the paper's; larger models
want a GPU then.

Where this differs from the paper or its released code:
- L_TV is the released code's, for published figures rest on it: |V - v|, with V the sum of four norms of
  differences of neighbouring pixels and v drawn between 2500 and 3000, both as of 32 images of 3 x 224 x 224.
  V of another batch is scaled to that size, and moves are the same share of an image's side.
- An image is moved down and across by different numbers of pixels; the code draws one for both.
- The points of the density lie between an image's own least and greatest similarity; the code takes those
  of the whole batch. So images do not depend on the size of the parts that memory allows.
- Where windows attend apart (Swin), H is the mean over windows.
- `input_range: pixels` is this project's: the range of pixels is known without any image, and made images
  may stay far from black or white, for v is that of ImageNet's images. What lies beyond would be clipped.
- Without the model's preprocessing images are not held to valid pixels; a model without classes has no L_OH.

V2 (TNNLS 2023, arXiv 2209.05687) is a method of its own, `psaq_vit_v2`: it makes images against a student
while the student's weights are trained on them, which is training with quantization in the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ptq2themoon.methods.base import MadeImagesSettings, Method
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ptq2themoon.quantize.image_loss import Attended
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools


class PSAQViTSettings(MadeImagesSettings):
    """Where calibration images come from, and how they are made."""

    source: Literal["generated", "noise", "real"] = "generated"
    """`noise`: Gaussian, the paper's control; `real`: those that were drawn, as without the method."""
    iterations: Annotated[int, Field(ge=0)] = 120
    """Steps of gradient descent in all; 120 is quick, the paper has 1000, and 0 leaves the noise."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    """Of Adam, on normalised pixels; the paper has 0.25 for Swin."""
    one_hot: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the cross entropy with drawn classes."""


class PSAQViT(Method):
    """Puts made images in the place of the calibration images, for itself and for all that comes after."""

    Settings = PSAQViTSettings
    settings: PSAQViTSettings

    def __init__(self, settings: Strict) -> None:
        super().__init__(settings)
        self._kept: tuple[QuantizedModel, int, Tensor] | None = None

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Make the images, once for all bits at which one model is quantized."""
        from ptq2themoon.quantize.made_images import fix_input_range, in_batches, refuse_read

        if self.settings.input_range == "pixels":
            fix_input_range("psaq_vit", model, tools)
        if self.settings.source == "real":
            return
        refuse_read("psaq_vit", tools)
        kept = self._kept
        if kept is None or kept[0].reference is not model.reference or kept[1] != tools.seed:
            kept = self._kept = model, tools.seed, self._images(model, tools)
        tools.batches = in_batches(model, kept[2])

    def _images(self, model: QuantizedModel, tools: Tools) -> Tensor:
        import torch

        from ptq2themoon.quantize.made_images import attended_blocks, input_size, refuse_rest

        refuse_rest("psaq_vit", model, images=self.settings.images)
        generator = torch.Generator().manual_seed(tools.seed)
        noise = torch.randn((self.settings.images, *input_size("psaq_vit", model)), generator=generator)
        if self.settings.source == "noise" or not self.settings.iterations:
            return noise
        outputs = attended_blocks("psaq_vit", model, "leave it out, or say `source: noise`")
        return self._descended(model, tools, outputs, noise, generator)

    def _descended(
        self,
        model: QuantizedModel,
        tools: Tools,
        outputs: list[Attended],
        start: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        import torch

        from ptq2themoon.quantize.image_loss import Loss, OneHot, Weights, drawn_variation
        from ptq2themoon.quantize.synthesis import Kept, descend, pixel_range

        settings, classes = self.settings, classes_of(model, tools)
        drawn = None if classes is None else torch.randint(classes, (len(start),), generator=generator)
        variation = drawn_variation(generator)
        weights = Weights(
            settings.entropy, settings.one_hot, settings.variation, settings.bandwidth, settings.points
        )
        judge = None if drawn is None else OneHot(drawn.to(tools.device))
        loss = Loss(tools.floating(model), outputs, weights, judge, variation)
        pixels = None if tools.info is None else pixel_range(tools.info.preprocessing)
        kept = None if tools.state is None else Kept(tools.state, "psaq_vit")
        rate = settings.learning_rate
        return descend(loss, start, settings.iterations, rate, pixels, generator, kept)


def classes_of(model: QuantizedModel, tools: Tools) -> int | None:
    """How many classes the output tells apart; None of a model of features."""
    if tools.info is not None:
        return tools.info.num_classes
    sizes = model.reference.graph.output[0].type.tensor_type.shape.dim
    return sizes[1].dim_value or None if len(sizes) == 2 else None


METHOD = PSAQViT
