rule study_activations:
    input:
        **fused_model("study_activations"),
    output:
        channels="results/{model}/study/activations.csv",
        largest=studied(
            "activations_largest.csv",
            "4 Activations",
            shows="channel of the largest range, by layer and block",
        ),
    log:
        "logs/{model}/study/activations.log",
    benchmark:
        "benchmarks/{model}/study_activations.tsv"
    conda:
        "../../environment.yml"
    threads: SHARE
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        source=test_images,
        device=PARAMS.device,
        images=STUDY.input_images,
    message:
        "{wildcards.model}: ranges of the layers' inputs by channel"
    shell:
        "python workflow/scripts/study_activations.py --model results/models/{wildcards.model} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} "
        "--images {params.images} --out {output.channels} --out-largest {output.largest} > {log} 2>&1"


rule study_errors:
    input:
        **fused_model("study_errors"),
        per_tensor=study_qparams(BASE),
        per_channel=study_qparams(CHANNELWISE),
    output:
        errors=studied("errors.csv", "5 Errors", caption="errors", shows="by layer and block"),
        average=studied("errors_average.csv", "5 Errors", caption="errors_average", shows="mean over blocks"),
        histograms="results/{model}/study/error_histograms.csv",
        channels="results/{model}/study/error_channels.csv",
    log:
        "logs/{model}/study/errors.log",
    benchmark:
        "benchmarks/{model}/study_errors.tsv"
    conda:
        "../../environment.yml"
    threads: SHARE
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        source=test_images,
        device=PARAMS.device,
        images=STUDY.input_images,
        block=STUDY.block,
    message:
        "{wildcards.model}: errors of the layers' inputs, class token and patch tokens apart"
    shell:
        "python workflow/scripts/study_errors.py --model results/models/{wildcards.model} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} "
        "--images {params.images} --block {params.block} --per-tensor {input.per_tensor} "
        "--per-channel {input.per_channel} --out {output.errors} --out-average {output.average} "
        "--out-histograms {output.histograms} --out-channels {output.channels} > {log} 2>&1"


rule plot_study_activations:
    input:
        channels="results/{model}/study/activations.csv",
        largest="results/{model}/study/activations_largest.csv",
        code=code("plot_study_activations"),
    output:
        png=studied("activations.png", "4 Activations", shows="every block"),
        svg="results/{model}/study/activations.svg",
        block="results/{model}/study/activations_block.csv",
        block_png=studied("activations_block.png", "4 Activations", shows=f"block {STUDY.block}"),
        block_svg="results/{model}/study/activations_block.svg",
    log:
        "logs/{model}/study/plot_activations.log",
    benchmark:
        "benchmarks/{model}/plot_study_activations.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        block=STUDY.block,
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: plot the ranges of the layers' inputs"
    shell:
        "python workflow/scripts/plot_study_activations.py --channels {input.channels} "
        "--largest {input.largest} --block {params.block} --dpi {params.dpi} "
        "--out-png {output.png} --out-svg {output.svg} --out-block {output.block} "
        "--out-block-png {output.block_png} --out-block-svg {output.block_svg} > {log} 2>&1"


rule plot_study_errors:
    input:
        errors="results/{model}/study/errors.csv",
        average="results/{model}/study/errors_average.csv",
        histograms="results/{model}/study/error_histograms.csv",
        code=code("plot_study_errors"),
    output:
        errors_png=studied("errors.png", "5 Errors", shows="by block"),
        errors_svg="results/{model}/study/errors.svg",
        average_png=studied("errors_average.png", "5 Errors", shows="mean over blocks"),
        average_svg="results/{model}/study/errors_average.svg",
        per_tensor="results/{model}/study/error_histograms_per_tensor.csv",
        per_tensor_png=studied(
            "error_histograms_per_tensor.png",
            "5b Error histograms",
            caption="error_histograms",
            shows="channels by percentage error",
            quantizer="per tensor",
        ),
        per_tensor_svg="results/{model}/study/error_histograms_per_tensor.svg",
        per_channel="results/{model}/study/error_histograms_per_channel.csv",
        per_channel_png=studied(
            "error_histograms_per_channel.png",
            "5b Error histograms",
            caption="error_histograms",
            shows="channels by percentage error",
            quantizer="per channel",
        ),
        per_channel_svg="results/{model}/study/error_histograms_per_channel.svg",
    log:
        "logs/{model}/study/plot_errors.log",
    benchmark:
        "benchmarks/{model}/plot_study_errors.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: plot the errors of the layers' inputs"
    shell:
        "python workflow/scripts/plot_study_errors.py --errors {input.errors} --average {input.average} "
        "--histograms {input.histograms} --dpi {params.dpi} --out {output.errors_png} {output.errors_svg} "
        "--out-average {output.average_png} {output.average_svg} "
        "--out-per-tensor {output.per_tensor} {output.per_tensor_png} {output.per_tensor_svg} "
        "--out-per-channel {output.per_channel} {output.per_channel_png} {output.per_channel_svg} "
        "> {log} 2>&1"
