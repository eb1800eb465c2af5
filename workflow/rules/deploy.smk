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
        "python workflow/scripts/deploy.py --model results/models/{wildcards.model} "
        "--qparams {input.qparams} --mode {wildcards.mode} "
        "--out {output.model} --out-report {output.report} > {log} 2>&1"


rule verify_runtime:
    input:
        **fused_model("verify_runtime"),
        qparams=QPARAMS,
        reference=REFERENCE,
        simulated=SIMULATED,
        models=expand(
            "results/models/{{model}}/{{recipe}}/{{key}}/{mode}/int8.onnx", mode=PARAMS.deploy.modes
        ),
        reports=expand(
            "results/models/{{model}}/{{recipe}}/{{key}}/{mode}/deploy.json", mode=PARAMS.deploy.modes
        ),
    output:
        metrics="results/{model}/{recipe}/{key}/runtime.json",
        operators="results/{model}/{recipe}/{key}/runtime_operators.csv",
    log:
        "logs/{model}/{recipe}/{key}/verify_runtime.log",
    benchmark:
        "benchmarks/{model}/{recipe}/{key}/verify_runtime.tsv"
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
        "{wildcards.model}, {wildcards.recipe}: INT8 models in ONNX Runtime against the simulation"
    shell:
        "python workflow/scripts/verify_runtime.py --model results/models/{wildcards.model} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} "
        "--qparams {input.qparams} --int8 {input.models} --deployed {input.reports} "
        "--reference {input.reference} --simulated {input.simulated} "
        "--batch-size {params.batch_size} --threads {threads} "
        "--out {output.metrics} --out-operators {output.operators} > {log} 2>&1"
