"""Bytes that git keeps, by folder, at two revisions, into docs/tracked_size.json.

python tools/tracked_size.py BEFORE AFTER
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "tracked_size.json"
RESULTS = ("results", "example")  # the name before, and since


def bytes_by_folder(revision: str) -> dict[str, int]:
    """Bytes of the files of each folder at the top."""
    listing = ["git", "ls-tree", "-r", "-l", "-z", "--end-of-options", revision]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {revision}: {done.stderr.strip()}")
    found: Counter[str] = Counter()
    for entry in filter(None, done.stdout.split("\0")):
        facts, _, name = entry.partition("\t")
        folder = name.partition("/")[0] if "/" in name else "."
        found[folder] += int(facts.split()[-1])
    return dict(sorted(found.items()))


def main(before: str, after: str) -> None:
    """Write the bytes of both revisions."""
    found = {name: bytes_by_folder(revision) for name, revision in (("before", before), ("after", after))}
    for name, folders in found.items():
        print(f"{name}: {sum(folders.values()) / 1e6:.1f} MB, of results {folders['results'] / 1e6:.1f} MB")
    OUT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"error: {len(sys.argv) - 1} arguments: give two revisions, the earlier one first")
    main(*sys.argv[1:])
