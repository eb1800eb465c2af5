"""Names that a user gives to models, data sets and recipes: folders of results, words of commands, labels."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from ptq2themoon.vocabulary.validation import shown

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Folders of results/ that are neither a model nor a recipe, and the suffixes of the files beside those.
RESERVED = (
    *("benchmarks", "data_free", "example", "figures", "fp32", "leaderboard", "learning_curve"),
    *("models", "study"),
)
SUFFIXES = (".csv", ".data", ".json", ".md", ".onnx", ".safetensors")
LONGEST = 100  # characters; a folder's name holds 255 bytes, and figures have less room


def _name(name: str) -> str:
    """Refuse what can't be a folder of results/."""
    if len(name) > LONGEST:
        raise ValueError(f"{name[:20] + '...'!r} has {len(name)} characters; at most {LONGEST}")
    if not NAME.fullmatch(name):
        valid = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip(".-") or "a name"
        raise ValueError(f"{name!r} can't name a folder; letters, digits, _ . - are allowed; try {valid!r}")
    if name in RESERVED or name.endswith(SUFFIXES):
        raise ValueError(f"{name!r} is taken by another result; choose another name")
    return name


Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": f"^{NAME.pattern}$"})]


LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .,()-]*")


def _label(label: str) -> str:
    """Refuse what a figure, a table or a page could take for more than words."""
    if len(label) > LONGEST or not LABEL.fullmatch(label):
        raise ValueError(
            f"{shown(label)} can't be a label; letters, digits and _ . , ( ) - are allowed, {LONGEST} at most"
        )
    return label


Label = Annotated[str, AfterValidator(_label), Field(json_schema_extra={"pattern": f"^{LABEL.pattern}$"})]
