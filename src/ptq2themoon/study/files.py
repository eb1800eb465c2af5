"""Small JSON files that the study's stages hand to each other: bits.json and fp32.json."""

from __future__ import annotations

import json
from pathlib import Path

from ptq2themoon.errors import UserError
from ptq2themoon.evaluate.accuracy import Metrics
from ptq2themoon.quantize.bits import parse_bits


def chosen_bits(path: Path) -> str:
    """The narrow bits that a bits.json names.

    Raises:
        UserError: a file of another form.
    """
    try:
        bits = json.loads(path.read_text(encoding="utf-8"))["narrow"]
        parse_bits(bits)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no bits.json of study_bits ({error}); run it again") from None
    return str(bits)


def read_floating(path: Path) -> Metrics:
    """Accuracy in floating point, from a fp32.json.

    Raises:
        UserError: a file of another form.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("images", "top1", "top5", "loss", "agreement")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no fp32.json of study_reference ({error}); run it again") from None
