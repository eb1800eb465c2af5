rule study_fusion:
    input:
        model="results/models/{model}/model.onnx",
        graph="results/models/{model}/fused.onnx",
        fusion="results/models/{model}/fusion.json",
        info="results/models/{model}/model.json",
        images=f"results/models/{{model}}/calibration-{CHECK}.safetensors",
        recipe=lambda wildcards: recipe_chain(BASE),
        code=code("study_fusion"),
    output:
        table=studied("fusion.csv", "3 Fusion", caption="fusion_table", shows="The numbers"),
        operators="results/{model}/study/fusion_operators.csv",
    log:
        "logs/{model}/study_fusion.log",
    benchmark:
        "benchmarks/{model}/study_fusion.tsv"
    priority: 100  # before others occupy the cores, all of which it needs
    conda:
        "../../environment.yml"
    threads: ALL_CORES
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        recipe=BASE,
        bits=STUDY.bits[0],
        rounds=STUDY.rounds,
        threads=min(PARAMS.benchmark.threads, ALL_CORES),
    message:
        "{wildcards.model}: time an image with and without fusion"
    shell:
        "python workflow/scripts/study_fusion.py --name {wildcards.model} "
        "--model results/models/{wildcards.model} --recipe recipes/{params.recipe}.yaml --bits {params.bits} "
        "--images {input.images} --rounds {params.rounds} --threads {params.threads} "
        "--out {output.table} --out-operators {output.operators} > {log} 2>&1"


rule plot_study_fusion:
    input:
        table="results/{model}/study/fusion.csv",
        operators="results/{model}/study/fusion_operators.csv",
        code=code("plot_study_fusion"),
    output:
        png=studied("fusion.png", "3 Fusion", shows="Time and operators"),
        svg="results/{model}/study/fusion.svg",
    log:
        "logs/{model}/plot_study_fusion.log",
    benchmark:
        "benchmarks/{model}/plot_study_fusion.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: plot what fusion saves"
    shell:
        "python workflow/scripts/plot_study_fusion.py --table {input.table} --operators {input.operators} "
        "--dpi {params.dpi} --out-png {output.png} --out-svg {output.svg} > {log} 2>&1"
