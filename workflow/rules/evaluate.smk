rule reference:
    input:
        **fused_model("reference"),
    output:
        metrics="results/{model}/fp32/metrics.json",
        reference=REFERENCE,
    log:
        "logs/{model}/fp32/reference.log",
    benchmark:
        "benchmarks/{model}/fp32/reference.tsv"
    priority: 50  # much waits for it
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
        block=PARAMS.attention.block,
    message:
        "{wildcards.model}: floating point on all evaluation images"
    shell:
        "python workflow/scripts/reference.py --model results/models/{wildcards.model} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} --batch-size {params.batch_size} "
        "--block {params.block} --out {output.metrics} --out-reference {output.reference} > {log} 2>&1"


rule evaluate_quantized:
    input:
        **fused_model("evaluate"),
        qparams=QPARAMS,
        reference=REFERENCE,
    output:
        metrics="results/{model}/{recipe}/{key}/metrics.json",
        attention=report(
            "results/{model}/{recipe}/{key}/attention.csv",
            caption="../report/attention.rst",
            category="{model}",
            subcategory="Tables",
            labels={"table": "attention fidelity", "recipe": "{recipe}", "key": "{key}"},
        ),
        simulated=SIMULATED,
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
        "python workflow/scripts/evaluate.py --model results/models/{wildcards.model} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} --batch-size {params.batch_size} "
        "--block {params.block} --qparams {input.qparams} --reference {input.reference} "
        "--out {output.metrics} --out-attention {output.attention} --out-simulated {output.simulated} "
        "> {log} 2>&1"


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
            for path in of_runs(model, "results/{model}/{recipe}/{key}/runtime.json")
            if PARAMS.deploy.modes
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
