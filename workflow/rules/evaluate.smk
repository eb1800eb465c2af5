rule evaluate_float:
    input:
        **fused_model("evaluate"),
    output:
        "results/{model}/fp32/metrics.json",
    log:
        "logs/{model}/fp32/evaluate.log",
    benchmark:
        "benchmarks/{model}/fp32/evaluate.tsv"
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
        "{wildcards.model}: evaluate in floating point"
    shell:
        "python workflow/scripts/evaluate.py --graph {input.graph} --fusion {input.fusion} --info {input.info} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} --batch-size {params.batch_size} "
        "--out {output} > {log} 2>&1"


rule evaluate_quantized:
    input:
        **fused_model("evaluate"),
        qparams=QPARAMS,
    output:
        metrics="results/{model}/{recipe}/{key}/metrics.json",
        attention=report(
            "results/{model}/{recipe}/{key}/attention.csv",
            caption="../report/attention.rst",
            category="{model}",
            subcategory="Tables",
            labels={"table": "attention fidelity", "recipe": "{recipe}", "key": "{key}"},
        ),
    log:
        "logs/{model}/{recipe}/{key}/evaluate.log",
    benchmark:
        "benchmarks/{model}/{recipe}/{key}/evaluate.tsv"
    conda:
        "../../environment.yml"
    threads: SHARE
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        source=test_images,
        device=PARAMS.device,
        batch_size=PARAMS.evaluation.batch_size,
        block=PARAMS.attention.block,
    message:
        "{wildcards.model}, {wildcards.recipe}: evaluate {wildcards.key}"
    shell:
        "python workflow/scripts/evaluate.py --graph {input.graph} --fusion {input.fusion} --info {input.info} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} --batch-size {params.batch_size} "
        "--block {params.block} --qparams {input.qparams} "
        "--out {output.metrics} --out-attention {output.attention} > {log} 2>&1"


rule summarize:
    input:
        float=expand("results/{model}/fp32/metrics.json", model=PARAMS.models),
        quantized=[
            path
            for model in PARAMS.models
            for path in of_runs(model, "results/{model}/{recipe}/{key}/metrics.json")
        ],
        runtime=[
            path
            for model in PARAMS.models
            for mode in PARAMS.deploy.modes
            for path in of_runs(model, f"results/{{model}}/{{recipe}}/{{key}}/{mode}/runtime.json")
        ],
        code=code("summarize"),
    output:
        csv=report("results/summary.csv", caption="../report/summary.rst", category="Summary"),
        markdown="results/summary.md",
        json="results/summary.json",
    log:
        "logs/summarize.log",
    benchmark:
        "benchmarks/summarize.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        entries=list(summary_entries()),
    message:
        "Summarize all models and recipes"
    shell:
        "python workflow/scripts/summarize.py {params.entries:q} "
        "--out-csv {output.csv} --out-md {output.markdown} --out-json {output.json} > {log} 2>&1"
