from ptq2themoon.vocabulary.stages.benchmark import (
    BenchmarkImages,
    BenchmarkPpq,
    BenchmarkRuntimes,
    BenchmarkSimulation,
    BenchmarkStretch,
    BenchmarkWeights,
)


rule benchmark_weights:
    input:
        **inputs(BenchmarkWeights),
    output:
        **outputs(BenchmarkWeights),
    log:
        log_of(BenchmarkWeights),
    benchmark:
        times_of(BenchmarkWeights)
    conda:
        ENVIRONMENT
    resources:
        runtime=10,
    params:
        **call(BenchmarkWeights),
    message:
        "{wildcards.architecture}: random weights"
    shell:
        RUN


rule benchmark_stretch:
    input:
        **inputs(BenchmarkStretch),
    output:
        **outputs(BenchmarkStretch),
    log:
        log_of(BenchmarkStretch),
    benchmark:
        times_of(BenchmarkStretch)
    conda:
        ENVIRONMENT
    resources:
        runtime=10,
    params:
        **call(BenchmarkStretch),
    message:
        "{wildcards.base}: outlier channels"
    shell:
        RUN


rule benchmark_images:
    input:
        **inputs(BenchmarkImages),
    output:
        **outputs(BenchmarkImages, out=temp),
    log:
        log_of(BenchmarkImages),
    benchmark:
        times_of(BenchmarkImages)
    conda:
        ENVIRONMENT
    resources:
        runtime=60,
    params:
        **call(BenchmarkImages),
    message:
        "{wildcards.model}: images for the benchmark"
    shell:
        RUN


rule benchmark_ppq:
    input:
        **inputs(BenchmarkPpq),
    output:
        **outputs(BenchmarkPpq, out=temp),
    log:
        log_of(BenchmarkPpq),
    benchmark:
        times_of(BenchmarkPpq)
    conda:
        ENVIRONMENT
    threads: all_cores
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        **call(BenchmarkPpq),
    message:
        "{wildcards.model}: PPQ's own INT8 model"
    shell:
        RUN


rule benchmark_runtimes:
    input:
        **inputs(BenchmarkRuntimes, python=peers_python),
    output:
        **outputs(BenchmarkRuntimes),
    log:
        log_of(BenchmarkRuntimes),
    benchmark:
        times_of(BenchmarkRuntimes)
    conda:
        ENVIRONMENT
    threads: all_cores
    resources:
        mem_mb=12000,
        runtime=120,
    params:
        **call(BenchmarkRuntimes),
    message:
        "{wildcards.model}: our models and other tools', by turns"
    shell:
        run_by("{input.python}")


rule benchmark_simulation:
    input:
        **inputs(BenchmarkSimulation),
    output:
        **outputs(BenchmarkSimulation),
    log:
        log_of(BenchmarkSimulation),
    benchmark:
        times_of(BenchmarkSimulation)
    conda:
        ENVIRONMENT
    threads: all_cores
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        **call(BenchmarkSimulation),
    message:
        "{wildcards.model}: simulation and calibration, PPQ's and ours"
    shell:
        RUN
