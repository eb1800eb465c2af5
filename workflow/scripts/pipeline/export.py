"""Stage export: a timm model or an ONNX file to model.onnx and model.json, its outputs checked."""

from __future__ import annotations

import json

from ptq2themoon.graph.sources.exporting import export
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.stages.origin import Export


def main(job: Export) -> None:
    source = job.where_from()
    with Stage.of(job) as stage:
        path = stage.temporary(job.out_model)
        facts = export(source, job.exporter, job.opset, path, job.out_model.name)
        names = json.loads(job.label_names)
        if facts.label_names is None and len(names) == facts.num_classes:
            facts = facts.model_copy(update={"label_names": names})
        records.write(stage.temporary(job.out_info), facts)


if __name__ == "__main__":
    run_job(main, Export)
