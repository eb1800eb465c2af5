"""Copy what the documentation site shows: README, docs/ and whatever they link to. `make site` calls this.

Pages stay as GitHub shows them; only where MkDocs reads Markdown in another way does a copy differ.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "ptq2themoon"
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
FENCE = re.compile(r"^( *```\w+) .*$", re.MULTILINE)  # GitHub takes the first word after the marks alone
NUMBERED = re.compile(r"\d+\. ")


def as_mkdocs_reads_it(text: str) -> str:
    """A page with one word after the marks of a block, and four blanks before what belongs to a number."""
    lines, inside = [], False
    for line in FENCE.sub(r"\1", text).splitlines():
        if line and not line.startswith(" "):
            inside = bool(NUMBERED.match(line))
        lines.append(f" {line}" if inside and line.startswith("   ") else line)
    return "\n".join(lines) + "\n"


def shown(first: list[Path]) -> list[Path]:
    """Pages and all files that they link to, directly or by other pages."""
    found = list(first)
    for page in found:
        if page.suffix == ".md":
            for link in LINK.findall(page.read_text(encoding="utf-8")):
                target = (page.parent / link).resolve()
                if "://" not in link and target.is_file() and target not in found:
                    found.append(target)
    return found


def reference(package: Path) -> str:
    """The page of the API of one room of the package; mkdocstrings fills it."""
    name = f"ptq2themoon.{package.name}"
    return f"# {package.name}\n\n::: {name}\n"


def main(out: Path) -> None:
    """Write the folder that mkdocs.yml names as `docs_dir`."""
    shutil.rmtree(out, ignore_errors=True)
    for path in shown([ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]):
        copy = out / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            copy.write_text(as_mkdocs_reads_it(path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copy(path, copy)
    (out / "reference").mkdir()
    for package in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        page = out / "reference" / f"{package.name}.md"
        page.write_text(reference(package), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
