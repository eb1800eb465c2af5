"""From timm Vision Transformers to quantized models, tables and attention maps.

`snakemake` runs params.yaml; `snakemake --configfile mine.yaml` runs another complete file instead.
"""

from snakemake.utils import min_version

min_version("9.19")


include: "workflow/rules/reading.smk"


# A file given on the command line that names models stands alone; `--config` overrides single keys.
if "models" not in config:
    known(lambda: read_yaml(Path("params.yaml")))  # before Snakemake's own reader, which may run code

    configfile: "params.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


scattergather:
    shards=PARAMS.evaluation.shards,


wildcard_constraints:
    model="|".join(map(re.escape, PARAMS.every_model)),
    recipe="|".join(map(re.escape, RECIPES)),
    key=layout.KEY_PATTERN,
    variant=f"{layout.FP32}|[^/]+/{layout.KEY_PATTERN}",
    bits=r"w\d+a\d+",
    images=r"\d+",
    seed=r"\d+",
    mode="|".join(MODES),
    reading="|".join(study_layout.TABLES_OF),
    width="|".join(study_layout.PARTS),
    part="|".join(study_layout.PARTS["narrow"]),


include: "workflow/rules/safety.smk"
include: "workflow/rules/origin.smk"
include: "workflow/rules/fuse.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/deploy.smk"
include: "workflow/rules/benchmark_common.smk"
include: "workflow/rules/benchmark.smk"
include: "workflow/rules/study_common.smk"
include: "workflow/rules/study.smk"
include: "workflow/rules/study_inputs.smk"
include: "workflow/rules/study_attention.smk"
include: "workflow/rules/leaderboard.smk"
include: "workflow/rules/data_free.smk"
include: "workflow/rules/learning_curve.smk"
include: "workflow/rules/tables_and_figures.smk"


rule all:
    default_target: True
    input:
        layout.pipeline_files(PARAMS),


# Snakemake's limit on jobs per second lets it look at all ready jobs once more in each second for each job that
# has ended: after a hundred jobs it does little else. Commands take seconds here, so nothing needs the limit.
onstart:
    workflow.scheduler.job_rate_limiter = None
    look_before_jobs(workflow.dag)


onsuccess:
    for line in ending():
        print(line)
