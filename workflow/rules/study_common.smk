# How the report shows the study.


def studied(caption, chapter, shows, **labels):
    """Marks a PNG or table of a model's study for the report; the chapter orders them."""
    return shown(
        f"study_{caption}",
        "6 Study, chapters 1 to 6: {model}",
        subcategory=chapter,
        labels={"shows": shows, **labels},
    )


def ablation(caption, shows):
    """Marks what there is of each reading of the recipes."""
    return shown(
        f"study_{caption}",
        "6 Study, chapters 1 to 6: {model}",
        subcategory=ablation_chapter,
        labels=ablation_labels(shows),
    )


def ablation_chapter(wildcards):
    """Two values make a toggle of the report, three do not: the third has a chapter of its own."""
    return "1b Ablation, quantized once" if wildcards.reading == "once" else "1 Ablation"


def ablation_labels(shows):
    def labels(wildcards):
        if wildcards.reading == "once":
            return {"shows": shows}
        return {"shows": shows, "weight scales": f"one per {wildcards.reading} channel"}

    return labels


def of_models(caption, shows):
    """Marks what stands for all models."""
    return shown(f"study_{caption}", "7 Study, chapter 7: all models", labels={"shows": shows})


# The runs of the ablation share the cores.
ABLATION_JOBS = len(PARAMS.models) * len(PARAMS.study.seeds) * sum(map(len, study_layout.PARTS.values()))


def ablation_share(wildcards):
    return shared(ABLATION_JOBS)
