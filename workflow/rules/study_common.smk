# What the rules of the study have in common.
# Bits, images and seed of what the study looks at closely: as the pipeline's own, so that nothing is made twice.
STUDY_KEY = f"{STUDY.bits[0]}-n{PARAMS.calibration.images}-s{PARAMS.calibration.seeds[0]}"
# What is evaluated together: the recipes as they are, with the other weight axis, with each activation quantized
# once, and the recipe found for the model. The first bits are the wide ones.
PARTS = {"wide": ("input", "output", "auto"), "narrow": ("input", "output", "once", "auto")}
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
        return [name for name in STUDY.recipes if recipe_of(name).states_weight_axis]
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


def ablation_runs(*parts):
    """The tables of these parts at the bits that have them all, widest bits first."""
    return [
        f"results/{{model}}/study/ablation/{width}-{part}-s{seed}.csv"
        for width in PARTS
        for part in parts
        for seed in STUDY.seeds
        if set(parts) <= set(PARTS[width])
    ]


def table_runs(wildcards):
    """What a table of the ablation is made of."""
    return [path.format(model=wildcards.model) for path in ablation_runs(*TABLES_OF[wildcards.variant])]


def table_rows(wildcards):
    return [*STUDY.recipes, *[AUTO] * (AUTO in TABLES_OF[wildcards.variant])]


TABLES_OF = {"input": ("input", AUTO), "output": ("output",), "once": ("once", AUTO)}
STUDY_FIGURES = (
    *(f"ablation_{variant}" for variant in TABLES_OF),
    *("ranking", "fusion", "activations", "activations_block", "errors", "errors_average"),
    *("error_histograms_per_tensor", "error_histograms_per_channel"),
    *("attention_overview", "attention_heads", "attention_rollout"),
)
STUDY_TABLES = (
    *(f"ablation_{variant}.md" for variant in TABLES_OF),
    *("bits.json", "fp32.json", "search.csv", f"{AUTO}.yaml", "fusion_operators.csv"),
    *("attention_fidelity.csv", "attention_fidelity.md"),
)


def study_results():
    """Every file of the study: a figure has its numbers in a table of its name."""
    names = [f"{figure}.{kind}" for figure in STUDY_FIGURES for kind in ("png", "svg", "csv")]
    files = [f"results/{model}/study/{name}" for model in PARAMS.models for name in (*names, *STUDY_TABLES)]
    return files + [f"results/study/models.{kind}" for kind in ("csv", "md", "png", "svg")]
