"""PPQ's observer of least Kullback-Leibler divergence between histograms, per tensor, symmetric."""

from __future__ import annotations

from torch import Tensor

from ptq2themoon.ppq_compat import TensorObserverFactory, core, ir, uniform_config
from ptq2themoon.quantize.observers.base import Observer
from ptq2themoon.quantize.quantizers import Quantizer, Uniform
from ptq2themoon.vocabulary.tensor_spec import TensorSpec


class PPQHistogram(Observer):
    """One of PPQ's histogram observers: the range in the first pass, the histogram in the second.

    PPQ's per-batch extremes are joined after each batch, so that memory does not grow.
    """

    passes = 2

    def __init__(self, spec: TensorSpec, axis: int | None) -> None:
        super().__init__(spec, axis)
        self._config = uniform_config(
            spec.bits, spec.quant_min, spec.quant_max, axis, symmetric=True, observer=spec.observer
        )
        self._ppq = TensorObserverFactory.build_observer(ir.Variable("observed"), self._config)

    def observe(self, value: Tensor) -> None:
        """Show PPQ's observer one batch; of its ranges only the extremes are kept."""
        self._ppq.observe(value)
        lows, highs = self._ppq._min_val_collector, self._ppq._max_val_collector
        lows[:] = [min(lows)] if lows else []
        highs[:] = [max(highs)] if highs else []

    def end_pass(self) -> None:
        """Let PPQ's observer set up its histogram from the range seen."""
        self._ppq.render_quantization_config()

    def quantizer(self) -> Quantizer:
        """The quantizer with PPQ's scale; raises `ValueError` where it found none."""
        self._ppq.render_quantization_config()
        if self._config.state != core.QuantizationStates.ACTIVATED:
            raise ValueError("no values were observed twice")
        scale = self._config.scale.detach().cpu()
        bounds = self.spec.quant_min, self.spec.quant_max
        return Uniform(scale, scale.new_zeros(scale.shape), self.spec.bits, *bounds, self.axis)


class KL(PPQHistogram):
    """Clips where the quantized histogram diverges least (PPQ's, after TensorRT's); from 5 bits on."""


OBSERVER = KL
