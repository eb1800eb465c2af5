rule study_bits:
    input:
        **fused_model("study_bits"),
        reference=REFERENCE,
        calibration=study_calibration(STUDY.seeds[0]),
        recipe=lambda wildcards: recipe_chain(BASE),
    output:
        bits="results/{model}/study/bits.json",
        metrics="results/{model}/study/fp32.json",
    log:
        "logs/{model}/study/bits.log",
    benchmark:
        "benchmarks/{model}/study_bits.tsv"
    priority: 50  # much waits for it
    conda:
        "../../environment.yml"
    threads: SHARE
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        source=test_images,
        device=PARAMS.device,
        recipe=BASE,
        bits=STUDY.bits[1:],
        loss=STUDY.loss,
        calibration_batch_size=PARAMS.calibration.batch_size,
        images=STUDY.images,
        batch_size=PARAMS.evaluation.batch_size,
        block=PARAMS.attention.block,
    message:
        "{wildcards.model}: the first bits at which {params.recipe} loses more than {params.loss} points"
    shell:
        "python workflow/scripts/study_bits.py --model results/models/{wildcards.model} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} "
        "--recipe recipes/{params.recipe}.yaml --bits {params.bits} --loss {params.loss} "
        "--calibration {input.calibration} --calibration-batch-size {params.calibration_batch_size} "
        "--reference {input.reference} --images {params.images} --batch-size {params.batch_size} "
        "--block {params.block} --out {output.bits} --out-metrics {output.metrics} > {log} 2>&1"


rule study_auto:
    input:
        graph="results/models/{model}/fused.onnx",
        fusion="results/models/{model}/fusion.json",
        info="results/models/{model}/model.json",
        narrow="results/{model}/study/bits.json",
        calibration=study_calibration(STUDY.seeds[0]),
        recipes=lambda wildcards: recipe_chain(BASE, CHANNELWISE),
        code=code("study_auto"),
    output:
        recipe=f"results/{{model}}/study/{AUTO}.yaml",
        ranking=studied(
            "ranking.csv", "2 Which operators", caption="ranking_table", shows="Ranking, all numbers"
        ),
        search="results/{model}/study/search.csv",
    log:
        "logs/{model}/study/auto.log",
    benchmark:
        "benchmarks/{model}/study_auto.tsv"
    priority: 50  # much waits for it
    conda:
        "../../environment.yml"
    threads: SHARE
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        device=PARAMS.device,
        base=BASE,
        channelwise=CHANNELWISE,
        batch_size=PARAMS.calibration.batch_size,
        images=STUDY.ranking_images,
        share=STUDY.share,
        seed=STUDY.seeds[0],
    message:
        "{wildcards.model}: rank what a scale a channel gains, and find the recipe that needs fewest"
    shell:
        "python workflow/scripts/study_auto.py --model results/models/{wildcards.model} "
        "--device {params.device} --base recipes/{params.base}.yaml "
        "--channelwise recipes/{params.channelwise}.yaml --bits-from {input.narrow} "
        "--calibration {input.calibration} --batch-size {params.batch_size} --images {params.images} "
        "--share {params.share} --seed {params.seed} --out {output.recipe} --out-ranking {output.ranking} "
        "--out-search {output.search} > {log} 2>&1"


rule study_ablation:
    input:
        **fused_model("study_ablation", STUDY.recipes),
        reference=REFERENCE,
        calibration=study_calibration(),
        narrow=lambda wildcards: ["results/{model}/study/bits.json"] * (wildcards.width == "narrow"),
        recipes=ablation_sources,
    output:
        "results/{model}/study/ablation/{width}-{part}-s{seed}.csv",
    log:
        "logs/{model}/study/ablation-{width}-{part}-s{seed}.log",
    benchmark:
        "benchmarks/{model}/study_ablation-{width}-{part}-s{seed}.tsv"
    wildcard_constraints:
        width="|".join(PARTS),
        part="|".join(PARTS["narrow"]),
    conda:
        "../../environment.yml"
    threads: STUDY_THREADS
    resources:
        mem_mb=4000,
        runtime=480,
    params:
        source=test_images,
        device=PARAMS.device,
        recipes=ablation_recipes,
        variant=lambda wildcards: "input" if wildcards.part == AUTO else wildcards.part,
        bits=lambda wildcards, input: (
            ["--bits-from", *input.narrow] if input.narrow else ["--bits", STUDY.bits[0]]
        ),
        calibration_batch_size=PARAMS.calibration.batch_size,
        images=STUDY.images,
        batch_size=PARAMS.evaluation.batch_size,
        block=PARAMS.attention.block,
    message:
        "{wildcards.model}: ablation, {wildcards.width} bits, {wildcards.part}, seed {wildcards.seed}"
    shell:
        "python workflow/scripts/study_ablation.py --model results/models/{wildcards.model} "
        "--manifest {input.manifest} {params.source:q} --device {params.device} "
        "--recipes {params.recipes} --variant {params.variant} {params.bits} --calibration {input.calibration} "
        "--calibration-batch-size {params.calibration_batch_size} --seed {wildcards.seed} "
        "--reference {input.reference} --images {params.images} --batch-size {params.batch_size} "
        "--block {params.block} --out {output} > {log} 2>&1"


