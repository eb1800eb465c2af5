"""Write an INT8 model that takes pixels, from one that takes normalised images."""

from __future__ import annotations

from pathlib import Path

import tyro

from ptq2themoon.deploy.pixel_input import with_pixels
from ptq2themoon.graph.editing.model_files import write_model
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.stage import Stage, run


def pixels(int8: Path, out: Path) -> None:
    """Put the normalisation into the graph.

    Args:
        int8: int8.onnx of stage deploy.
        out: the model with the input `pixels`, uint8 [batch, height, width, channels].
    """
    with Stage("pixels", inputs=[int8], outputs=[out], parameters={}) as stage:
        write_model(with_pixels(read_graph(int8), str(int8)), stage.temporary(out), out.name)


if __name__ == "__main__":
    run(lambda: tyro.cli(pixels))
