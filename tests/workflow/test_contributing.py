"""The changes of docs/contributing.md work as they stand, each made in a clone of its own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tiny_stages
from clones import ROOT, clone, run

pytestmark = pytest.mark.slow  # each starts stages of a clone
PAGE = (ROOT / "docs/contributing.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading."""
    return re.split(r"^## ", PAGE.partition(f"## {title}\n")[2], flags=re.M)[0]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def apply(folder: Path, file: str, diff: str) -> None:
    """Change a file as a diff without line numbers says; every hunk must fit once."""
    path = folder / file
    for hunk in diff.split("@@\n"):
        old, new = (
            "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[0] in signs)
            for signs in (" -", " +")
        )
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, old
        path.write_text(text.replace(old, new), encoding="utf-8")


def write(folder: Path, block: str) -> str:
    """Write a block to the file that its first line names, at the end of it where it is there."""
    name, _, text = block.partition("\n")
    path = folder / name.removeprefix("# ")
    before = path.read_text(encoding="utf-8") + "\n\n" if path.is_file() else ""
    path.write_text(before + text, encoding="utf-8")
    return str(path.relative_to(folder))


def test_a_parameter_has_two_places(chain: Path, tmp_path: Path) -> None:
    text = section("A scalar parameter of a stage")
    files = re.findall(r"`((?:src|workflow)/\S+\.py)`", text)[:2]
    folder = clone(tmp_path)
    for file, diff in zip(files, blocks(text, "diff"), strict=True):
        apply(folder, file, diff)
    script, *words = tiny_stages.command("operator_errors", top=3)
    script = str(folder / Path(script).relative_to(ROOT))
    work = shutil.copytree(chain, tmp_path / "work", symlinks=True)
    run(folder, "bash", "-c", f'cd {work} && python {script} "$@"', "bash", *words)
    sidecar = json.loads((work / "out/q/operators.sidecar.json").read_text())
    assert sidecar["parameters"]["top"] == 3
    assert json.loads((work / "out/q/ranking.json").read_text())["top"] == 3


def test_a_figure_is_a_module_a_stage_and_a_row(tmp_path: Path) -> None:
    text = section("A figure")
    folder = clone(tmp_path)
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "resources/demo", folder / "resources/demo")
    written = [write(folder, block) for block in blocks(text, "python")]
    assert len(written) == 3
    (diff,) = blocks(text, "diff")
    apply(folder, "workflow/rules/tables_and_figures.smk", diff)
    (folder / "workflow/report/agreement.rst").write_text("**Agreement.**\n")
    planned = run(folder, "snakemake", "-n", "--cores", "1", "results/demo/figures/agreement.png")
    assert "demo: Draw how often recipes agree with floating point" in planned
    rows = {"model": ["demo"] * 3, "recipe": ["fp32", "a", "b"], "agreement": [100.0, 99.0, 42.5]}
    pd.DataFrame(rows).to_csv(folder / "summary.csv", index=False)
    drawn = ["--summary", "summary.csv", "--model", "demo", "--out-png", "a.png", "--out-svg", "a.svg"]
    run(folder, "python", written[2], *drawn)
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")


def test_an_observer_is_one_file(chain: Path, tmp_path: Path) -> None:
    folder = clone(tmp_path)
    (block,) = blocks(section("An observer"), "python")
    assert write(folder, block) == "src/ptq2themoon/quantize/observers/half.py"
    work = shutil.copytree(chain, tmp_path / "work", symlinks=True)
    rule = "{select: {operand: input}, observer: half}"
    recipe = f"description: Half of each range\nextends: vanilla\nrules:\n  - {rule}\n"
    (work / "recipes/tried.yaml").write_text(recipe)
    script, *words = tiny_stages.command("calibrate", recipe="recipes/tried.yaml")
    script = str(folder / Path(script).relative_to(ROOT))
    run(folder, "bash", "-c", f'cd {work} && python {script} "$@"', "bash", *words)
    header = json.loads((work / "out/q/qparams.json").read_text())
    assert json.dumps(header).count('"observer": "half"') > 10
