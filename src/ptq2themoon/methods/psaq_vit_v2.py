"""PSAQ-ViT V2: a generator of images and the quantized model train against each other; no real image is read.

Li, Chen, Xiao and Gu, "PSAQ-ViT V2: Toward Accurate and General Data-Free Quantization for Vision
Transformers", IEEE TNNLS 2023, arXiv 2209.05687. This is a light data-free fine-tuning, not calibration
alone: weights are trained with quantization in the loop. With T the floating-point model (the teacher), S the
quantized one (the student) and x = G(z) the images that a generator G makes of noise z, G and S take turns:

    G:  min  -sum over l of H(l) + a1 L_TV - a2 mean |T(x) - S(x)|
    S:  min  mean |T(x) - S(x)|

H(l), the entropy of patch similarity in block l, and L_TV are those of `psaq_vit`. No class is drawn, so the
model may be one of features. The student's weights, biases and scales go down straight through rounding.

1. Before calibration the generator is trained for `generator_steps`: half of them without a student, for
   one that is calibrated on images of an untrained generator says nothing; half against the model as the
   recipe quantizes it, calibrated on the images that the generator makes by then.
2. The recipe calibrates on the generator's images.
3. `student_steps` steps of each by turns, as above. 0: the weights stay, and images are all that is made.
4. Methods of later stages see the images that the generator makes in the end.

Where this differs from the paper:
- No code of V2 was found, and the paper's settings were not at hand: the generator's network, steps, batch
  and learning rates of both presets are this project's. So is a2, which is 1; a1 and L_TV are those of V1.
- How scales are found before training is the recipe's choice; the paper has plain min-max. They are trained
  with the weights here.
- The generator is trained before there is a student, as 1. says.
- `input_range` is as in `psaq_vit`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ptq2themoon.methods.base import (
    LAST_SCALES,
    ROUNDING,
    MadeImagesSettings,
    Method,
    Stage,
    refuse_floating_weights,
)
from ptq2themoon.vocabulary.training_settings import Preset, PresetSettings
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from ptq2themoon.quantize.adversarial import Contest
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools

NAME = "psaq_vit_v2"
GENERATOR_STEPS: dict[Preset, int] = {"quick": 40, "paper": 1000}
STUDENT_STEPS: dict[Preset, int] = {"quick": 30, "paper": 5000}
BATCH: dict[Preset, int] = {"quick": 16, "paper": 32}
GENERATOR_RATE: dict[Preset, float] = {"quick": 3e-3, "paper": 1e-3}
RATE: dict[Preset, float] = {"quick": 1e-4, "paper": 1e-5}
SCALE_RATE: dict[Preset, float] = {"quick": 1e-3, "paper": 2e-4}
Steps = Annotated[int | None, Field(ge=0)]
Rate = Annotated[float | None, Field(gt=0)]


class PSAQViTV2Settings(MadeImagesSettings, PresetSettings):
    """How long generator and student are trained, and by what the generator's images are judged."""

    generator_steps: Steps = None
    """Of the generator before calibration; null: the preset's, 40 and 1,000; 0: it stays as drawn."""
    student_steps: Steps = None
    """Of the student, each after one more of the generator; null: the preset's; 0: the weights stay."""
    batch: Annotated[int | None, Field(ge=1)] = None
    """Images in a step; null: the preset's, 16 and 32."""
    generator_rate: Rate = None
    """Of the generator's Adam; null: the preset's, 3e-3 for the few steps of quick and 1e-3 for paper."""
    rate: Rate = None
    """Of the student's weights and biases, falling along half a cosine; null: the preset's, 1e-4 and 1e-5."""
    scale_rate: Annotated[float | None, Field(ge=0)] = None
    """Of its scales, a share of each, falling likewise; 0: they stay; null: the preset's, 1e-3 and 2e-4."""
    difference: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the difference of student and teacher, which the generator raises."""

    @property
    def of_student(self) -> int:
        """Steps of the student."""
        return self.or_preset(self.student_steps, STUDENT_STEPS)

    @property
    def of_generator(self) -> int:
        """Steps of the generator before calibration."""
        return self.or_preset(self.generator_steps, GENERATOR_STEPS)

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        return self.or_preset(self.batch, BATCH)


class PSAQViTV2(Method):
    """Puts made images in the place of the calibration images; trains weights and scales on more of them."""

    Settings = PSAQViTV2Settings
    settings: PSAQViTV2Settings
    stage = Stage.WEIGHTS

    def __init__(self, settings: Strict) -> None:
        super().__init__(settings)
        self._made: tuple[Contest, Tensor] | None = None

    def decides(self) -> dict[str, str]:
        """Weights and scales, which it trains for the rounding."""
        on = self.settings
        found = {ROUNDING: "student_steps: 0"} if on.of_student else {}
        return found | ({LAST_SCALES: "scale_rate: 0"} if on.of_student and on.scale_rate != 0 else {})

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Train the generator, first alone, then against the model as quantized without training."""
        from ptq2themoon.quantize.adversarial import whole
        from ptq2themoon.quantize.made_images import fix_input_range, in_batches, refuse_read, refuse_rest

        on = self.settings
        refuse_read(NAME, tools)
        refuse_rest(NAME, model, images=on.images, batch=on.batch_size)
        if on.of_student:
            refuse_floating_weights(NAME, model, tools)
        contest, noise = self._made = self._contest(model, tools)
        if on.input_range == "pixels":
            fix_input_range(NAME, model, tools)
        alone = on.of_generator - on.of_generator // 2
        if alone:
            contest.train_generator(1, alone, None)
        tools.batches = in_batches(model, contest.generator.images(noise))
        if on.of_generator > alone:
            student = replace(model, quantized=tools.plan(model))
            for slot, tensor in student.slots():
                tensor.quantizer = model.fixed.get(slot)
            tools.calibrate(student)
            contest.train_generator(2, on.of_generator - alone, whole(tools.simulation(student)))
            tools.batches = in_batches(model, contest.generator.images(noise))

    def _contest(self, model: QuantizedModel, tools: Tools) -> tuple[Contest, Tensor]:
        """All that judges the generator's images, and the noise of those that calibrate."""
        import torch

        from ptq2themoon.quantize.adversarial import Contest
        from ptq2themoon.quantize.image_generator import ImageGenerator
        from ptq2themoon.quantize.image_loss import Weights, drawn_variation
        from ptq2themoon.quantize.made_images import attended_blocks, input_size
        from ptq2themoon.quantize.synthesis import pixel_range

        on, random = self.settings, torch.Generator().manual_seed(tools.seed)
        pixels = None if tools.info is None else pixel_range(tools.info.preprocessing)
        generator = ImageGenerator(input_size(NAME, model), pixels, tools.device, random)
        contest = Contest(
            generator=generator,
            teacher=tools.floating(model),
            outputs=attended_blocks(NAME, model, "leave it out"),
            weights=Weights(on.entropy, -on.difference, on.variation, on.bandwidth, on.points),
            variation=drawn_variation(random),
            rate=on.or_preset(on.generator_rate, GENERATOR_RATE),
            batch=on.batch_size,
            seed=tools.seed,
            state=tools.state,
            name=NAME,
        )
        return contest, generator.noise(on.images, random)

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Train generator and student by turns, and hand the generator's last images on."""
        from ptq2themoon.quantize.adversarial import whole
        from ptq2themoon.quantize.learning.pupil import Rates
        from ptq2themoon.quantize.made_images import in_batches

        on = self.settings
        if not on.of_student:
            return
        assert self._made is not None
        contest, noise = self._made
        of_scales = on.or_preset(on.scale_rate, SCALE_RATE)
        rate = on.or_preset(on.rate, RATE)
        rates = Rates(rate, of_scales, of_scales, cosine=True, relative=True)
        trained = contest.train_both(3, on.of_student, whole(tools.simulation(model)), rates)
        trained.found.put(model)
        tools.batches = in_batches(model, contest.generator.images(noise))


METHOD = PSAQViTV2
