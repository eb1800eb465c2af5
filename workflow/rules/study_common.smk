# What the rules of the study have in common.
from ptq2themoon.vocabulary.study_layout import PARTS, TABLES_OF, ablation_runs, study_files, table_rows

# Bits, images and seed of what the study looks at closely: as the pipeline's own, so that nothing is made twice.
STUDY_KEY = f"{STUDY.bits[0]}-n{PARAMS.calibration.images}-s{PARAMS.calibration.seeds[0]}"
STUDY_JOBS = len(PARAMS.models) * len(STUDY.seeds) * sum(map(len, PARTS.values()))
STUDY_THREADS = max(1, workflow.cores // STUDY_JOBS) if workflow.cores else 4
PUBLISHED = "resources/study"


def studied(name, part, caption=None, **labels):
    """A PNG or table of a model's study, for the report; `part` orders the chapters."""
    return report(
        f"results/{{model}}/study/{name}",
        caption=f"../report/study_{caption or Path(name).stem}.rst",
        category="Study 1-6: {model}",
        subcategory=part,
        labels=labels,
    )


def study_qparams(recipe):
    """Quantization parameters of a model by one of the study's recipes."""
    return multiext(f"results/models/{{model}}/{recipe}/{STUDY_KEY}/qparams", ".json", ".safetensors")


def study_calibration(seed="{seed}"):
    return f"results/models/{{model}}/calibration-n{STUDY.calibration_images}-s{seed}.safetensors"


def recipe_of(name):
    return checked(lambda: load_recipe(Path(f"recipes/{name}.yaml")))


def recipe_chain(*names):
    """The files of some recipes and of those that they extend."""
    return list(dict.fromkeys(str(path) for name in names for path in recipe_of(name).sources))


def ablated(part):
    """The recipes of a part, but for auto's."""
    if part == "output":
        return [name for name in STUDY.recipes if recipe_of(name).has_weight_channels]
    return STUDY.recipes


def ablation_recipes(wildcards):
    """Recipe files of a part, as the command names them."""
    if wildcards.part == AUTO:
        return [f"results/{wildcards.model}/study/{AUTO}.yaml"]
    return [f"recipes/{name}.yaml" for name in ablated(wildcards.part)]


def ablation_sources(wildcards):
    return ablation_recipes(wildcards) if wildcards.part == AUTO else recipe_chain(*ablated(wildcards.part))


def ablation_chapter(wildcards):
    """Two values make a toggle of the report, three do not: the third has a chapter of its own."""
    return "1b Ablation, quantized once" if wildcards.variant == "once" else "1 Ablation"


def ablation_labels(shows):
    def labels(wildcards):
        if wildcards.variant == "once":
            return {"shows": shows}
        return {"shows": shows, "weight scales": f"one an {wildcards.variant} channel"}

    return labels


def runs_of(*parts):
    """An input function: the runs of these parts."""
    return lambda wildcards: [
        f"results/{wildcards.model}/study/{name}" for name in ablation_runs(STUDY, parts)
    ]


def table_runs(wildcards):
    """What a table of the ablation is made of."""
    return runs_of(*TABLES_OF[wildcards.variant])(wildcards)


def plain_runs(wildcards):
    """What it takes from the plain runs: rows that the variant leaves alone."""
    return runs_of("input")(wildcards) if wildcards.variant == "output" else []