rule study_table:
    input:
        runs=table_runs,
        plain=plain_runs,
        metrics="results/{model}/study/fp32.json",
        published=f"{PUBLISHED}/ablation.csv",
        code=code("study_table"),
    output:
        csv=report(
            "results/{model}/study/ablation_{variant}.csv",
            caption="../report/study_ablation_table.rst",
            category="Study 1-6: {model}",
            subcategory=ablation_chapter,
            labels=ablation_labels("Table"),
        ),
        markdown="results/{model}/study/ablation_{variant}.md",
    log:
        "logs/{model}/study/table-{variant}.log",
    benchmark:
        "benchmarks/{model}/study_table-{variant}.tsv"
    wildcard_constraints:
        variant="|".join(TABLES_OF),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        recipes=lambda wildcards: table_rows(STUDY, wildcards.variant),
        plain=lambda wildcards, input: ["--plain", *input.plain] if input.plain else [],
    message:
        "{wildcards.model}: table of the ablation, {wildcards.variant}"
    shell:
        "python workflow/scripts/study_table.py --name {wildcards.model} --variant {wildcards.variant} "
        "--recipes {params.recipes} --runs {input.runs} {params.plain} --metrics {input.metrics} "
        "--published {input.published} --out {output.csv} --out-md {output.markdown} > {log} 2>&1"


rule plot_study_ablation:
    input:
        table="results/{model}/study/ablation_{variant}.csv",
        code=code("plot_study_ablation"),
    output:
        png=report(
            "results/{model}/study/ablation_{variant}.png",
            caption="../report/study_ablation.rst",
            category="Study 1-6: {model}",
            subcategory=ablation_chapter,
            labels=ablation_labels("Bars"),
        ),
        svg="results/{model}/study/ablation_{variant}.svg",
    log:
        "logs/{model}/study/plot_ablation-{variant}.log",
    benchmark:
        "benchmarks/{model}/plot_study_ablation-{variant}.tsv"
    wildcard_constraints:
        variant="|".join(TABLES_OF),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: plot the ablation, {wildcards.variant}"
    shell:
        "python workflow/scripts/plot_study_ablation.py --name {wildcards.model} --variant {wildcards.variant} "
        "--table {input.table} --dpi {params.dpi} "
        "--out-png {output.png} --out-svg {output.svg} > {log} 2>&1"


rule plot_study_ranking:
    input:
        ranking="results/{model}/study/ranking.csv",
        search="results/{model}/study/search.csv",
        narrow="results/{model}/study/bits.json",
        code=code("plot_study_ranking"),
    output:
        png=studied("ranking.png", "2 Which operators", shows="Ranking and search"),
        svg="results/{model}/study/ranking.svg",
    log:
        "logs/{model}/study/plot_ranking.log",
    benchmark:
        "benchmarks/{model}/plot_study_ranking.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        share=STUDY.share,
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: plot what a scale a channel gains"
    shell:
        "python workflow/scripts/plot_study_ranking.py --name {wildcards.model} --ranking {input.ranking} "
        "--search {input.search} --bits-from {input.narrow} --share {params.share} --dpi {params.dpi} "
        "--out-png {output.png} --out-svg {output.svg} > {log} 2>&1"


rule plot_study_published:
    input:
        errors=f"{PUBLISHED}/errors_by_block.csv",
        models=f"{PUBLISHED}/models.csv",
        code=code("plot_study_published"),
    output:
        errors_png=studied("errors_published.png", "5 Errors", shows="by block, as the study printed it"),
        errors_svg="results/{model}/study/errors_published.svg",
        errors_csv="results/{model}/study/errors_published.csv",
        fusion_png=studied("fusion_published.png", "3 Fusion", shows="Times, as the study printed them"),
        fusion_svg="results/{model}/study/fusion_published.svg",
        fusion_csv="results/{model}/study/fusion_published.csv",
    log:
        "logs/{model}/study/plot_published.log",
    benchmark:
        "benchmarks/{model}/plot_study_published.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        dpi=PARAMS.plots.dpi,
    message:
        "{wildcards.model}: draw what the study printed beside it"
    shell:
        "python workflow/scripts/plot_study_published.py --errors {input.errors} --models {input.models} "
        "--dpi {params.dpi} --out-errors {output.errors_png} {output.errors_svg} {output.errors_csv} "
        "--out-fusion {output.fusion_png} {output.fusion_svg} {output.fusion_csv} > {log} 2>&1"


rule study_models:
    input:
        plain=expand("results/{model}/study/ablation_input.csv", model=PARAMS.models),
        once=expand("results/{model}/study/ablation_once.csv", model=PARAMS.models),
        published=f"{PUBLISHED}/models.csv",
        code=code("study_models"),
    output:
        csv=report(
            "results/study/models.csv",
            caption="../report/study_models_table.rst",
            category="Study 7: all models",
            labels={"shows": "Table"},
        ),
        markdown="results/study/models.md",
    log:
        "logs/study/models.log",
    benchmark:
        "benchmarks/study_models.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        models=list(PARAMS.models),
    message:
        "Table of all models"
    shell:
        "python workflow/scripts/study_models.py --models {params.models} --plain {input.plain} "
        "--once {input.once} --published {input.published} --out {output.csv} "
        "--out-md {output.markdown} > {log} 2>&1"


rule plot_study_models:
    input:
        table="results/study/models.csv",
        code=code("plot_study_models"),
    output:
        png=report(
            "results/study/models.png",
            caption="../report/study_models.rst",
            category="Study 7: all models",
            labels={"shows": "Bars"},
        ),
        svg="results/study/models.svg",
    log:
        "logs/study/plot_models.log",
    benchmark:
        "benchmarks/plot_study_models.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        dpi=PARAMS.plots.dpi,
    message:
        "Plot all models"
    shell:
        "python workflow/scripts/plot_study_models.py --table {input.table} --dpi {params.dpi} "
        "--out-png {output.png} --out-svg {output.svg} > {log} 2>&1"


rule study:
    input:
        list(map(str, study_files(PARAMS.models))),
