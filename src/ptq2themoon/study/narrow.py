"""bits.json of the stage study_bits."""

from __future__ import annotations

import json
from pathlib import Path

from ptq2themoon.errors import UserError
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
