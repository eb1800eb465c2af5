rule plot_errors:
    input:
        tables=of_quantized("results/{model}/{recipe}/{key}/operators.csv"),
        code=code("plot_errors"),
    output:
        png=shown("errors_along_network", "Errors along the network"),
        svg="results/{model}/figures/errors_along_network.svg",
    log:
        "logs/{model}/plot_errors.log",
    benchmark:
        "benchmarks/{model}/plot_errors.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        tables=lambda wildcards, input: flags("--table", run_names(), input.tables),
        modes=flags(
            "--mode-images",
            ["accumulated", "local", "logits"],
            [PARAMS.errors.images, PARAMS.errors.images, PARAMS.errors.logits_images],
        ),
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: plot the error of every operator"
    shell:
        "python workflow/scripts/plot_errors.py {params.tables:q} {params.modes} --dpi {params.dpi} "
        "--out-png {output.png} --out-svg {output.svg} > {log} 2>&1"


rule plot_top1:
    input:
        summary="results/summary.csv",
        code=code("plot_top1"),
    output:
        png=shown("top1", "Top-1, or output error"),
        svg="results/{model}/figures/top1.svg",
    log:
        "logs/{model}/plot_top1.log",
    benchmark:
        "benchmarks/{model}/plot_top1.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: plot top-1"
    shell:
        "python workflow/scripts/plot_top1.py --summary {input.summary} --model {wildcards.model} "
        "--dpi {params.dpi} --out-png {output.png} --out-svg {output.svg} > {log} 2>&1"


rule plot_attention:
    input:
        float="results/models/{model}/fp32/attention_maps.safetensors",
        quantized=of_quantized("results/models/{model}/{recipe}/{key}/attention_maps.safetensors"),
        info="results/models/{model}/model.json",
        code=code("plot_attention"),
    output:
        overview_png=shown("attention_overview", "Attention over the image"),
        overview_svg="results/{model}/figures/attention_overview.svg",
        heads_png=shown("attention_heads", "Attention by head"),
        heads_svg="results/{model}/figures/attention_heads.svg",
    log:
        "logs/{model}/plot_attention.log",
    benchmark:
        "benchmarks/{model}/plot_attention.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        maps=lambda wildcards, input: flags("--maps", ["fp32", *run_names()], [input.float, *input.quantized]),
        tables="",  # the study has the numbers of its figures written too
        rows=PARAMS.attention.images,
        colormap=PARAMS.plots.colormap,
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: plot attention maps"
    shell:
        "python workflow/scripts/plot_attention.py {params.maps:q} --label-names {input.info} "
        "--rows {params.rows} --colormap {params.colormap} --dpi {params.dpi} "
        "--out-overview-png {output.overview_png} --out-overview-svg {output.overview_svg} "
        "--out-heads-png {output.heads_png} --out-heads-svg {output.heads_svg} {params.tables} > {log} 2>&1"
