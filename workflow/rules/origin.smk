from ptq2themoon.vocabulary.stages.origin import DrawCalibration, Export, ListEvaluation


rule export:
    input:
        **inputs(Export),
    output:
        **outputs(Export),
    log:
        log_of(Export),
    benchmark:
        times_of(Export)
    conda:
        ENVIRONMENT
    resources:
        **asks(Export),
    params:
        **call(Export),
    message:
        "{wildcards.model}: export to ONNX"
    shell:
        RUN


rule draw_calibration:
    input:
        **inputs(DrawCalibration),
    output:
        **outputs(DrawCalibration),
    log:
        log_of(DrawCalibration),
    benchmark:
        times_of(DrawCalibration)
    conda:
        ENVIRONMENT
    threads: decoders
    resources:
        **asks(DrawCalibration),
    params:
        **call(DrawCalibration),
    message:
        "{wildcards.model}: draw {wildcards.images} calibration images with seed {wildcards.seed}"
    shell:
        RUN


rule list_evaluation:
    input:
        **inputs(ListEvaluation),
    output:
        **outputs(ListEvaluation),
    log:
        log_of(ListEvaluation),
    benchmark:
        times_of(ListEvaluation)
    conda:
        ENVIRONMENT
    threads: decoders
    resources:
        **asks(ListEvaluation),
    params:
        **call(ListEvaluation),
    message:
        "{wildcards.model}: list evaluation images"
    shell:
        RUN
