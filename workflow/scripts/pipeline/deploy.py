"""Stage deploy: fused.onnx and quantization parameters to int8.onnx, which runtimes execute."""

from __future__ import annotations

from onnx import helper

from ptq2themoon.deploy.deploy_records import DeployReport
from ptq2themoon.deploy.floating_weights import floating_weights
from ptq2themoon.deploy.int8_model import deploy, metadata
from ptq2themoon.graph.editing.model_files import write_model
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.safety.sidecars import sha256
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.onnx_data import model_bytes
from ptq2themoon.vocabulary.stages.deploy import Deploy
from ptq2themoon.vocabulary.validation import validate


def main(job: Deploy) -> None:
    with Stage.of(job) as stage:
        fused = FusedModel.open(job.model, job.qparams)
        qparams = read_qparams(*job.qparams)
        model = qparams.model(fused.graph)
        made = deploy(model.edited, model.quantized, job.mode, job.profile, source=fused.path)
        helper.set_model_props(made.model, metadata(qparams.header, fused.info, job.mode))
        path = stage.temporary(job.out)
        write_model(made.model, path, job.out.name)
        report = {
            **made.report(item.operator for item in model.quantized),
            "graph_sha256": fused.sha256,
            "qparams_sha256": sha256(job.qparams[0]),
            "int8_sha256": sha256(path),
            "floating": floating_weights(made.model, fused.operators),
            "bytes": {"fp32": model_bytes(fused.path), "int8": model_bytes(path)},
        }
        records.write(stage.temporary(job.out_report), validate(DeployReport, report, "deploy.json"))


if __name__ == "__main__":
    run_job(main, Deploy)
