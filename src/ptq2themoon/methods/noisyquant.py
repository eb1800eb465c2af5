"""NoisyQuant: a fixed noise that is added before quantization, and removed exactly after the layer.

Liu, Yang, Dong, Keutzer, Du and Zhang, "NoisyQuant: Noisy Bias-Enhanced Post-Training Activation
Quantization for Vision Transformers", CVPR 2023, arXiv 2211.16056, sections 3.2 to 3.4. One value N_c for
each input channel, the same for all tokens and images, drawn once from U(-n, n):

    y = Q(x + N) W^ + (b - N W^)                                                          equation 7

Values that lie densely in the middle of a quantizer's bin are spread over its bins: theorem 1 says that a
value at distance d from the centre of a bin of half-width h loses expected error for d <= n <= 2 h - d.
Each layer searches three numbers in turn, each with the least squared error of the layer's output on
sampled rows: how far the scale clips, a mean m in [-step, step] that shifts all channels, and n in
[0, 2 steps]; N = m + n u with u from U(-1, 1). No clipping, m = 0 and n = 0 are candidates, and what wins is
in force: the scale that was calibrated too.

N costs nothing where a LayerNorm makes x and linear layers alone read it: its beta takes N. Before fc2 (after
GELU) and proj an Add stays.

Where this differs from the paper or its released code:
- The released simple code draws 2 randn - 1, a normal noise with mean -1. Here it is uniform.
- Where no clipping was best, the code never assigned the best scale.
- N W is taken out of the bias, and with quantized weights N W^: the paper's equation, exactly.
- The mean is of the released code, not of the paper; `mean: false` leaves it out.
- The quantizers are the recipe's, in `recipes/noisyquant.yaml` asymmetric; the paper's are symmetric.
- The input of a patch embedding that is a convolution has no noise, and 8 bits in the papers' protocol.
- Layers that read one LayerNorm (q, k and v apart, say) share one noise.
- The search sees 512 rows of each layer's input, and fewer steps than the code's 400 and 2000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.methods.base import Method, Stage
from ptq2themoon.progress import progress
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.quantizers import Uniform
    from ptq2themoon.quantize.shift import Shiftable
    from ptq2themoon.quantize.tensors import QuantizedTensor, Slot
    from ptq2themoon.quantize.tools import Tools

    Slots = dict[str, tuple[Slot, QuantizedTensor]]

ROWS = 512
STEPS = 20  # candidates of each number on either side of 0, or from 0 on
LEAST_SHARE = 0.05  # of the calibrated scale


class NoisyQuantSettings(Strict):
    """What is searched; with all three false the method changes nothing."""

    noise: bool = True
    """A noise for each channel."""
    mean: bool = True
    """A shift that all channels of a layer share."""
    clip: bool = True
    """A smaller scale than the observer's."""


class NoisyQuant(Method):
    """Needs a recipe that quantizes inputs of linear layers per tensor."""

    Settings = NoisyQuantSettings
    settings: NoisyQuantSettings
    stage = Stage.SHIFTS

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Search each layer's noise on what it reads in floating point, and shift its input by it."""
        import torch

        self._noises: dict[str, np.ndarray] = {}
        if not (self.settings.noise or self.settings.mean or self.settings.clip):
            return
        if "relu_mlp" in tools.prepared:
            raise UserError("noisyquant: relu_mlp has trained layers whose bias would change; leave one out")
        slots = _slots(model, tools)
        groups = list(_groups(model, tools, slots))
        if not groups:
            raise UserError(
                "noisyquant: the recipe quantizes the input of no linear layer per tensor with kind uniform; "
                "leave the method out, or quantize the inputs of fc2 so"
            )
        first = {group.readers[0]: 1 for group in groups}
        rows = tools.sampled_inputs(model, first, ROWS)
        wanted = {slot: tensor for name in first for slot, tensor in [slots[name]]}
        found = tools.observe(model, {s: t for s, t in wanted.items() if s not in model.fixed})
        generator = torch.Generator().manual_seed(tools.seed)
        for group in progress(groups, desc="noisyquant"):
            (x,) = rows[group.readers[0]]
            u = 2 * torch.rand(x.shape[1], generator=generator, dtype=torch.float64) - 1
            slot = slots[group.readers[0]][0]
            calibrated: Uniform = model.fixed.get(slot) or found[slot]  # type: ignore[assignment]
            error = tools.output_error(model, group.readers, x)
            quantizer, noise = self._searched(calibrated, u, x, error)
            model.fixed |= {slots[name][0]: quantizer for name in group.readers}
            if noise.any():
                tools.shift(model, group, noise.numpy())
                self._noises |= dict.fromkeys(group.readers, noise.numpy())

    def _searched(
        self, calibrated: Uniform, u: Tensor, x: Tensor, error: Callable[[Tensor], float]
    ) -> tuple[Uniform, Tensor]:
        """The quantizer and the noise, float64 [channels], of least output error."""
        import torch

        def of(quantizer: Uniform, noise: Tensor) -> float:
            return error(quantizer(x + noise.float()) - noise.float())

        quantizer, noise = calibrated, torch.zeros_like(u)
        if self.settings.clip:
            shares = torch.linspace(1, LEAST_SHARE, 2 * STEPS).tolist()
            scaled = [calibrated, *(calibrated.with_scale(calibrated.scale * share) for share in shares[1:])]
            quantizer = min(scaled, key=lambda candidate: of(candidate, noise))
        step = quantizer.scale.double()
        if self.settings.mean:
            means = [step * (i / STEPS) for i in sorted(range(-STEPS, STEPS + 1), key=abs)]
            noise = min((mean + 0 * u for mean in means), key=lambda candidate: of(quantizer, candidate))
        if self.settings.noise:
            widths = [step * (2 * i / STEPS) for i in range(STEPS + 1)]
            mean = noise
            noise = min((mean + n * u for n in widths), key=lambda candidate: of(quantizer, candidate))
        return quantizer, noise

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Take out of the biases what the noise makes of the weights' rounding: N (W^ - W)."""
        tools.remove_shifts(model, self._noises)


def _slots(model: QuantizedModel, tools: Tools) -> Slots:
    """The input of each linear layer that is quantized with one scale, by layer."""
    linear = {layer.name for layer in linear_layers(model.graph())}
    return {
        item.operator.name: (item.slot(tensor), tensor)
        for item in tools.plan(model)
        for tensor in item.tensors
        if item.operator.name in linear
        and (tensor.operand, tensor.position) == ("input", 0)
        and (tensor.spec.kind, tensor.granularity) == ("uniform", "per-tensor")
        and getattr(model.fixed.get(item.slot(tensor)), "axis", None) is None
    }


def _groups(
    model: QuantizedModel, tools: Tools, slots: dict[str, tuple[Slot, QuantizedTensor]]
) -> Iterator[Shiftable]:
    """Layers that share one noise: shifted together, and their input quantized in one way."""
    for group in tools.shiftable(model, list(slots)):
        if len({(slots[name][1].spec, model.fixed.get(slots[name][0])) for name in group.readers}) == 1:
            yield group
        else:
            yield from (replace(group, norm=None, readers=(name,)) for name in group.readers)


METHOD = NoisyQuant
