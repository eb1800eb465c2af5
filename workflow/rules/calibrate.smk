rule calibrate:
    input:
        graph="results/models/{model}/fused.onnx",
        fusion="results/models/{model}/fusion.json",
        info="results/models/{model}/model.json",
        images="results/models/{model}/calibration-n{images}-s{seed}.safetensors",
        recipe=recipe_files,
        code=lambda wildcards: code("calibrate", [wildcards.recipe]),
    output:
        qparams="results/models/{model}/{recipe}/{bits}-n{images}-s{seed}/qparams.json",
        arrays="results/models/{model}/{recipe}/{bits}-n{images}-s{seed}/qparams.safetensors",
    log:
        "logs/{model}/{recipe}/{bits}-n{images}-s{seed}/calibrate.log",
    benchmark:
        "benchmarks/{model}/{recipe}/{bits}-n{images}-s{seed}/calibrate.tsv"
    conda:
        "../../environment.yml"
    threads: SHARE
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        batch_size=PARAMS.calibration.batch_size,
        device=PARAMS.device,
    message:
        "{wildcards.model}, {wildcards.recipe}: calibrate at {wildcards.bits} on {wildcards.images} images"
    shell:
        "python workflow/scripts/calibrate.py --model results/models/{wildcards.model} "
        "--recipe recipes/{wildcards.recipe}.yaml --bits {wildcards.bits} "
        "--images {input.images} --batch-size {params.batch_size} --seed {wildcards.seed} --device {params.device} "
        "--out {output.qparams} --out-arrays {output.arrays} > {log} 2>&1"
