"""What the figures of the layers' inputs share: their columns, and the lines above them."""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib.figure import Figure

from ptq2themoon.vocabulary.study_parameters import LAYERS

WIDTH = 10.0  # inches
NOTE_CHARACTERS = 140  # in a line of that width


def layers_of(table: pd.DataFrame) -> list[str]:
    """The layers that a table has, in the order of the network."""
    present = set(table["layer"])
    return [layer for layer in LAYERS if layer in present]


def entitle(figure: Figure, title: str, images: int, note: str) -> None:
    """The title, and below it how many images, and what is treated as class token."""
    said = textwrap.fill(f"{images} images. {note[:1].upper()}{note[1:]}.", NOTE_CHARACTERS)
    figure.suptitle(f"{title}\n{said}", x=0.01, ha="left", fontsize=9.5)
