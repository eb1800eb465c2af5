"""Stage calibrate: fused.onnx and a recipe to qparams.json and qparams.safetensors."""

from __future__ import annotations

from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.device import resolve_device
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.pipeline import quantize
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.plan import protocol
from ptq2themoon.quantize.qparams import Header, write_qparams
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.stages.calibrate import Calibrate


def main(job: Calibrate) -> None:
    recipe, bits = load_recipe(job.recipe), parse_bits(job.bits)
    device = resolve_device(job.device)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model)
        batches = calibration_batches(job.images, Preprocessing.of(fused.info), fused.at_once(job.batch_size))
        state = State(job.out.with_name("training"), stage.key)
        model = quantize(
            fused.graph, fused.operators, recipe, bits, batches, device, job.seed, state, fused.info
        )
        header = Header(
            recipe=recipe.name,
            bits=job.bits,
            protocol=protocol(model.quantized),
            methods=[call.model_dump() for call in recipe.methods],
            calibration_images=batches.images,
            graph_sha256=fused.sha256,
        )
        write_qparams(model, header, stage.temporary(job.out), stage.temporary(job.out_arrays))
    state.remove()


if __name__ == "__main__":
    run_job(main, Calibrate)
