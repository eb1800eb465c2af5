from ptq2themoon.vocabulary.stages.graph import Fuse


rule fuse:
    input:
        **inputs(Fuse),
    output:
        **outputs(Fuse),
    log:
        log_of(Fuse),
    benchmark:
        times_of(Fuse)
    conda:
        ENVIRONMENT
    resources:
        **asks(Fuse),
    params:
        **call(Fuse),
    message:
        "{wildcards.model}: fuse the graph and check its logits"
    shell:
        RUN
