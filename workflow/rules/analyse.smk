rule operator_errors:
    input:
        **fused_model("operator_errors"),
        qparams=QPARAMS,
        reference=REFERENCE,
    output:
        table=report(
            "results/{model}/{recipe}/{key}/operators.csv",
            caption="../report/operators.rst",
            category="{model}",
            subcategory="Tables",
            labels={"table": "operator errors", "recipe": "{recipe}", "key": "{key}"},
        ),
        ranking="results/{model}/{recipe}/{key}/ranking.json",
    log:
        "logs/{model}/{recipe}/{key}/operator_errors.log",
    benchmark:
        "benchmarks/{model}/{recipe}/{key}/operator_errors.tsv"
    conda:
        "../../environment.yml"
    threads: SHARE
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        source=test_images,
        device=PARAMS.device,
        images=PARAMS.errors.images,
        logits_images=PARAMS.errors.logits_images,
    message:
        "{wildcards.model}, {wildcards.recipe}: error of every operator, three ways"
    shell:
        "python workflow/scripts/operator_errors.py --model results/models/{wildcards.model} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} --images {params.images} "
        "--logits-images {params.logits_images} --qparams {input.qparams} "
        "--reference {input.reference} "
        "--out {output.table} --out-ranking {output.ranking} > {log} 2>&1"


rule attention_maps:
    input:
        **fused_model("attention_maps"),
        qparams=qparams,
    output:
        "results/models/{model}/{variant}/attention_maps.safetensors",
    log:
        "logs/{model}/{variant}/attention_maps.log",
    benchmark:
        "benchmarks/{model}/{variant}/attention_maps.tsv"
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
        block=PARAMS.attention.block,
    message:
        "{wildcards.model}, {wildcards.variant}: attention maps"
    shell:
        "python workflow/scripts/attention_maps.py --model results/models/{wildcards.model} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} --recipe {params.recipe} "
        "--images {params.images} --block {params.block} {params.qparams} --out {output} > {log} 2>&1"
