# Rules that differ only in their stage and in what the report shows: each makes tables or figures from tables.
from ptq2themoon.vocabulary.stages.benchmark import BenchmarkTables
from ptq2themoon.vocabulary.stages.data_free import DataFreeTable, PlotDataFree
from ptq2themoon.vocabulary.stages.evaluate import Summarize
from ptq2themoon.vocabulary.stages.figures import PlotAttention, PlotErrors, PlotTop1
from ptq2themoon.vocabulary.stages.leaderboard import (
    LeaderboardCost,
    LeaderboardPublished,
    LeaderboardTables,
    PlotAccuracyByBits,
    PlotAccuracyByCost,
    PlotAccuracyBySize,
)
from ptq2themoon.vocabulary.stages.learning_curve import PlotAccuracyByIterations
from ptq2themoon.vocabulary.stages.study_figures import (
    PlotRollout,
    PlotStudyAblation,
    PlotStudyActivations,
    PlotStudyAttention,
    PlotStudyErrors,
    PlotStudyFusion,
    PlotStudyModels,
    PlotStudyPublished,
    PlotStudyRanking,
)
from ptq2themoon.vocabulary.stages.study_tables import StudyFidelity, StudyModels, StudyTable

# By the name of the rule: the stage, and marks of its outputs.
LIGHT = {
    "summarize": (
        Summarize,
        dict(
            out_html=shown(
                "summary", "1 Summary", labels={"shows": "every model and recipe, and what to ship"}
            )
        ),
    ),
    "plot_errors": (PlotErrors, dict(out_png=figure("errors_along_network", "4 Errors along the network"))),
    "plot_top1": (PlotTop1, dict(out_png=figure("top1", "1 Top-1, or output error"))),
    "plot_attention": (
        PlotAttention,
        dict(
            out_overview_png=figure("attention_overview", "2 Attention over the image"),
            out_heads_png=figure("attention_heads", "3 Attention by head"),
        ),
    ),
    "benchmark": (BenchmarkTables, {}),
    "study_table": (StudyTable, dict(out=ablation("ablation_table", "Table"))),
    "plot_study_ablation": (PlotStudyAblation, dict(out_png=ablation("ablation", "Bars"))),
    "plot_study_ranking": (
        PlotStudyRanking,
        dict(out_png=studied("ranking", "2 Which operators", "Ranking and search")),
    ),
    "plot_study_published": (
        PlotStudyPublished,
        dict(
            out_errors=of_models("errors_published", "Errors by block, as the study printed them"),
            out_fusion=of_models("fusion_published", "Times, as the study printed them"),
        ),
    ),
    "plot_study_fusion": (
        PlotStudyFusion,
        dict(out_png=studied("fusion", "3 Fusion", "Time and operators")),
    ),
    "study_models": (StudyModels, dict(out=of_models("models_table", "Table"))),
    "plot_study_models": (PlotStudyModels, dict(out_png=of_models("models", "Bars"))),
    "plot_study_activations": (
        PlotStudyActivations,
        dict(
            out_png=studied("activations", "4 Activations", "all blocks"),
            out_block_png=studied("activations_block", "4 Activations", f"block {PARAMS.study.block}"),
        ),
    ),
    "plot_study_errors": (
        PlotStudyErrors,
        dict(
            out=studied("errors", "5 Errors", "by block"),
            out_average=studied("errors_average", "5 Errors", "mean over blocks"),
            out_histograms=studied("error_histograms", "5 Errors", "channels by percentage error"),
        ),
    ),
    "plot_study_attention": (
        PlotStudyAttention,
        dict(
            out_overview_png=studied("attention_overview", "6 Attention", "head mean and overlay"),
            out_heads_png=studied("attention_heads", "6 Attention", "every head"),
        ),
    ),
    "plot_study_rollout": (
        PlotRollout,
        dict(out_png=studied("attention_rollout", "6 Attention", "rollout")),
    ),
    "study_fidelity": (
        StudyFidelity,
        dict(out_csv=studied("attention_fidelity", "6 Attention", "fidelity over all images")),
    ),
    "leaderboard_cost": (LeaderboardCost, {}),
    "leaderboard_tables": (LeaderboardTables, dict(out=on_board("table", "Table", "4 Leaderboard"))),
    "leaderboard_published": (LeaderboardPublished, {}),
    "plot_accuracy_by_bits": (
        PlotAccuracyByBits,
        dict(out_png=on_board("accuracy_by_bits", "Accuracy by bits")),
    ),
    "plot_accuracy_by_size": (
        PlotAccuracyBySize,
        dict(out_png=on_board("accuracy_by_size", "Accuracy by size")),
    ),
    "plot_accuracy_by_cost": (
        PlotAccuracyByCost,
        dict(out_png=on_board("accuracy_by_cost", "Accuracy by seconds of calibration")),
    ),
    "data_free_table": (DataFreeTable, {}),
    "plot_accuracy_by_iterations": (
        PlotAccuracyByIterations,
        dict(out_png=figure("accuracy_by_iterations", "5 Accuracy by iterations")),
    ),
    "plot_data_free": (PlotDataFree, dict(out_png=figure("data_free", "6 Calibration without data"))),
}

for rule_name, (stage, marks) in LIGHT.items():

    rule:
        name:
            rule_name
        input:
            **inputs(stage),
        output:
            **outputs(stage, **marks),
        log:
            log_of(stage),
        benchmark:
            times_of(stage)
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=1000,
            runtime=5,
        params:
            **call(stage),
        message:
            said(stage)
        shell:
            RUN
