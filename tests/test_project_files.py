"""Files that platforms and tools read: they say what the project itself says."""

from __future__ import annotations

import re
import runpy
import tomllib
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
    jobs = read(".github/workflows/test.yml")["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert {name: commands[name] for name in ("test", "site")} == {
        "test": ["make test"],
        "site": ["make site"],
    }
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


def of_site() -> dict:
    """mkdocs.yml without the names of Python's that MkDocs looks up."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"!!python/\S+", "", text))


def test_the_site_has_every_page_and_every_room(tmp_path: Path) -> None:
    tool = runpy.run_path(str(ROOT / "tools/site_pages.py"))
    tool["main"](tmp_path / "pages")
    listed = re.findall(r"[\w/]+\.md", str(of_site()["nav"]))
    made = {path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.md")}
    assert [page for page in listed if page not in made] == []
    pages = {page for page in made if page.startswith(("docs/", "reference/")) or "/" not in page}
    assert pages == set(listed)
    rooms = {path.parent.name for path in (ROOT / "src/ptq2themoon").glob("*/__init__.py")}
    assert {page for page in listed if page.startswith("reference/")} == {f"reference/{r}.md" for r in rooms}


def test_a_page_of_the_site_is_that_of_github_as_mkdocs_reads_it() -> None:
    tool = runpy.run_path(str(ROOT / "tools/site_pages.py"))
    page = (
        "1. **One**:\n\n   ```python method\n   a = 1\n   ```\n\nEnd\n\n   code\n```yaml refused\nb: 1\n```\n"
    )
    assert tool["as_mkdocs_reads_it"](page) == (
        "1. **One**:\n\n    ```python\n    a = 1\n    ```\n\nEnd\n\n   code\n```yaml\nb: 1\n```\n"
    )


def test_what_builds_the_site_is_exact_and_has_the_tools_of_the_lock() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(re.fullmatch(r"[a-z-]+==[\d.]+", pin) for pin in extras["docs"])
    assert [pin for pin in extras["docs"] if pin.startswith("ruff")] == [
        pin for pin in extras["dev"] if pin.startswith("ruff")
    ]
