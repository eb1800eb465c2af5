from ptq2themoon.vocabulary import leaderboard_layout
from ptq2themoon.vocabulary.stages.leaderboard import LeaderboardKernels, LeaderboardRow


rule leaderboard_row:
    input:
        **inputs(LeaderboardRow),
    output:
        **outputs(LeaderboardRow),
    log:
        log_of(LeaderboardRow),
    benchmark:
        times_of(LeaderboardRow)
    conda:
        ENVIRONMENT
    threads: share
    resources:
        **asks(LeaderboardRow),
    params:
        **call(LeaderboardRow),
    message:
        "{wildcards.model}, {wildcards.recipe}: a row of the leaderboard at {wildcards.bits}"
    shell:
        RUN


rule leaderboard_kernels:
    input:
        **inputs(LeaderboardKernels),
    output:
        **outputs(LeaderboardKernels),
    log:
        log_of(LeaderboardKernels),
    benchmark:
        times_of(LeaderboardKernels)
    conda:
        ENVIRONMENT
    resources:
        **asks(LeaderboardKernels),
    params:
        **call(LeaderboardKernels),
    message:
        "{wildcards.model}, {wildcards.recipe}: what runs on integer kernels"
    shell:
        RUN


rule leaderboard:
    input:
        leaderboard_layout.leaderboard_files(PARAMS),
