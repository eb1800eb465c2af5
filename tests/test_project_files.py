"""Files that platforms and tools read: they say what the project itself says."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import ptq2themoon

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_and_the_changes_are_of_this_version() -> None:
    assert read("CITATION.cff")["version"] == ptq2themoon.__version__
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == ptq2themoon.__version__


def test_a_citation_has_what_its_format_requires() -> None:
    cited = read("CITATION.cff")
    for entry in (cited, *cited["references"]):
        assert {"type", "title", "authors"} <= entry.keys()
        assert all(author.keys() == {"name"} for author in entry["authors"])
    assert cited["license"] == "Apache-2.0"


def test_the_workflow_runs_the_command_of_the_readme() -> None:
    steps = read(".github/workflows/test.yml")["jobs"]["test"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == ["make test"]
    assert "make test " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_commits_are_held_to_what_make_lint_checks() -> None:
    lint = re.search(r"^lint:.*?\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint
    commands = [line.strip().removesuffix(" .") for line in lint[1].splitlines()]
    (local,) = read(".pre-commit-config.yaml")["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]]
    assert [hook for hook in hooks if hook not in commands] == []
    assert len(hooks) == 4


def test_forms_for_issues_have_what_github_requires() -> None:
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= form.keys()
            assert all({"type", "id", "attributes"} <= item.keys() for item in form["body"])
