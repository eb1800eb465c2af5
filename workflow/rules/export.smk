rule export:
    input:
        weights=weights,
        code=code("export"),
    output:
        model="results/models/{model}/model.onnx",
        info="results/models/{model}/model.json",
    log:
        "logs/{model}/export.log",
    benchmark:
        "benchmarks/{model}/export.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=15,
    params:
        source=lambda wildcards: model_of(wildcards).source,
        checkpoint=lambda wildcards: option("--checkpoint", model_of(wildcards).checkpoint),
        arguments=lambda wildcards: json.dumps(model_of(wildcards).arguments),
        exporter=lambda wildcards: model_of(wildcards).exporter,
        opset=lambda wildcards: model_of(wildcards).opset,
        preprocessing=preprocessing_changes,
        features=lambda wildcards: [] if model_of(wildcards).classifier else ["--features"],
    message:
        "{wildcards.model}: export {params.source} to ONNX"
    shell:
        "python workflow/scripts/export.py --source {params.source:q} {params.checkpoint:q} "
        "--arguments {params.arguments:q} --exporter {params.exporter} --opset {params.opset} "
        "--preprocessing {params.preprocessing:q} {params.features} "
        "--out-model {output.model} --out-info {output.info} > {log} 2>&1"
