"""Stage leaderboard_published: published figures in Markdown, with what they cannot be compared for."""

from __future__ import annotations

from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.tables.published import COLUMNS, published_page
from ptq2themoon.vocabulary.stages.leaderboard import LeaderboardPublished


def main(job: LeaderboardPublished) -> None:
    with Stage.of(job) as stage:
        text = published_page(read_table(job.published, COLUMNS))
        stage.temporary(job.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_job(main, LeaderboardPublished)
