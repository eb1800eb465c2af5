"""The captions of the HTML report are reStructuredText with jinja, as Snakemake reads them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

jinja2 = pytest.importorskip("jinja2")
docutils_core = pytest.importorskip("docutils.core")

CAPTIONS = sorted((Path(__file__).parents[2] / "workflow" / "report").glob("*.rst"))


def test_captions_are_there() -> None:
    names = {path.stem for path in CAPTIONS}
    assert {"workflow", "top1", "errors_along_network", "attention_overview", "attention_heads"} <= names


@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
def test_caption_renders(path: Path) -> None:
    job = SimpleNamespace(
        wildcards=SimpleNamespace(model="demo", recipe="vanilla"), output=["results/demo/study/errors.png"]
    )
    template = jinja2.Template(path.read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined)
    settings = {"halt_level": 2, "report_level": 2, "raw_enabled": False, "file_insertion_enabled": False}
    html = docutils_core.publish_parts(
        template.render(snakemake=job), writer="html", settings_overrides=settings
    )["body"]
    assert "{{" not in html
    assert "snakemake." not in html
