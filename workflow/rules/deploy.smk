rule deploy:
    input:
        graph="results/models/{model}/fused.onnx",
        fusion="results/models/{model}/fusion.json",
        info="results/models/{model}/model.json",
        qparams=QPARAMS,
        code=code("deploy"),
    output:
        model="results/models/{model}/{recipe}/{key}/{mode}/int8.onnx",
        report="results/models/{model}/{recipe}/{key}/{mode}/deploy.json",
    log:
        "logs/{model}/{recipe}/{key}/{mode}/deploy.log",
    benchmark:
        "benchmarks/{model}/{recipe}/{key}/{mode}/deploy.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=15,
    message:
        "{wildcards.model}, {wildcards.recipe}: INT8 model, {wildcards.mode}"
    shell:
        "python workflow/scripts/deploy.py --graph {input.graph} --fusion {input.fusion} --info {input.info} "
        "--qparams {input.qparams} --mode {wildcards.mode} "
        "--out {output.model} --out-report {output.report} > {log} 2>&1"


rule verify_runtime:
    input:
        **fused_model("verify_runtime"),
        qparams=QPARAMS,
        model="results/models/{model}/{recipe}/{key}/{mode}/int8.onnx",
        report="results/models/{model}/{recipe}/{key}/{mode}/deploy.json",
    output:
        metrics="results/{model}/{recipe}/{key}/{mode}/runtime.json",
        operators="results/{model}/{recipe}/{key}/{mode}/runtime_operators.csv",
    log:
        "logs/{model}/{recipe}/{key}/{mode}/verify_runtime.log",
    benchmark:
        "benchmarks/{model}/{recipe}/{key}/{mode}/verify_runtime.tsv"
    conda:
        "../../environment.yml"
    threads: SHARE
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        source=test_images,
        device=PARAMS.device,
        batch_size=PARAMS.evaluation.batch_size,
    message:
        "{wildcards.model}, {wildcards.recipe}: {wildcards.mode} INT8 model against the simulation"
    shell:
        "python workflow/scripts/verify_runtime.py --graph {input.graph} --fusion {input.fusion} "
        "--info {input.info} --manifest {input.manifest} {params.source:q} --device {params.device} "
        "--qparams {input.qparams} --int8 {input.model} --deployed {input.report} "
        "--batch-size {params.batch_size} --threads {threads} "
        "--out {output.metrics} --out-operators {output.operators} > {log} 2>&1"
