"""Draw the packages and who imports whom into docs/architecture.md, from the code (`make architecture`).

An arrow that others imply is left out: A -> B, B -> C and A -> C show as A -> B -> C.
"""

from __future__ import annotations

import re
from pathlib import Path

import grimp

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
REGION = r"(<!-- packages -->\n)(.*?)(\n<!-- end -->)"
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


def picture() -> str:
    """The packages as a Mermaid flowchart, from top to bottom."""
    imports = packages()
    arrows = [
        f"  {room} --> {other}"
        for room in sorted(imports)
        for other in sorted(imports[room])
        if not any(other in below(middle, imports) for middle in imports[room])
    ]
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```"])


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(REGION, rf"\g<1>{picture()}\g<3>", page, flags=re.S), encoding="utf-8")
