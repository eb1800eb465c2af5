rule draw_calibration:
    input:
        info="results/models/{model}/model.json",
        images=image_file("calibration"),
        code=code("draw_calibration"),
    output:
        "results/models/{model}/calibration-n{images}-s{seed}.safetensors",
    log:
        "logs/{model}/calibration-n{images}-s{seed}.log",
    benchmark:
        "benchmarks/{model}/draw_calibration-n{images}-s{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: decoders
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        source=drawn_from("calibration"),
    message:
        "{wildcards.model}: draw {wildcards.images} calibration images with seed {wildcards.seed}"
    shell:
        "python workflow/scripts/draw_calibration.py {params.source:q} "
        "--info {input.info} --images {wildcards.images} --seed {wildcards.seed} --threads {threads} "
        "--out {output} > {log} 2>&1"


rule list_evaluation:
    input:
        info="results/models/{model}/model.json",
        images=image_file("evaluation"),
        code=code("list_evaluation"),
    output:
        "results/{model}/evaluation.csv",
    log:
        "logs/{model}/evaluation.log",
    benchmark:
        "benchmarks/{model}/list_evaluation.tsv"
    conda:
        "../../environment.yml"
    threads: decoders
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        source=drawn_from("evaluation"),
        images=PARAMS.evaluation.images or "all",
    message:
        "{wildcards.model}: list {params.images} evaluation images"
    shell:
        "python workflow/scripts/list_evaluation.py {params.source:q} "
        "--info {input.info} --images {params.images} --threads {threads} --out {output} > {log} 2>&1"
