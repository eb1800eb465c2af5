"""Draw two pictures from the code (`make architecture`): packages, and the stages of the default run.

Packages and who imports whom stand in docs/architecture.md, stages and who reads whom in docs/workflow.md.

An arrow that others imply is left out: A -> B, B -> C and A -> C show as A -> B -> C.
"""

from __future__ import annotations

import re
from pathlib import Path

import grimp

from ptq2themoon.provenance.expected import expected_results
from ptq2themoon.vocabulary.parameters import load_params

ROOT = Path(__file__).parents[1]
REGION = r"(<!-- {} -->\n)(.*?)(\n<!-- end -->)"
BY_NAME = ("ptq2themoon.vocabulary", "ptq2themoon.methods")  # a registry, which pyproject.toml excepts


def packages() -> dict[str, set[str]]:
    """Every package and the others that it imports, by name."""
    graph = grimp.build_graph("ptq2themoon", exclude_type_checking_imports=True, cache_dir=None)
    rooms = {room for room in graph.find_children("ptq2themoon") if graph.find_children(room)}
    for room in rooms:
        graph.squash_module(room)
    found = {room: (graph.find_modules_directly_imported_by(room) & rooms) - {room} for room in rooms}
    found[BY_NAME[0]].discard(BY_NAME[1])
    return {
        room.rpartition(".")[2]: {other.rpartition(".")[2] for other in others}
        for room, others in found.items()
    }


def below(room: str, imports: dict[str, set[str]]) -> set[str]:
    """All packages that a package reaches."""
    return imports[room].union(*(below(other, imports) for other in imports[room]))


def read_by() -> dict[str, set[str]]:
    """Every stage of the default run and the stages that read its files, by name."""
    results = expected_results(load_params(ROOT / "params.yaml", ROOT / "recipes"))
    makers = {path: result.stage for result in results for path in result.outputs}
    found: dict[str, set[str]] = {result.stage: set() for result in results}
    for result in results:
        for path in result.inputs:
            if path in makers and makers[path] != result.stage:
                found[makers[path]].add(result.stage)
    return found


def flowchart(arrows: dict[str, set[str]]) -> str:
    """A Mermaid flowchart, from top to bottom."""
    lines = [
        f"  {first} --> {other}"
        for first in sorted(arrows)
        for other in sorted(arrows[first])
        if not any(other in below(middle, arrows) for middle in arrows[first])
    ]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


PICTURES = {"packages": ("docs/architecture.md", packages), "stages": ("docs/workflow.md", read_by)}


def drawn(name: str) -> tuple[Path, str]:
    """A page, and its text with the picture of that name as the code has it."""
    place, arrows = PICTURES[name]
    page = ROOT / place
    picture = rf"\g<1>{flowchart(arrows())}\g<3>"
    return page, re.sub(REGION.format(name), picture, page.read_text(encoding="utf-8"), flags=re.S)


if __name__ == "__main__":
    for name in PICTURES:
        page, text = drawn(name)
        page.write_text(text, encoding="utf-8")
