"""What PPQ's own quantizer and exporter for ONNX Runtime make of a model.

PPQ as it is: with the operators of `ppq_operators`, which the simulation needs, its quantizer fails at
Split. So nothing that imports those may run in the same process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import onnx
from torch import Tensor

from ptq2themoon.ppq_compat import core, ppq
from ptq2themoon.quiet import quiet
from ptq2themoon.vocabulary.errors import UserError

LEAST_STEPS = 8  # PPQ refuses fewer; then it sees images again


def export(model: Path, batches: Sequence[Tensor], out: Path) -> None:
    """Quantize an exported (not fused) model with PPQ's defaults, and write its QDQ file with a free batch.

    Args:
        batches: images [1, C, H, W], normalised.

    Raises:
        UserError: PPQ fails on the model.
    """
    steps = max(LEAST_STEPS, len(batches))
    platform = core.TargetPlatform.ONNXRUNTIME
    with quiet(stdout=True):
        try:
            graph = ppq.api.load_onnx_graph(str(model))
            quantized = ppq.api.quantize_native_model(
                model=graph,
                calib_dataloader=list(islice(cycle(batches), steps)),
                calib_steps=steps,
                input_shape=list(batches[0].shape),
                platform=platform,
                device="cpu",
                setting=ppq.QuantizationSettingFactory.default_setting(),
            )
            ppq.api.export_ppq_graph(
                quantized, platform, graph_save_to=str(out), quantized_param=True, copy_graph=True
            )
        except Exception as error:  # PPQ raises whatever comes
            raise UserError(f"{model}: PPQ's own quantization fails ({error})") from error
    _free_batch(out)


def _free_batch(path: Path) -> None:
    """PPQ writes down the batch that it calibrated with."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.ClearField("value_info")
    onnx.save(model, path)
