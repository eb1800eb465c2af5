from ptq2themoon.vocabulary.stages.figures import PlotAttention, PlotErrors, PlotTop1


rule plot_errors:
    input:
        **inputs(PlotErrors),
    output:
        **outputs(PlotErrors, out_png=figure("errors_along_network", "Errors along the network")),
    log:
        log_of(PlotErrors),
    benchmark:
        times_of(PlotErrors)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotErrors),
    message:
        "{wildcards.model}: plot the error of every operator"
    shell:
        command(PlotErrors)


rule plot_top1:
    input:
        **inputs(PlotTop1),
    output:
        **outputs(PlotTop1, out_png=figure("top1", "Top-1, or output error")),
    log:
        log_of(PlotTop1),
    benchmark:
        times_of(PlotTop1)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotTop1),
    message:
        "{wildcards.model}: plot top-1"
    shell:
        command(PlotTop1)


rule plot_attention:
    input:
        **inputs(PlotAttention),
    output:
        **outputs(
            PlotAttention,
            out_overview_png=figure("attention_overview", "Attention over the image"),
            out_heads_png=figure("attention_heads", "Attention by head"),
        ),
    log:
        log_of(PlotAttention),
    benchmark:
        times_of(PlotAttention)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotAttention),
    message:
        "{wildcards.model}: plot attention maps"
    shell:
        command(PlotAttention)
