# Attention in full precision, with LayerNorm per channel, and with the study's own choice of operators.
CHAPTER = "6 Attention"
LOOKED_AT = [recipe for recipe in (NORMS, CUSTOMIZED) if recipe in STUDY.recipes]


rule study_rollout:
    input:
        **fused_model("study_rollout"),
        qparams=qparams,
    output:
        "results/models/{model}/{variant}/rollout.safetensors",
    log:
        "logs/{model}/{variant}/study_rollout.log",
    benchmark:
        "benchmarks/{model}/{variant}/study_rollout.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=15,
    params:
        source=test_images,
        device=PARAMS.device,
        recipe=lambda wildcards: wildcards.variant.partition("/")[0],
        qparams=lambda wildcards, input: ["--qparams", *input.qparams] if input.qparams else [],
        images=PARAMS.attention.images,
    message:
        "{wildcards.model}, {wildcards.variant}: attention rollout"
    shell:
        "python workflow/scripts/study_rollout.py --model results/models/{wildcards.model} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} --recipe {params.recipe} "
        "--images {params.images} {params.qparams} --out {output} > {log} 2>&1"


use rule plot_attention as plot_study_attention with:
    input:
        float="results/models/{model}/fp32/attention_maps.safetensors",
        quantized=expand(
            "results/models/{{model}}/{recipe}/{key}/attention_maps.safetensors",
            recipe=LOOKED_AT,
            key=STUDY_KEY,
        ),
        info="results/models/{model}/model.json",
        code=code("plot_attention"),
    output:
        overview_png=studied("attention_overview.png", CHAPTER, shows="head mean and overlay"),
        overview_svg="results/{model}/study/attention_overview.svg",
        heads_png=studied("attention_heads.png", CHAPTER, shows="every head"),
        heads_svg="results/{model}/study/attention_heads.svg",
        overview_csv="results/{model}/study/attention_overview.csv",
        heads_csv="results/{model}/study/attention_heads.csv",
    log:
        "logs/{model}/study/plot_attention.log",
    benchmark:
        "benchmarks/{model}/plot_study_attention.tsv"
    params:
        maps=lambda wildcards, input: flags("--maps", ["fp32", *LOOKED_AT], [input.float, *input.quantized]),
        tables=lambda wildcards, output: [
            "--out-overview-csv",
            output.overview_csv,
            "--out-heads-csv",
            output.heads_csv,
        ],
        rows=PARAMS.attention.images,
        colormap=PARAMS.plots.colormap,
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: plot attention maps of the study"


rule plot_study_rollout:
    input:
        float="results/models/{model}/fp32/rollout.safetensors",
        quantized=expand(
            "results/models/{{model}}/{recipe}/{key}/rollout.safetensors", recipe=LOOKED_AT, key=STUDY_KEY
        ),
        info="results/models/{model}/model.json",
        code=code("plot_rollout"),
    output:
        png=studied("attention_rollout.png", CHAPTER, shows="rollout"),
        svg="results/{model}/study/attention_rollout.svg",
        csv="results/{model}/study/attention_rollout.csv",
    log:
        "logs/{model}/study/plot_rollout.log",
    benchmark:
        "benchmarks/{model}/plot_study_rollout.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        maps=lambda wildcards, input: flags("--maps", ["fp32", *LOOKED_AT], [input.float, *input.quantized]),
        rows=PARAMS.attention.images,
        colormap=PARAMS.plots.colormap,
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: plot attention rollout"
    shell:
        "python workflow/scripts/plot_rollout.py {params.maps:q} --label-names {input.info} --rows {params.rows} "
        "--colormap {params.colormap} --dpi {params.dpi} --out-png {output.png} --out-svg {output.svg} "
        "--out-csv {output.csv} > {log} 2>&1"


rule study_fidelity:
    input:
        fusion="results/models/{model}/fusion.json",
        tables=expand("results/{{model}}/{recipe}/{key}/attention.csv", recipe=LOOKED_AT, key=STUDY_KEY),
        code=code("study_fidelity"),
    output:
        csv=studied("attention_fidelity.csv", CHAPTER, shows="fidelity over all images"),
        markdown="results/{model}/study/attention_fidelity.md",
    log:
        "logs/{model}/study/fidelity.log",
    benchmark:
        "benchmarks/{model}/study_fidelity.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        tables=lambda wildcards, input: flags("--table", LOOKED_AT, input.tables),
        bits=STUDY.bits[0],
        block=PARAMS.attention.block,
    message:
        "{wildcards.model}: fidelity of attention over all images"
    shell:
        "python workflow/scripts/study_fidelity.py --fusion {input.fusion} {params.tables:q} --bits {params.bits} "
        "--block {params.block} --out-csv {output.csv} --out-md {output.markdown} > {log} 2>&1"
